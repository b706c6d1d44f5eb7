"""
The text of a page by PDFium: some fourteen times faster than pypdf, and native code.

It can be crashed, or kept busy for ever, by a file made for that. Run it in the parser's process only
(`sandbox.py`); a page over which a process is lost is read once more, without it.
"""

from contextlib import suppress
from typing import Self

import pypdfium2

_BATCH_CHARS = 100_000


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

    def close(self) -> None:
        """Give the file's memory back now."""
        self._document.close()
