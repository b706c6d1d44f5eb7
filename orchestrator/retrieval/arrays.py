"""The arrays that the modules of this room hand to one another."""

from typing import TypeAlias

import numpy as np

Ids: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int64]]
"""(n,) int64 ids of chunks."""

Scores: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32]]
"""(n,) float32 cosines in [-1, 1]."""

Vector: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32]]
"""(d,) float32 of unit length."""
