"""
PDF files become pages of text; whatever a damaged file raises stops here.

pypdf opens the file, which tells what is wrong with it. PDFium reads the pages, which is some fourteen
times faster; what it gives no text for, pypdf reads.

Run it in the parser's process (`sandbox.py`), never beside an event loop: a hostile file can take
any amount of time and memory, which only a process boundary bounds.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from pypdf import PageObject, PasswordType, PdfReader, apply_configuration
from pypdf.errors import (
    DependencyError,
    EmptyFileError,
    FileNotDecryptedError,
    LimitReachedError,
)

from orchestrator.documents.findings import PdfInfo
from orchestrator.documents.ocr import Image
from orchestrator.documents.pdfium_text import PdfiumText
from orchestrator.documents.text_cleaning import clean
from orchestrator.domain import Box, FlawedPage, Page
from orchestrator.errors import (
    DamagedDocument,
    DocumentError,
    EmptyFile,
    EncryptedDocument,
    NoPages,
    NotAPdf,
    StoreUnavailable,
    TooManyPages,
)

__all__ = ["OpenPdf", "PdfInfo", "inspect", "read_pages"]

_PDF_MARKS = (b"%PDF-", b"startxref", b"%%EOF")
_HEADER_WITHIN_BYTES = 1 << 20
_UNKNOWN = "\ufffd"
_MANY_UNKNOWN = 0.1
"""Of a page's characters: a font without a map, which the other reader may know better."""


def inspect(path: Path, *, max_pages: int) -> PdfInfo:
    """
    What a quick look at the file tells.

    Raises:
        EmptyFile: If it has no bytes.
        NotAPdf: If nothing in it looks like a PDF.
        EncryptedDocument: If it opens only with a password, or its encryption is not supported.
        DamagedDocument: If its structure cannot be read.
        NoPages: If it has no page.
        TooManyPages: If it has more than `max_pages`.
        StoreUnavailable: If the file itself cannot be read.
    """
    return OpenPdf.open(path, max_pages=max_pages).info


def read_pages(
    path: Path,
    *,
    first: int,
    last: int,
    max_chars_per_page: int,
    max_pages: int = 100_000,
    fast: bool = True,
) -> Iterator[Page]:
    """
    The pages `first` to `last`, in order, counted from 1; a `FlawedPage` where text was lost.

    Without `fast` no native code reads them.

    Raises:
        DocumentError: As `inspect`, when the file cannot be opened; never for a single page.
        MemoryError: If a page needs more than the process may have.
    """
    pdf = OpenPdf.open(path, max_pages=max_pages)
    return pdf.read_pages(first=first, last=last, max_chars_per_page=max_chars_per_page, fast=fast)


class OpenPdf:
    """A PDF that was opened, decrypted and found to have pages."""

    def __init__(self, *, data: bytes, reader: PdfReader, pages: int, max_pages: int) -> None:
        self._data = data
        self._reader = reader
        self._max_pages = max_pages
        self._quick: PdfiumText | None = None
        self._quick_opened = False
        self.info = PdfInfo(pages=pages)

    @classmethod
    def open(cls, path: Path, *, max_pages: int) -> Self:
        """
        The file, ready to read pages from.

        Raises:
            DocumentError: The kinds that `inspect` names.
            StoreUnavailable: If the file itself cannot be read.
        """
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise StoreUnavailable(
                f"The stored file cannot be read ({exc.strerror}). Upload the document again."
            ) from exc
        with _limits(max_pages):
            reader = _reader(data)
            pages = _count_pages(reader, max_pages=max_pages)
        return cls(data=data, reader=reader, pages=pages, max_pages=max_pages)

    def read_pages(
        self, *, first: int, last: int, max_chars_per_page: int, fast: bool = True
    ) -> Iterator[Page]:
        """The pages `first` to `last`, as the function `read_pages`."""
        for number in range(first, last + 1):
            yield self._page(number, max_chars=max_chars_per_page, fast=fast)

    def boxes(self, number: int, passage: str, *, near: float) -> list[Box]:
        """Where a passage stands on a page; see `PdfiumText.boxes`. Nothing for a file of pypdf's."""
        quick = self._open_quick()
        return quick.boxes(number, passage, near=near) if quick else []

    def picture(self, number: int) -> Image | None:
        """A page as it looks; None for one that is blank, or that PDFium cannot draw."""
        quick = self._open_quick()
        return quick.picture(number) if quick else None

    def close(self) -> None:
        """Give back what native code holds of the file."""
        if self._quick is not None:
            self._quick.close()
            self._quick = None

    def _page(self, number: int, *, max_chars: int, fast: bool) -> Page:
        if fast and (raw := self._quick_text(number, max_chars=max_chars + 1)):
            return _cut(number, clean(raw), complete=len(raw) <= max_chars, max_chars=max_chars)
        try:
            with _limits(self._max_pages):
                raw, complete = _text(self._reader.pages[number - 1], max_chars=max_chars)
        except MemoryError:
            raise
        except Exception as exc:  # noqa: BLE001 - damaged pages raise anything: KeyError, RecursionError, struct.error …
            return FlawedPage(
                number, "", f"Page {number} could not be read ({type(exc).__name__})."
            )
        return _cut(number, clean(raw), complete=complete, max_chars=max_chars)

    def _open_quick(self) -> PdfiumText | None:
        if not self._quick_opened:
            self._quick_opened = True
            self._quick = PdfiumText.open(self._data, pages=self.info.pages)
        return self._quick

    def _quick_text(self, number: int, *, max_chars: int) -> str:
        """What PDFium reads on a page; "" if that is nothing, or not to be trusted."""
        quick = self._open_quick()
        raw = quick.text(number, max_chars=max_chars) if quick else None
        if not raw or raw.isspace() or raw.count(_UNKNOWN) > _MANY_UNKNOWN * len(raw):
            return ""
        return raw


