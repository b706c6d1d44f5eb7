"""
A document's way: pages, chunks, vectors, store, index.

What is to be done lives in the store. A worker leases a document, keeps what it has done of it every
half second, and publishes it in one transaction: whoever takes up a document that was interrupted,
by a crash or by anything else, goes on from there.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, nullcontext, suppress
from functools import partial
from typing import Protocol
from uuid import uuid4

import numpy as np

from orchestrator.concurrency import Threads, forever
from orchestrator.documents.chunking import Chunker
from orchestrator.documents.sandbox import ParserSandbox
from orchestrator.domain import (
    Chunk,
    Document,
    DocumentId,
    DocumentStatus,
    Embeddings,
    Page,
    StagedChunk,
    StoredChunk,
)
from orchestrator.errors import (
    DocumentError,
    DocumentNotFound,
    IngestionInterrupted,
    OrchestratorError,
)
from orchestrator.generation.tokenizer import TokenCounter
from orchestrator.pipelines.document_files import DocumentFiles
from orchestrator.pipelines.document_warnings import no_text, warning
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.embedder_model import embedding_text
from orchestrator.retrieval.job_store import Job, JobStore

EMBED_WINDOW = 64
"""Chunks handed to the embedder at once: enough to sort by length, few enough to show progress."""
STAGE_S = 0.5
"""Work that an interruption may cost, in seconds: this often it is kept."""
FIRST_RETRY_S, LAST_RETRY_S = 2.0, 60.0
"""Pause after the first failure of the means, doubled with each one, in seconds; and the longest."""

logger = logging.getLogger(__name__)


class PassageEmbedder(Protocol):
    """What turns chunks into vectors."""

    async def embed_passages(self, texts: Sequence[str]) -> Embeddings:
        """
        One row per text, in the order of the texts: (n, d) float32 of unit length.

        Raises:
            EmbedderUnavailable: If there are none to be had.
        """
        ...


class IngestionPipeline:
    """
    Makes uploaded documents searchable, a few at a time, in order of arrival.

    Args:
        files: The PDFs.
        workers: Documents on their way at once; one is read while another is embedded.
        max_failures: How often the means may fail a document that does not come further.
        max_interruptions: How often nobody may say how the work on such a document ended.
        lease_s: Seconds after which somebody else may take up what a silent worker had.
        look_s: Seconds between two looks for work that nobody told us of.
        on_done: Called with the outcome code ("ok" or the error's), pages and seconds.

    Attributes:
        finished: Documents that have left, one way or the other, since the start.
    """

    def __init__(
        self,
        *,
        files: DocumentFiles,
        workers: int,
        sandbox: ParserSandbox,
        chunker: Chunker,
        embedder: PassageEmbedder,
        store: DocumentStore,
        jobs: JobStore,
        indexes: CollectionIndexes,
        counter: TokenCounter,
        threads: Threads,
        max_failures: int = 8,
        max_interruptions: int = 5,
        lease_s: float = 60.0,
        look_s: float = 1.0,
        on_done: Callable[[str, int, float], None] = lambda *_: None,
    ) -> None:
        self._files = files
        self._workers = workers
        self._sandbox = sandbox
        self._chunker = chunker
        self._embedder = embedder
        self._store = store
        self._jobs = jobs
        self._indexes = indexes
        self._counter = counter
        self._threads = threads
        self._max_failures = max_failures
        self._max_interruptions = max_interruptions
        self._lease_s = lease_s
        self._look_s = look_s
        self._on_done = on_done
        self._owner = uuid4().hex
        self._arrived = asyncio.Event()
        self._waiting = 0
        self.finished = 0
        self._running: dict[DocumentId, asyncio.Task[None]] = {}
        self._changes: dict[DocumentId, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def queued(self) -> int:
        """Documents that wait for a worker, as far as is known."""
        return self._waiting

    @property
    def running(self) -> int:
        """Documents on their way."""
        return len(self._running)

    async def start(self) -> None:
        """Take up what an earlier run left unfinished, then wait for more."""
        steps = [*(self._work for _ in range(self._workers)), self._renew]
        self._tasks = [
            asyncio.create_task(forever(step, what=name), name=name)
            for name, step in ((f"ingestion-{n}", step) for n, step in enumerate(steps))
        ]

    async def aclose(self) -> None:
        """Stop; what is unfinished stays in the store, free for whoever comes next."""
        tasks = [*self._tasks, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._threads.run(self._jobs.release, self._owner)
        except OrchestratorError:
            logger.exception("the leases could not be given back: the next start takes them")

    def submit(self) -> None:
        """Look for work now: a document has come, or has to be done again."""
        self._waiting += 1
        self._arrived.set()

    def cancel(self, document_id: DocumentId) -> None:
        """Give up work on a document that is being deleted."""
        if job := self._running.get(document_id):
            job.cancel()
        self._notify(document_id)

    async def changed(self, document_id: DocumentId, at_most_s: float) -> None:
        """Return when something about the document has changed, or after `at_most_s`."""
        event = self._changes.setdefault(document_id, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await event.wait()

    async def _work(self) -> None:
        """One document."""
        job = await self._next()
        task = asyncio.create_task(self._attempt(job), name=f"ingest-{job.document_id}")
        self._running[job.document_id] = task
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            del self._running[job.document_id]
            self._notify(job.document_id)

    async def _next(self) -> Job:
        """A document that is ours to work on, as soon as there is one."""
        while True:
            self._arrived.clear()
            try:
                job = await self._threads.run(self._claim, list(self._running))
            except OrchestratorError as exc:
                logger.warning("no work can be taken up: %s", exc.message)
                job = None
            if job is not None:
                self._arrived.set()  # there may be more, for the next worker
                return job
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._arrived.wait()

    def _claim(self, running: Sequence[DocumentId]) -> Job | None:
        job = self._jobs.claim(self._owner, lease_s=self._lease_s, but_not=running)
        self._waiting, _ = self._jobs.counts()
        return job

    async def _renew(self) -> None:
        """Say in time that we still work; give up what is no longer ours."""
        await asyncio.sleep(self._lease_s / 3)
        if not self._running:
            return
        try:
            ours = await self._threads.run(
                self._jobs.renew, self._owner, list(self._running), lease_s=self._lease_s
            )
        except OrchestratorError as exc:
            logger.warning("the leases could not be renewed: %s", exc.message)
            return
        for document_id, task in self._running.items():
            if document_id not in ours and not task.done():
                logger.warning("%s is somebody else's now, or gone", document_id)
                task.cancel()

    async def _attempt(self, job: Job) -> None:
        """Ingest, and record what came of it: done, to be tried again, or given up."""
        began_s = time.monotonic()
        pages = 0
        try:
            self._require_harmless(job)
            pages = await self._ingest(job.document_id)
            code = "ok"
        except DocumentNotFound:
            code = "deleted"
        except OrchestratorError as exc:
            code = exc.code
            of_means = exc.retryable and not isinstance(exc, DocumentError)
            if of_means and job.failures < self._max_failures:
                await self._put_back(job, exc)
                return
            await self._fail(job.document_id, exc.code, exc.message)
        except Exception:
            logger.exception("ingestion of %s failed by a bug", job.document_id)
            code = "internal_error"
            message = "Something of ours broke while reading this PDF. The log tells what."
            await self._fail(job.document_id, code, message)
        self.finished += 1
        self._on_done(code, pages, time.monotonic() - began_s)

    def _require_harmless(self, job: Job) -> None:
        if job.interruptions >= self._max_interruptions:
            raise IngestionInterrupted(
                f"The work on this PDF was cut off {job.interruptions} times in a row without coming "
                "any further: each time the process ended, so this file may be what ends it. Look "
                f"at the log, then try again: POST /documents/{job.document_id}/retry."
            )

    async def _put_back(self, job: Job, exc: OrchestratorError) -> None:
        delay_s = min(FIRST_RETRY_S * 2**job.failures, LAST_RETRY_S)
        logger.warning("ingestion of %s: %s; again in %g s", job.document_id, exc.message, delay_s)
        await self._record(partial(self._jobs.put_back, job.document_id, delay_s=delay_s))

    async def _fail(self, document_id: DocumentId, code: str, message: str) -> None:
        await self._record(partial(self._jobs.fail, document_id, code=code, message=message))
        self._notify(document_id)

    async def _record(self, note: Callable[[], None]) -> None:
        """
        Write how an attempt ended, however long the disk does not take it.

        A lease that ran out meanwhile would count as an interruption, and a full disk is none.
        """
        delay_s = FIRST_RETRY_S
        while True:
            try:
                await self._threads.run(note)
            except DocumentNotFound:
                return
            except OrchestratorError as exc:
                logger.warning("how an ingestion ended cannot be written: %s", exc.message)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LAST_RETRY_S)
            else:
                return

    async def _ingest(self, document_id: DocumentId) -> int:
        """The spine. Returns the number of pages made searchable."""
        document = await self._threads.run(self._store.get, document_id)
        if document is None:
            raise DocumentNotFound(f"{document_id} was deleted.")
        pages = await self._read(document)
        chunks = await self._threads.run(self._cut, pages)
        if not chunks:
            raise no_text(len(pages), looked_at_pictures=self._sandbox.reads_pictures)
        await self._show(document_id, status=DocumentStatus.EMBEDDING)
        stored = await self._embed(document, chunks)
        publish = partial(
            self._store.publish, document_id, pages=pages, chunks=stored, warning=warning(pages)
        )
        vectors = np.stack([piece.embedding for piece in stored])
        async with self._files.changing if document.replaces else nullcontext():
            change = await self._threads.run(
                self._indexes.change, document.collection, publish, embeddings=vectors
            )
            if change is not None and change.replaced is not None:
                await self._threads.run(self._files.remove, change.replaced)
        return len(pages)

    async def _read(self, document: Document) -> list[Page]:
        """All pages: those that an earlier attempt has kept, and the rest."""
        await self._show(document.id, status=DocumentStatus.PARSING)
        pages = await self._threads.run(self._jobs.staged_pages, document.id)
        kept = len(pages)
        path = self._files.path(document.id)
        found = self._sandbox.pages(path, total=document.pages, first=kept + 1)
        kept_s = time.monotonic()
        async with aclosing(found):
            async for page in found:
                pages.append(page)
                if time.monotonic() - kept_s > STAGE_S:
                    await self._threads.run(self._jobs.stage_pages, document.id, pages[kept:])
                    self._notify(document.id)
                    kept, kept_s = len(pages), time.monotonic()
        await self._show(document.id, pages_done=len(pages))
        return pages

    async def _embed(self, document: Document, chunks: Sequence[Chunk]) -> list[StoredChunk]:
        """All chunks with their vectors: those that an earlier attempt has kept, and the rest."""
        texts = [embedding_text(document.filename, chunk) for chunk in chunks]
        done = _still_right(await self._threads.run(self._jobs.staged_chunks, document.id), texts)
        # The longest first, over the whole document: a batch is padded to its longest text, and what
        # is kept is found by its ordinal.
        todo = sorted(
            (chunk for chunk in chunks if chunk.ordinal not in done),
            key=lambda chunk: len(texts[chunk.ordinal]),
            reverse=True,
        )
        unkept: list[StagedChunk] = []
        kept_s = time.monotonic()
        for start in range(0, len(todo), EMBED_WINDOW):
            pieces = await self._embedded(todo[start : start + EMBED_WINDOW], texts)
            done |= {piece.ordinal: piece for piece in pieces}
            unkept += pieces
            if time.monotonic() - kept_s > STAGE_S and start + EMBED_WINDOW < len(todo):
                await self._threads.run(self._jobs.stage_chunks, document.id, unkept)
                unkept, kept_s = [], time.monotonic()
        return [
            StoredChunk(chunk, done[chunk.ordinal].embedding, done[chunk.ordinal].prompt_tokens)
            for chunk in chunks
        ]

    async def _embedded(self, window: Sequence[Chunk], texts: Sequence[str]) -> list[StagedChunk]:
        wanted = [texts[chunk.ordinal] for chunk in window]
        vectors = await self._embedder.embed_passages(wanted)
        costs = await self._threads.run(self._prompt_costs, window)
        return [
            StagedChunk(chunk.ordinal, _sha256(text), vector, cost)
            for chunk, text, vector, cost in zip(window, wanted, vectors, costs, strict=True)
        ]

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
        await self._threads.run(self._jobs.show, document_id, status=status, pages_done=pages_done)
        self._notify(document_id)

    def _notify(self, document_id: DocumentId) -> None:
        if event := self._changes.pop(document_id, None):
            event.set()


def _still_right(staged: dict[int, StagedChunk], texts: Sequence[str]) -> dict[int, StagedChunk]:
    """The chunks that were embedded from the texts that they have now."""
    return {
        ordinal: piece
        for ordinal, piece in staged.items()
        if ordinal < len(texts) and piece.text_sha256 == _sha256(texts[ordinal])
    }


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
