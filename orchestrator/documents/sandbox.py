"""
PDFs are read in processes of their own: a bomb or an endless loop costs one worker, never us.

The parent never imports pypdf. Each page has an allowance of CPU time that the kernel enforces,
each document one of wall time, each process one of memory. A page that uses its allowance up is
left out and told so; a document with many such pages fails.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from orchestrator.documents.findings import PdfInfo
from orchestrator.documents.page_recognition import OcrLimits, PageRecogniser
from orchestrator.documents.parser_worker import (
    LossCause,
    WorkerLost,
    WorkerPolicy,
    WorkerPool,
    error_of,
    max_reply_bytes,
    stall_s,
)
from orchestrator.domain import Box, FlawedPage, Page
from orchestrator.errors import (
    DamagedDocument,
    DocumentError,
    DocumentTooLarge,
    ParserOutOfMemory,
    ParserTimeout,
)

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """
    What reading a PDF may take.

    Attributes:
        memory_bytes: Address space of a worker, beyond what it takes when idle.
        cpu_s_per_page: CPU seconds of one page, and of opening the file.
        wall_s_per_document: Seconds of reading, waiting for a free worker not counted.
        wall_s_inspect: Seconds of the first look.
        max_pages: Most pages of a document.
        max_chars_per_page: Characters taken from a page; the rest is left out.
        max_chars_per_document: Most characters of a document.
        window_pages: Pages asked for at once; the worker serves others between two windows.
        max_lost_pages: Pages that may use up their allowance before the document fails.

    Raises:
        ValueError: If a limit is not a positive, finite number.
    """

    memory_bytes: int = 1024 * _MIB
    cpu_s_per_page: float = 10.0
    wall_s_per_document: float = 300.0
    wall_s_inspect: float = 10.0
    max_pages: int = 5_000
    max_chars_per_page: int = 400_000
    max_chars_per_document: int = 20_000_000
    window_pages: int = 16
    max_lost_pages: int = 3

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{field.name} must be a positive number, not {value}")

    def policy(self, *, niceness: int) -> WorkerPolicy:
        """What a worker has to know of these limits."""
        return WorkerPolicy(
            memory_bytes=self.memory_bytes,
            niceness=niceness,
            max_reply_bytes=max_reply_bytes(self.max_chars_per_page),
        )


class ParserSandbox:
    """
    Reads PDFs in processes that cannot harm this one.

    Args:
        limits: What one document may take.
        workers: Documents read at the same time; quick looks have one more of their own.
        ocr: What reading pages without text from their pictures may take; None leaves them empty.
        on_loss: Told why, whenever a worker was lost.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        *,
        limits: SandboxLimits,
        workers: int = 1,
        ocr: OcrLimits | None = None,
        on_loss: Callable[[LossCause], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._on_loss = on_loss
        self._clock = clock
        self._readers = WorkerPool(size=workers, policy=limits.policy(niceness=5))
        self._inspector = WorkerPool(size=1, policy=limits.policy(niceness=0))
        self._recogniser = None if ocr is None else PageRecogniser(limits=ocr, on_loss=on_loss)

    @property
    def pids(self) -> list[int]:
        """Process ids of all workers that live now."""
        recogniser = [] if self._recogniser is None else self._recogniser.pids
        return [*self._inspector.pids, *self._readers.pids, *recogniser]

    @property
    def reads_pictures(self) -> bool:
        """Whether pages without text are read from their pictures."""
        return self._recogniser is not None

    async def start(self) -> None:
        """
        Start the workers; they stay warm.

        Raises:
            Internal: If one does not start.
        """
        try:
            await asyncio.gather(self._inspector.start(), self._readers.start())
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Kill the workers; whatever is being read ends with NotReady."""
        await asyncio.gather(self._inspector.aclose(), self._readers.aclose())
        if self._recogniser is not None:
            await self._recogniser.aclose()

    async def inspect(self, path: Path) -> PdfInfo:
        """
        What a quick look at the file tells, while its upload waits.

        Raises:
            DocumentError: NotAPdf, EmptyFile, EncryptedDocument, DamagedDocument, NoPages,
                TooManyPages; ParserTimeout or ParserOutOfMemory if even the look took too much.
            StoreUnavailable: If the file itself cannot be read.
            NotReady: If the sandbox is closed.
        """
        try:
            reply = await self._look(path)
        except WorkerLost as first:
            if first.cause in {LossCause.CPU, LossCause.STALLED}:
                raise self._verdict(first.cause, self._limits.wall_s_inspect) from first
            reply = await self._second_look(path)
        return PdfInfo(pages=int(reply["info"]["pages"]))

    async def pages(self, path: Path, *, total: int, first: int = 1) -> AsyncGenerator[Page, None]:
        """
        Pages `first` to `total` in order; a `FlawedPage` where text is missing or was cut short.

        The next few pages are read while these are used. Close the generator, or cancel the
        task that reads from it, and the worker that serves it is killed.

        Raises:
            DocumentError: DocumentTooLarge, ParserTimeout, ParserOutOfMemory, DamagedDocument.
            StoreUnavailable: If the file itself cannot be read.
            NotReady: If the sandbox is closed.
        """
        reading = _Reading(limits=self._limits, total=total, first=first)
        pictures = None if self._recogniser is None else self._recogniser.document(path)
        pending = self._ask(path, reading)
        try:
            while pending is not None:
                window = await pending
                ready = reading.take(window)
                pending = self._ask(path, reading)
                for page in ready:
                    yield page if pictures is None else await pictures.improved(page)
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)

    async def boxes(self, path: Path, page: int, text: str, *, near: float) -> list[Box]:
        """
        Where a passage stands on a page, one box a line; none if that is not sure, or not to be had.

        Args:
            path: The PDF.
            page: From 1.
            text: The passage.
            near: How far down the page's text it begins, from 0 to 1.

        Raises:
            StoreUnavailable: If the file itself cannot be read.
            NotReady: If the sandbox is closed.
        """
        request = {
            "op": "boxes",
            "path": str(path),
            "page": page,
            "text": text,
            "near": near,
            "max_pages": self._limits.max_pages,
            "cpu_s": self._limits.wall_s_inspect,
        }
        try:
            reply = await self._quickly(request)
        except WorkerLost:
            return []
        return [(left, top, right, bottom) for left, top, right, bottom in reply["boxes"]]

    async def _second_look(self, path: Path) -> dict[str, Any]:
        # A worker may also die of something that is no fault of the file; one that dies twice does.
        try:
            return await self._look(path)
        except WorkerLost as exc:
            raise self._verdict(exc.cause, self._limits.wall_s_inspect) from exc

    async def _look(self, path: Path) -> dict[str, Any]:
        request = {
            "op": "inspect",
            "path": str(path),
            "max_pages": self._limits.max_pages,
            "cpu_s": self._limits.wall_s_inspect,
        }
        return await self._quickly(request)

    async def _quickly(self, request: dict[str, Any]) -> dict[str, Any]:
        """The one reply to a question for which somebody waits."""
        return await self._inspector.ask(
            request, within_s=self._limits.wall_s_inspect, on_loss=self._on_loss
        )

    def _ask(self, path: Path, reading: "_Reading") -> "asyncio.Task[_Window] | None":
        wanted = reading.wanted()
        if wanted is None:
            return None
        return asyncio.create_task(
            self._window(path, wanted, fast=not reading.careful, within_s=reading.remaining_s()),
            name="parse-window",
        )

    async def _window(self, path: Path, wanted: range, *, fast: bool, within_s: float) -> "_Window":
        """The wanted pages, or as many as the worker gave before it was lost."""
        pages: list[Page] = []
        cause: LossCause | None = None
        reply: dict[str, Any] = {}
        began_s = self._clock()
        try:
            async with self._readers.lease() as worker:
                began_s = self._clock()
                worker.send(self._request(path, wanted, fast=fast))
                while "done" not in reply and "error" not in reply:
                    left_s = within_s - (self._clock() - began_s)
                    reply = await worker.reply(
                        within_s=min(left_s, stall_s(self._limits.cpu_s_per_page))
                    )
                    if "page" in reply:
                        pages.append(_page(reply["page"]))
        except WorkerLost as exc:
            self._on_loss(exc.cause)
            cause = exc.cause
        if "error" in reply:
            raise error_of(reply)
        if cause is None and len(pages) < len(wanted):
            cause = LossCause.CRASHED
        return _Window(pages=pages, cause=cause, spent_s=self._clock() - began_s)

    def _request(self, path: Path, wanted: range, *, fast: bool) -> dict[str, Any]:
        return {
            "op": "pages",
            "path": str(path),
            "first": wanted.start,
            "last": wanted.stop - 1,
            "max_pages": self._limits.max_pages,
            "max_chars_per_page": self._limits.max_chars_per_page,
            "cpu_s": self._limits.cpu_s_per_page,
            "fast": fast,
        }

    def _verdict(self, cause: LossCause, allowed_s: float) -> DocumentError:
        return _verdict(cause, limits=self._limits, allowed_s=allowed_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """What one request gave: pages, and why it gave no more if the worker was lost."""

    pages: list[Page]
    cause: LossCause | None
    spent_s: float


class _Reading:
    """How far the reading of one document has come, and what follows from it; no I/O."""

    def __init__(self, *, limits: SandboxLimits, total: int, first: int = 1) -> None:
        self._limits = limits
        self._total = total
        self._next = first
        self._chars = 0
        self._spent_s = 0.0
        self._lost = 0
        self._suspect = 0

    def wanted(self) -> range | None:
        """The pages to ask for next, or None when all are there."""
        if self._next > self._total:
            return None
        count = 1 if self.careful else self._limits.window_pages
        return range(self._next, min(self._next + count, self._total + 1))

    @property
    def careful(self) -> bool:
        """Whether the next page has cost a worker already: it is read alone, without native code."""
        return self._suspect == self._next

    def remaining_s(self) -> float:
        """Seconds of reading that are left."""
        return self._limits.wall_s_per_document - self._spent_s

    def take(self, window: _Window) -> list[Page]:
        """
        The pages that are certain now.

        Raises:
            DocumentError: If a limit of the whole document is passed.
        """
        pages = list(window.pages)
        self._next += len(pages)
        self._spent_s += window.spent_s
        self._chars += sum(len(page.text) for page in pages)
        if self._chars > self._limits.max_chars_per_document:
            raise DocumentTooLarge(
                f"The PDF holds more than {self._limits.max_chars_per_document:,} characters of "
                "text, which is the limit. Split the document."
            )
        if self._next <= self._total and self.remaining_s() <= 0:
            allowed_s = self._limits.wall_s_per_document
            raise _verdict(LossCause.STALLED, limits=self._limits, allowed_s=allowed_s)
        if window.cause is not None:
            pages += self._blame(window.cause)
        return pages

    def _blame(self, cause: LossCause) -> list[Page]:
        # It takes two losses to be sure: earlier pages fill memory, too, native code may be at
        # fault, and a worker may die of something else.
        if not self.careful:
            self._suspect = self._next
            return []
        number = self._next
        self._lost += 1
        allowed_s = self._limits.cpu_s_per_page
        verdict = _verdict(cause, limits=self._limits, allowed_s=allowed_s)
        if self._lost > self._limits.max_lost_pages:
            raise verdict
        self._next += 1
        return [FlawedPage(number, "", f"Page {number} was left out: {verdict.message}")]


def _page(reply: dict[str, Any]) -> Page:
    if reply["flaw"] is None:
        return Page(reply["number"], reply["text"])
    return FlawedPage(reply["number"], reply["text"], reply["flaw"])


def _verdict(cause: LossCause, *, limits: SandboxLimits, allowed_s: float) -> DocumentError:
    if cause is LossCause.MEMORY:
        return ParserOutOfMemory(
            f"Reading the PDF takes more than {limits.memory_bytes // _MIB:,} MiB of memory, which "
            "is the limit. Save it with smaller pages, or split it."
        )
    if cause is LossCause.CRASHED:
        return DamagedDocument(
            "The PDF is damaged in a way that ends its reader. "
            "Open it in a viewer, save it again and upload the new file."
        )
    return ParserTimeout(
        f"Reading the PDF takes longer than {allowed_s:g} s, which is the limit. "
        "Save it with simpler pages, or split it."
    )