def _cut(number: int, text: str, *, complete: bool, max_chars: int) -> Page:
    if complete and len(text) <= max_chars:
        return Page(number, text)
    reason = f"Page {number} was cut after {max_chars:,} characters."
    return FlawedPage(number, text[:max_chars], reason)


class _LongEnough(Exception):
    """The page has given as many characters as anybody asked for."""


def _limits(max_pages: int) -> AbstractContextManager[object]:
    # jbig2dec would be a second program, outside of our limits; images are never decoded here.
    return apply_configuration(
        jbig2dec_binary=None, page_tree_maximum_entries=2 * max_pages + 1_000
    )


def _reader(data: bytes) -> PdfReader:
    if not data:
        raise EmptyFile("The file is empty (0 bytes). Upload it again.")
    if not any(mark in data for mark in _PDF_MARKS):
        raise NotAPdf("The file is not a PDF, whatever its name says. Upload PDF files only.")
    try:
        reader = PdfReader(BytesIO(data))
        locked = reader.is_encrypted and reader.decrypt("") is PasswordType.NOT_DECRYPTED
    except EmptyFileError as exc:
        raise EmptyFile("The file is empty. Upload it again.") from exc
    except FileNotDecryptedError as exc:
        raise _locked() from exc
    except (DependencyError, NotImplementedError) as exc:
        raise EncryptedDocument(
            "The PDF is encrypted in a way that this server cannot open. "
            "Save it without protection and upload it again."
        ) from exc
    except MemoryError:
        raise
    except Exception as exc:
        raise _unreadable(data, exc) from exc
    if locked:
        raise _locked()
    return reader


def _count_pages(reader: PdfReader, *, max_pages: int) -> int:
    try:
        pages = len(reader.pages)
    except LimitReachedError as exc:
        raise TooManyPages(
            f"The PDF's page tree is larger or deeper than this server reads (limit: {max_pages:,} "
            "pages). Split the document."
        ) from exc
    except FileNotDecryptedError as exc:
        raise _locked() from exc
    except MemoryError:
        raise
    except Exception as exc:
        raise _damaged(exc) from exc
    if pages == 0:
        raise NoPages("The PDF has no pages. Export it again from where it was made.")
    if pages > max_pages:
        raise TooManyPages(
            f"The PDF has {pages:,} pages; the limit is {max_pages:,}. Split the document."
        )
    return pages


def _text(page: PageObject, *, max_chars: int) -> tuple[str, bool]:
    # The visitor is what makes a page of megabytes stop early: its pieces join to the same text.
    pieces: list[str] = []
    size = 0

    def collect(piece: str, *_: Any) -> None:
        nonlocal size
        pieces.append(piece)
        size += len(piece)
        if size > max_chars:
            raise _LongEnough

    try:
        text = page.extract_text(visitor_text=collect)
    except _LongEnough:
        return "".join(pieces)[:max_chars], False
    return text[:max_chars], len(text) <= max_chars


def _locked() -> EncryptedDocument:
    return EncryptedDocument(
        "The PDF opens only with a password. Remove the password and upload it again."
    )


def _unreadable(data: bytes, exc: Exception) -> DocumentError:
    # A header far inside is somebody else's file that talks about PDFs, or carries one.
    if b"%PDF-" not in data[:_HEADER_WITHIN_BYTES]:
        return NotAPdf("The file is not a PDF, whatever its name says. Upload PDF files only.")
    return _damaged(exc)


def _damaged(exc: Exception) -> DamagedDocument:
    return DamagedDocument(
        f"The PDF is damaged and cannot be read ({type(exc).__name__}). "
        "Open it in a viewer, save it again and upload the new file."
    )
