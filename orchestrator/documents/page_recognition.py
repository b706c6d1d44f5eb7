"""
Pages without text are read from their picture, in a process that only runs while there are some.

A page costs seconds of processor time and the process half a gigabyte: so only pages that need it,
only so many of a document, and with limits of their own.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.documents.parser_worker import (
    LossCause,
    WorkerLost,
    WorkerPolicy,
    WorkerPool,
    max_reply_bytes,
    stall_s,
)
from orchestrator.domain import FlawedPage, Page
from orchestrator.errors import Internal

_MAYBE_NOT_THE_PAGE = frozenset({LossCause.CRASHED, LossCause.MEMORY})
"""A process may die of something else, and pages before fill its memory, too: one more try."""

RECOGNISED = "was read by OCR."
"""How the flaw of a page ends that was read from its picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OcrLimits:
    """
    What reading pictures may take.

    Attributes:
        memory_bytes: Address space of the process, beyond what it takes before its models are loaded.
        cpu_s_per_page: CPU seconds of one page.
        max_pages: Pages of one document that are read so.
        max_lost_pages: Pages of one document that may end the process; the rest is not tried.
        idle_s: Seconds without a page after which the process is ended.
        max_file_pages: Most pages of a document at all.
        max_chars_per_page: Characters taken from a page.
    """

    memory_bytes: int
    cpu_s_per_page: float
    max_pages: int
    max_lost_pages: int = 3
    idle_s: float = 30.0
    max_file_pages: int = 5_000
    max_chars_per_page: int = 400_000


class PageRecogniser:
    """
    Reads pages from their pictures, one at a time.

    Args:
        limits: What it may take.
        on_loss: Told why, whenever the process was lost.
    """

    def __init__(
        self, *, limits: OcrLimits, on_loss: Callable[[LossCause], None] = lambda _: None
    ) -> None:
        self._limits = limits
        self._on_loss = on_loss
        policy = WorkerPolicy(
            memory_bytes=limits.memory_bytes,
            niceness=10,
            max_reply_bytes=max_reply_bytes(limits.max_chars_per_page),
            max_resident_bytes=limits.memory_bytes,
            ocr=True,
        )
        self._pool = WorkerPool(size=1, policy=policy)
        self._idle: asyncio.TimerHandle | None = None

    @property
    def pids(self) -> list[int]:
        """The process, if it lives."""
        return self._pool.pids

    def document(self, path: Path) -> "DocumentRecognition":
        """One reading of one document."""
        return DocumentRecognition(self, path, self._limits)

    async def read(self, path: Path, number: int) -> str:
        """
        The text on the picture of a page; "" if there is none.

        Raises:
            WorkerLost: If reading it ended the process, or took too long.
            OrchestratorError: If the file cannot be read, or the process does not start.
            NotReady: If the recogniser is closed.
        """
        if self._idle is not None:
            self._idle.cancel()
        request = {
            "op": "ocr",
            "path": str(path),
            "page": number,
            "max_pages": self._limits.max_file_pages,
            "max_chars": self._limits.max_chars_per_page,
            "cpu_s": self._limits.cpu_s_per_page,
        }
        within_s = stall_s(self._limits.cpu_s_per_page)
        try:
            reply = await self._pool.ask(request, within_s=within_s, on_loss=self._on_loss)
        finally:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._limits.idle_s, self._pool.dismiss_idle)
        return str(reply["text"])

    async def aclose(self) -> None:
        """End the process; who waits for a page gets NotReady."""
        if self._idle is not None:
            self._idle.cancel()
        await self._pool.aclose()


class DocumentRecognition:
    """How many pages of one document were read from pictures, and how that went."""

    def __init__(self, recogniser: PageRecogniser, path: Path, limits: OcrLimits) -> None:
        self._recogniser = recogniser
        self._path = path
        self._limits = limits
        self._read = 0
        self._lost = 0

    async def improved(self, page: Page) -> Page:
        """The page; if it has no text, with what can be read on its picture."""
        if (
            page.text.strip()
            or isinstance(page, FlawedPage)
            or self._lost > self._limits.max_lost_pages
        ):
            return page
        if self._read >= self._limits.max_pages:
            reason = (
                f"Page {page.number} is a picture, and only {self._read} of them are read by OCR."
            )
            return FlawedPage(page.number, "", reason)
        self._read += 1
        try:
            text = await self._text(page.number)
        except (WorkerLost, Internal) as exc:
            # A process that does not start costs the picture, too, and never the document.
            self._lost += 1
            why = exc.cause if isinstance(exc, WorkerLost) else "its process does not start"
            reason = f"Page {page.number} is a picture on which OCR failed ({why})."
            return FlawedPage(page.number, "", reason)
        return FlawedPage(page.number, text, f"Page {page.number} {RECOGNISED}") if text else page

    async def _text(self, number: int) -> str:
        try:
            return await self._recogniser.read(self._path, number)
        except WorkerLost as exc:
            if exc.cause not in _MAYBE_NOT_THE_PAGE:
                raise
        return await self._recogniser.read(self._path, number)
