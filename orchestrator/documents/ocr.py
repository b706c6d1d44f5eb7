"""
Text on pages that are pictures, by RapidOCR's models on ONNX Runtime, where those are installed.

Run it in a parser's process (`page_recognition.py`): it is native code over a stranger's pictures.
"""

import importlib.util
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Image: TypeAlias = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

_MODULES = ("rapidocr", "onnxruntime")
_COLUMN_WIDTH = 0.25
"""Of what is cut: pieces narrower than this are a table's cells, which belong to their rows."""
_COLUMN_LINES = 3
"""Fewer lines beside each other are two parts of a line."""
_SAME_LINE = 0.5
"""Of the smaller height: pieces that share so much of it stand on one line."""


class Piece(NamedTuple):
    """A piece of text and where it stands, in pixels from the top left."""

    left: float
    top: float
    right: float
    bottom: float
    text: str


def installed() -> bool:
    """Whether the `ocr` extra is there."""
    return all(importlib.util.find_spec(name) is not None for name in _MODULES)


class PageReader:
    """
    The models, loaded once: text is found, then read, on one thread.

    Raises:
        ImportError: If the `ocr` extra is not installed.
    """

    def __init__(self) -> None:
        import onnxruntime  # noqa: PLC0415 - of an optional extra
        from rapidocr import RapidOCR  # noqa: PLC0415 - of an optional extra

        onnxruntime.disable_telemetry_events()
        self._engine = RapidOCR(
            params={
                "Global.use_cls": False,  # pages that lie on their side are turned by their PDF
                "Global.log_level": "critical",
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": False,
            }
        )

    def text(self, image: Image) -> str:
        """The text of a page, (height, width, 3) BGR, in reading order; "" if there is none."""
        found: Any = self._engine(image)
        if found.boxes is None or not found.txts:
            return ""
        pieces = []
        for corners, text in zip(found.boxes, found.txts, strict=True):
            (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
            pieces.append(Piece(float(left), float(top), float(right), float(bottom), text))
        return "\n".join(in_reading_order(pieces))


def in_reading_order(pieces: Sequence[Piece]) -> list[str]:
    """
    The lines of a page, column after column; pieces on one line are joined.

    Source:
        Nagy and Seth 1984, "Hierarchical representation of optically scanned documents": cut where
        the page is empty from edge to edge, again and again. Changed: a cut between columns comes
        first, and needs columns as wide as text has them, so that the rows of a table stay whole.
    """
    if (at := _column_cut(pieces)) is not None:
        left = [piece for piece in pieces if piece.right <= at]
        right = [piece for piece in pieces if piece.right > at]
        return in_reading_order(left) + in_reading_order(right)
    if (at := _row_cut(pieces)) is not None:
        upper = [piece for piece in pieces if piece.bottom <= at]
        lower = [piece for piece in pieces if piece.bottom > at]
        return in_reading_order(upper) + in_reading_order(lower)
    return _lines(pieces)


def _column_cut(pieces: Sequence[Piece]) -> float | None:
    """Where the widest empty strip from top to bottom begins, if there are columns on both sides."""
    if len(pieces) < 2:  # noqa: PLR2004 - one has no columns
        return None
    gap = _widest_gap(sorted((piece.left, piece.right) for piece in pieces))
    if gap is None:
        return None
    least = _COLUMN_WIDTH * (max(p.right for p in pieces) - min(p.left for p in pieces))
    for side in ([p for p in pieces if p.right <= gap], [p for p in pieces if p.right > gap]):
        if median(p.right - p.left for p in side) < least or len(_lines(side)) < _COLUMN_LINES:
            return None
    return gap


def _row_cut(pieces: Sequence[Piece]) -> float | None:
    return _widest_gap(sorted((piece.top, piece.bottom) for piece in pieces))


def _widest_gap(spans: Sequence[tuple[float, float]]) -> float | None:
    """Where the widest gap between the spans, sorted by their start, begins; None without one."""
    end, widest, begins = spans[0][1] if spans else 0.0, 0.0, None
    for low, high in spans:
        if low - end > widest:
            widest, begins = low - end, end
        end = max(end, high)
    return begins


def _lines(pieces: Sequence[Piece]) -> list[str]:
    """Pieces without an empty strip between them, line by line."""
    lines: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda p: (p.top + p.bottom) / 2):
        if lines and _on_one_line(lines[-1][-1], piece):
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [" ".join(p.text for p in sorted(line, key=lambda p: p.left)) for line in lines]


def _on_one_line(one: Piece, other: Piece) -> bool:
    shared = min(one.bottom, other.bottom) - max(one.top, other.top)
    return shared > _SAME_LINE * min(one.bottom - one.top, other.bottom - other.top)
