"""A document's way: pages, chunks, vectors, store, index."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path

import numpy as np

from orchestrator.concurrency import Threads
from orchestrator.documents.chunking import Chunker
from orchestrator.documents.findings import FlawedPage
from orchestrator.documents.sandbox import ParserSandbox
from orchestrator.domain import Chunk, Document, DocumentId, DocumentStatus, Page, StoredChunk
from orchestrator.errors import DocumentNotFound, NoTextInDocument, OrchestratorError
from orchestrator.generation.tokenizer import TokenCounter
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.embedder import Embedder
from orchestrator.retrieval.embedder_model import embedding_text

EMBED_WINDOW = 64
"""Chunks handed to the embedder at once: enough to sort by length, few enough to show progress."""
PROGRESS_S = 0.5
MAX_ATTEMPTS = 3
MAX_FLAWS_TOLD = 3
RETRY_S = 2.0

logger = logging.getLogger(__name__)


class IngestionPipeline:
    """
    Makes uploaded documents searchable, a few at a time, in order of arrival.

    What is queued lives in the store: a restart takes unfinished documents up again.

    Args:
        files: Folder that holds `<document id>.pdf`.
        workers: Documents on their way at once; one is read while another is embedded.
        on_done: Called with the outcome code ("ok" or the error's), pages and seconds.
    """

    def __init__(
        self,
        *,
        files: Path,
        workers: int,
        sandbox: ParserSandbox,
        chunker: Chunker,
        embedder: Embedder,
        store: DocumentStore,
        indexes: CollectionIndexes,
        counter: TokenCounter,
        threads: Threads,
        on_done: Callable[[str, int, float], None] = lambda *_: None,
    ) -> None:
        self._files = files
        self._workers = workers
        self._sandbox = sandbox
        self._chunker = chunker
        self._embedder = embedder
        self._store = store
        self._indexes = indexes
        self._counter = counter
        self._threads = threads
        self._on_done = on_done
        self._queue: asyncio.Queue[DocumentId] = asyncio.Queue()
        self._jobs: dict[DocumentId, asyncio.Task[None]] = {}
        self._changes: dict[DocumentId, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def queued(self) -> int:
        """Documents that wait for a worker."""
        return self._queue.qsize()

    @property
    def running(self) -> int:
        """Documents on their way."""
        return len(self._jobs)

    async def start(self) -> None:
        """Take up what an earlier run left unfinished, then wait for more."""
        for document in await self._threads.run(self._store.unfinished):
            self.submit(document.id)
        self._tasks = [
            asyncio.create_task(self._work(), name=f"ingestion-{n}") for n in range(self._workers)
        ]

    async def aclose(self) -> None:
        """Stop; what is unfinished stays queued in the store."""
        tasks = [*self._tasks, *self._jobs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def submit(self, document_id: DocumentId) -> None:
        """Take a document that is in the store and on disk."""
        self._queue.put_nowait(document_id)

    def cancel(self, document_id: DocumentId) -> None:
        """Give up work on a document that is being deleted."""
        if job := self._jobs.get(document_id):
            job.cancel()
        self._notify(document_id)

    async def changed(self, document_id: DocumentId, at_most_s: float) -> None:
        """Return when something about the document has changed, or after `at_most_s`."""
        event = self._changes.setdefault(document_id, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await event.wait()

    async def _work(self) -> None:
        while True:
            document_id = await self._queue.get()
            job = asyncio.create_task(self._attempts(document_id), name=f"ingest-{document_id}")
            self._jobs[document_id] = job
            try:
                await asyncio.wait([job])
            finally:
                job.cancel()
                del self._jobs[document_id]
                self._notify(document_id)
            if self._queue.empty():
                await self._save_indexes()

    async def _save_indexes(self) -> None:
        """Snapshots while there is nothing else to do; one that fails is only a slower next start."""
        try:
            await self._threads.run(self._indexes.save)
        except Exception:
            logger.exception("the vector indexes could not be saved")

    async def _attempts(self, document_id: DocumentId) -> None:
        """Ingest, again if the means failed and not the document; record what came of it."""
        began_s = time.monotonic()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            code, pages = await self._attempt(document_id, last=attempt == MAX_ATTEMPTS)
            if code is not None:
                self._on_done(code, pages, time.monotonic() - began_s)
                return
            await asyncio.sleep(RETRY_S * attempt)

    async def _attempt(self, document_id: DocumentId, *, last: bool) -> tuple[str | None, int]:
        """The outcome code and the pages done, or None if it is worth another attempt."""
        try:
            return "ok", await self._ingest(document_id)
        except DocumentNotFound:
            return "deleted", 0
        except OrchestratorError as exc:
            if exc.retryable and not last:
                logger.warning("ingestion of %s: %s; trying again", document_id, exc.message)
                return None, 0
            await self._fail(document_id, exc.code, exc.message)
            return exc.code, 0
        except Exception:
            logger.exception("ingestion of %s failed by a bug", document_id)
            message = "Something of ours broke while reading this PDF. The log tells what."
            await self._fail(document_id, "internal_error", message)
            return "internal_error", 0

    async def _fail(self, document_id: DocumentId, code: str, message: str) -> None:
        try:
            await self._threads.run(self._store.fail, document_id, code=code, message=message)
        except OrchestratorError:
            logger.exception("the failure of %s could not be recorded", document_id)
        self._notify(document_id)

    async def _ingest(self, document_id: DocumentId) -> int:
        """The spine. Returns the number of pages made searchable."""
        document = await self._threads.run(self._store.get, document_id)
        if document is None:
            raise DocumentNotFound(f"{document_id} was deleted.")
        pages = await self._read(document)
        chunks = await self._threads.run(self._cut, pages)
        if not chunks:
            raise NoTextInDocument(
                f"None of the {len(pages)} pages holds text: they look scanned. "
                "Run OCR on the PDF (for example `ocrmypdf in.pdf out.pdf`) and upload the result."
            )
        await self._show(document_id, status=DocumentStatus.EMBEDDING)
        stored = await self._embed(document, chunks)
        ids = await self._threads.run(
            self._store.publish, document_id, pages=pages, chunks=stored, warning=_warning(pages)
        )
        vectors = np.stack([piece.embedding for piece in stored])
        await self._threads.run(self._indexes.add, document.collection, np.array(ids), vectors)
        return len(pages)

    async def _read(self, document: Document) -> list[Page]:
        await self._show(document.id, status=DocumentStatus.PARSING, pages_done=0)
        pages: list[Page] = []
        shown_s = time.monotonic()
        path = self._files / f"{document.id}.pdf"
        async with aclosing(self._sandbox.pages(path, total=document.pages)) as found:
            async for page in found:
                pages.append(page)
                if time.monotonic() - shown_s > PROGRESS_S:
                    shown_s = time.monotonic()
                    await self._show(document.id, pages_done=len(pages))
        await self._show(document.id, pages_done=len(pages))
        return pages

    async def _embed(self, document: Document, chunks: Sequence[Chunk]) -> list[StoredChunk]:
        stored: list[StoredChunk] = []
        for start in range(0, len(chunks), EMBED_WINDOW):
            window = chunks[start : start + EMBED_WINDOW]
            vectors = await self._embedder.embed_passages([
                embedding_text(document.filename, chunk) for chunk in window
            ])
            costs = await self._threads.run(self._prompt_costs, window)
            stored += [
                StoredChunk(chunk, vector, cost)
                for chunk, vector, cost in zip(window, vectors, costs, strict=True)
            ]
        return stored

    def _cut(self, pages: Sequence[Page]) -> list[Chunk]:
        return list(self._chunker.chunk(pages))

    def _prompt_costs(self, chunks: Sequence[Chunk]) -> list[int]:
        return [self._counter.count(chunk.text) for chunk in chunks]

    async def _show(
        self,
        document_id: DocumentId,
        *,
        status: DocumentStatus | None = None,
        pages_done: int | None = None,
    ) -> None:
        await self._threads.run(
            self._store.update, document_id, status=status, pages_done=pages_done
        )
        self._notify(document_id)

    def _notify(self, document_id: DocumentId) -> None:
        if event := self._changes.pop(document_id, None):
            event.set()


def _warning(pages: Sequence[Page]) -> str | None:
    """Which pages were not read whole, and why; told once the rest is searchable."""
    flaws = [page.reason for page in pages if isinstance(page, FlawedPage)]
    empty = [p.number for p in pages if not p.text.strip() and not isinstance(p, FlawedPage)]
    told = flaws[:MAX_FLAWS_TOLD]
    if len(flaws) > len(told):
        told.append(f"{len(flaws) - len(told)} more pages were not read whole.")
    if empty:
        told.append(f"No text on {_ranges(empty)} of {len(pages)} (scanned or blank).")
    return " ".join(told) or None


def _ranges(numbers: Sequence[int]) -> str:
    """1, 3, 4, 5 as "pages 1, 3-5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
    return f"{'page' if len(numbers) == 1 else 'pages'} {shown}"
