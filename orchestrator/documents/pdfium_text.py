"""
The text of a page by PDFium: some fourteen times faster than pypdf, and native code.

It can be crashed, or kept busy for ever, by a file made for that. Run it in the parser's process only
(`sandbox.py`); a page over which a process is lost is read once more, without it.
"""

import ctypes
from contextlib import suppress
from typing import Self

import numpy as np
import pypdfium2  # type: ignore[import-untyped] # ships no types
from pypdfium2 import raw

from orchestrator.documents.ocr import Image
from orchestrator.documents.text_cleaning import compact
from orchestrator.domain import Box

PICTURE_SCALE, PICTURE_SIDE = 200 / 72, 2000
"""Of a page's picture: 200 dots an inch, what is usual for OCR, and pixels of its longer side at most."""
_BATCH_CHARS = 100_000
_CANVAS = 1_000_000
"""Side of the square on which PDFium places what it is asked for: fine enough for shares of a page."""
_MAX_CHAR = 0x10FFFF


class PdfiumText:
    """A PDF as PDFium sees it; page numbers are pypdf's, from 1."""

    def __init__(self, document: pypdfium2.PdfDocument) -> None:
        self._document = document

    @classmethod
    def open(cls, data: bytes, *, pages: int) -> Self | None:
        """
        The file; None if PDFium cannot open it, or counts other pages than `pages`.

        Such files are pypdf's: which page is which must not depend on the reader.
        """
        with suppress(pypdfium2.PdfiumError):
            document = pypdfium2.PdfDocument(data)
            if len(document) == pages:
                return cls(document)
            document.close()
        return None

    def text(self, number: int, *, max_chars: int) -> str | None:
        """
        A page's text in the order of its content stream, `max_chars` of it at most.

        Returns:
            None if PDFium cannot read the page.
        """
        try:
            page = self._document[number - 1]
        except (pypdfium2.PdfiumError, IndexError):
            return None
        try:
            text = page.get_textpage()
            try:
                count = min(text.count_chars(), max_chars)
                # Never all at once: what is asked for is copied twice.
                starts = range(0, count, _BATCH_CHARS)
                return "".join(
                    text.get_text_range(start, min(_BATCH_CHARS, count - start)) for start in starts
                )
            finally:
                text.close()
        except pypdfium2.PdfiumError:
            return None
        finally:
            page.close()

    def boxes(self, number: int, passage: str, *, near: float) -> list[Box]:
        """
        Where a passage stands on a page: one box a line; none if that is not sure.

        Args:
            number: Of the page, from 1.
            passage: Its text, as it was cleaned.
            near: How far down the page's text it begins, from 0 to 1: of several equal ones the nearest
                to there is meant.
        """
        try:
            page = self._document[number - 1]
        except (pypdfium2.PdfiumError, IndexError):
            return []
        try:
            text = page.get_textpage()
            try:
                first, last = _place(text, compact(passage), near)
                if last < first:
                    return []
                count = text.count_rects(first, last - first + 1)
                return [_on_page(page, text.get_rect(n)) for n in range(count)]
            finally:
                text.close()
        except pypdfium2.PdfiumError:
            return []
        finally:
            page.close()

    def picture(self, number: int) -> Image | None:
        """
        A page as it looks, at most `PICTURE_SIDE` pixels wide and high: (height, width, 3) BGR.

        Returns:
            None if nothing is on the page, or PDFium cannot draw it.
        """
        try:
            page = self._document[number - 1]
        except (pypdfium2.PdfiumError, IndexError):
            return None
        try:
            if not raw.FPDFPage_CountObjects(page.raw):
                return None
            scale = min(PICTURE_SCALE, PICTURE_SIDE / max(*page.get_size(), 1.0))
            bitmap = page.render(scale=scale)
            try:
                return np.array(bitmap.to_numpy()[:, :, :3])  # a copy: the bitmap is given back
            finally:
                bitmap.close()
        except (pypdfium2.PdfiumError, ValueError):
            return None
        finally:
            page.close()

    def close(self) -> None:
        """Give the file's memory back now."""
        self._document.close()


def _place(text: pypdfium2.PdfTextPage, wanted: str, near: float) -> tuple[int, int]:
    """The first and the last character of a compact passage on a page; (0, -1) if it is not there."""
    letters: list[str] = []
    places: list[int] = []
    for index in range(text.count_chars()):
        code = raw.FPDFText_GetUnicode(text, index)
        found = compact(chr(code)) if 0 < code <= _MAX_CHAR else ""
        letters.append(found)
        places += [index] * len(found)
    page = "".join(letters)
    if not wanted:
        return 0, -1
    starts = _occurrences(page, wanted)
    if not starts:
        return 0, -1
    start = min(starts, key=lambda at: abs(at - near * len(page)))
    return places[start], places[start + len(wanted) - 1]


def _occurrences(page: str, wanted: str) -> list[int]:
    found = []
    start = page.find(wanted)
    while start >= 0:
        found.append(start)
        start = page.find(wanted, start + 1)
    return found


def _on_page(page: pypdfium2.PdfPage, rectangle: tuple[float, float, float, float]) -> Box:
    """A rectangle of PDFium's, in points from the bottom left, as a box of the page as it is shown."""
    left, bottom, right, top = rectangle
    xs, ys = [], []
    for x, y in ((left, bottom), (right, top)):
        across, down = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(page, 0, 0, _CANVAS, _CANVAS, 0, x, y, across, down)
        xs.append(min(max(across.value / _CANVAS, 0.0), 1.0))
        ys.append(min(max(down.value / _CANVAS, 0.0), 1.0))
    return min(xs), min(ys), max(xs), max(ys)
