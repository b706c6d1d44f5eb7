"""
Exact searches on a GPU: copies of vectors whose index, and whose truth, stay in memory.

FAISS on a GPU takes no vector out again, passes over a selection of ids without a word, and is not
safe from two threads. So the index itself stays where it was; a copy of its vectors on the card
answers the searches that ask for no selection, one at a time, and whatever goes wrong with the card
is answered by the index instead.
"""

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import faiss
import numpy as np

from orchestrator.domain import Embeddings
from orchestrator.retrieval.arrays import Ids, Scores, Vector

T = TypeVar("T")

MAX_NEIGHBOURS = 1024
"""FAISS selects at most 2048 of a row on a GPU; half of that is more than anybody asks for."""

_MAX_GONE = MAX_NEIGHBOURS // 2
"""Vectors that are still in a copy but in its index no more; with more of them a new copy is due."""
_TEMPORARY_BYTES = 64 * 1024 * 1024
"""FAISS's own room for what it computes; it would take 1.5 GiB of a large card by itself."""
_BLOCK = 16_384
"""Vectors copied at once."""
_GROWTH = 2
"""A copy that grows moves into a larger place, and has both for a moment."""

logger = logging.getLogger(__name__)


def why_no_gpu(device: int, *, api: Any = faiss) -> str | None:
    """Why FAISS cannot search on the GPU of that number, in words; None if it can."""
    if not hasattr(api, "StandardGpuResources"):
        return "FAISS is installed in its CPU build; make setup DEVICE=gpu installs faiss-gpu"
    count = api.get_num_gpus()
    return None if device < count else f"FAISS sees {count} GPUs here, no number {device}"


class GpuSearch:
    """
    One GPU's share of the searches. Safe from any thread; they take turns on the card.

    Args:
        device: Its number.
        memory_bytes: Most that all copies together may take; FAISS's 64 MiB of working room and the
            CUDA context come on top.
        api: FAISS.

    Attributes:
        failure: Why the card is not used any more; None while it is.
    """

    def __init__(self, *, device: int, memory_bytes: int, api: Any = faiss) -> None:
        self.failure: str | None = None
        self._device = device
        self._memory_bytes = memory_bytes
        self._api = api
        self._lock = threading.Lock()
        # An index that is let go takes its copy with it: nobody has to tell.
        self._copies: weakref.WeakSet[GpuCopy] = weakref.WeakSet()
        self._resources: Any = None

    def state(self) -> dict[str, Any]:
        """What `/status` shows: vectors on the card, bytes they may take, and what went wrong."""
        copies = list(self._copies)
        return {
            "device": self._device,
            "vectors": sum(len(copy) for copy in copies),
            "bytes": sum(copy.bytes for copy in copies),
            "max_bytes": self._memory_bytes,
            "failure": self.failure,
        }

    def has_room(self, count: int, dimension: int) -> bool:
        """Whether so many vectors more fit; sure only in a `turn`."""
        taken = sum(copy.bytes for copy in list(self._copies))
        return taken + place_bytes(count, dimension) <= self._memory_bytes

    def copy(
        self, count: int, dimension: int, read: Callable[[], tuple[Ids, Embeddings]]
    ) -> "GpuCopy | None":
        """
        Vectors onto the card; None if they do not fit, or the card is not used any more.

        Args:
            count: How many.
            dimension: Length of a vector.
            read: Gives ids (n,) int64 and unit rows (n, d) float32; called only if they fit.
        """

        def made() -> GpuCopy | None:
            if not self.has_room(count, dimension):
                return None
            copy = GpuCopy(self, self._empty(dimension), dimension)
            copy.put(*read())
            self._copies.add(copy)
            return copy

        return self.turn(made)

    def turn(self, work: Callable[[], T]) -> T | None:
        """
        Do something on the card while nobody else does.

        Returns:
            What `work` gives; None if the card fails. It is left alone from then on: after an
            error a CUDA context cannot be trusted.
        """
        with self._lock:
            if self.failure is not None:
                return None
            try:
                return work()
            except Exception as exc:
                self.failure = f"{type(exc).__name__}: {exc}".splitlines()[0][:200]
                logger.exception("searches on the GPU failed: from now on they run on the CPU")
                return None

    def _empty(self, dimension: int) -> Any:
        if self._resources is None:
            self._resources = self._api.StandardGpuResources()
            self._resources.setTempMemory(_TEMPORARY_BYTES)
        config = self._api.GpuIndexFlatConfig()
        config.device = self._device
        return self._api.GpuIndexFlatIP(self._resources, dimension, config)


class GpuCopy:
    """
    The vectors of one index on the card; made by `GpuSearch.copy`.

    Every method may say that the copy is of no use any more: then the index goes on without it.
    """

    def __init__(self, card: GpuSearch, index: Any, dimension: int) -> None:
        self._card = card
        self._index = index
        self._dimension = dimension
        self._ids = np.empty(0, dtype=np.int64)
        self._gone = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def bytes(self) -> int:
        """What it may take of the card, growing."""
        return place_bytes(len(self), self._dimension)

    def add(self, ids: Ids, rows: Embeddings) -> bool:
        """
        Put vectors in; False if the copy is of no use any more.

        Args:
            ids: (n,) int64.
            rows: (n, d) float32 unit rows.
        """

        def added() -> bool:
            if np.isin(ids, self._ids).any() or not self._card.has_room(len(ids), self._dimension):
                return False
            self.put(ids, rows)
            return True

        return bool(self._card.turn(added))

    def put(self, ids: Ids, rows: Embeddings) -> None:
        """`add` for whoever has the card's turn, and knows that there is room."""
        for start in range(0, len(ids), _BLOCK):
            block = rows[start : start + _BLOCK]
            self._index.add(np.ascontiguousarray(block, dtype=np.float32))
        self._ids = np.concatenate((self._ids, ids))

    def remove(self, ids: Ids) -> bool:
        """Find these no more; False if the copy is of no use any more."""
        self._gone = np.union1d(self._gone, ids[np.isin(ids, self._ids)])
        return len(self._gone) <= _MAX_GONE

    def search(self, query: Vector, k: int) -> tuple[Ids, Scores] | None:
        """
        The k nearest, best first; None if the card cannot say.

        Args:
            query: (d,) float32 of unit length.
            k: At least 1.

        Returns:
            ids (m,) int64 and scores (m,) float32, cosine in [-1, 1], with m <= k.
        """
        wanted = min(k + len(self._gone), len(self))
        if wanted > MAX_NEIGHBOURS:
            return None
        rows = np.ascontiguousarray(query, dtype=np.float32)[None, :]
        found = self._card.turn(lambda: self._index.search(rows, wanted))
        if found is None:
            return None
        scores, places = found
        ids = self._ids[places[0]]
        there = ~np.isin(ids, self._gone)
        return ids[there][:k], scores[0][there][:k]


def place_bytes(count: int, dimension: int) -> int:
    """The most that so many float32 vectors take of a card."""
    return _GROWTH * 4 * dimension * count
