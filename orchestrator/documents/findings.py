"""
What a reader finds in a PDF, apart from the pages that `domain.py` knows.

Light on purpose: both sides of the parser's pipe import it, and only one of them loads pypdf.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PdfInfo:
    """What a quick look at a PDF tells. `pages` is at least 1."""

    pages: int
