"""
Where uploads arrive and documents are given back: files on disk, rows in the store.

An upload is acknowledged only when its bytes and its row are on disk: first the file, then the row.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from orchestrator.access.api_keys import KeyLimits
from orchestrator.access.ownership import owner_of, shown_name
from orchestrator.concurrency import Threads
from orchestrator.documents.sandbox import ParserSandbox
from orchestrator.domain import Box, Document, DocumentId, DocumentStatus
from orchestrator.errors import (
    CollectionFull,
    CollectionNotFound,
    DocumentNotFound,
    DocumentNotReady,
    IngestionQueueFull,
    Internal,
    InvalidParameter,
    leaves,
)
from orchestrator.pipelines.document_files import DocumentFiles, Received, receiving
from orchestrator.pipelines.ingestion import IngestionPipeline
from orchestrator.pipelines.owner_limits import require_within
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.holdings import Holdings
from orchestrator.retrieval.job_store import JobStore

MAX_FILENAME_CHARS = 200
POLL_S = 0.2
TERMINAL = {DocumentStatus.READY, DocumentStatus.FAILED}
DEFAULT_FILENAME = "document.pdf"


@dataclass(frozen=True, slots=True)
class LibraryLimits:
    """
    What a library may hold.

    Attributes:
        collection_documents: Documents of a collection.
        collection_bytes: Bytes of their files.
        queued_documents: Documents that wait to be read.
    """

    collection_documents: int = 100_000
    collection_bytes: int = 100 * 1024**3
    queued_documents: int = 5000


@dataclass(frozen=True, slots=True)
class Accepted:
    """An upload's outcome. `duplicate`: the same bytes were in the collection already."""

    document: Document
    duplicate: bool


class Library:
    """
    The documents of one data folder.

    Args:
        files: Their PDFs.
        store: Their rows.
        jobs: Those that are on their way.
        ingestion: Who works on them.
        limits: What it may hold.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        *,
        files: DocumentFiles,
        store: DocumentStore,
        jobs: JobStore,
        sandbox: ParserSandbox,
        ingestion: IngestionPipeline,
        indexes: CollectionIndexes,
        threads: Threads,
        limits: LibraryLimits = LibraryLimits(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._store = store
        self._holdings = Holdings(store.database)
        self._jobs = jobs
        self._sandbox = sandbox
        self._ingestion = ingestion
        self._indexes = indexes
        self._threads = threads
        self._limits = limits
        self._clock = clock
        self._arriving: dict[DocumentId, _Arrival] = {}

    def open(self) -> None:
        """Put right what a crash left half done."""
        self._files.open(exists=lambda document_id: self._store.get(document_id) is not None)
        self._jobs.release_all()

    async def accept(
        self,
        source: BinaryIO,
        *,
        filename: str,
        collection: str,
        replaces: DocumentId | None = None,
        limits: KeyLimits = KeyLimits(),
    ) -> Accepted:
        """
        Take one file in; it is on disk when this returns.

        Args:
            source: Its bytes.
            filename: What it is called; a label.
            collection: Where it belongs.
            replaces: A document of the same collection that goes in the moment in which this one
                becomes searchable, and stays if this one fails.
            limits: What the collection's owner may have.

        Raises:
            DocumentError: If it is no PDF that can be read.
            QuotaExceeded: If its owner has as much as they may.
            DocumentNotFound: If the document to be replaced is not in the collection.
            StorageFull: If the disk has no room for it.
            CollectionFull: If the collection has not.
            IngestionQueueFull: If too many documents wait to be read.
        """
        self._require_a_place()
        if replaces is not None:
            await self._require_in(collection, replaces)
        async with receiving(self._files, self._threads, source) as received:
            document_id = document_id_of(collection, received.sha256)
            async with self._alone(document_id):
                known = await self._threads.run(self._store.get, document_id)
                if known is not None:
                    return Accepted(await self._again(known, replaces), duplicate=True)
                info = await self._sandbox.inspect(received.path)
                new = Document(
                    id=document_id,
                    collection=collection,
                    filename=clean_filename(filename),
                    sha256=received.sha256,
                    size_bytes=received.size_bytes,
                    status=DocumentStatus.QUEUED,
                    created_at=self._clock(),
                    pages=info.pages,
                    replaces=replaces,
                )
                return await self._add(received, new, limits)

    async def get(self, document_id: DocumentId) -> Document:
        """
        The document as it is now.

        Raises:
            DocumentNotFound: If there is none.
        """
        document = await self._threads.run(self._store.get, document_id)
        if document is None:
            raise no_such_document(document_id)
        return document

    async def documents(
        self,
        *,
        collection: str | None,
        limit: int,
        after: DocumentId | None,
        owner: str | None = None,
        status: DocumentStatus | None = None,
    ) -> list[Document]:
        """Up to `limit` documents, newest first, those before `after`."""
        return await self._threads.run(
            self._store.documents,
            collection=collection,
            owner=owner,
            status=status,
            limit=limit,
            after=after,
        )

    async def watch(self, document_id: DocumentId) -> AsyncGenerator[Document, None]:
        """The document now and after each change, until it is ready, failed or deleted."""
        last: Document | None = None
        while last is None or last.status not in TERMINAL:
            if last is not None:
                await self._ingestion.changed(document_id, POLL_S)
            document = await self.get(document_id)
            if document != last:
                yield document
            last = document

    async def wait(self, document_id: DocumentId) -> Document:
        """The document once it is ready or failed."""
        async for document in self.watch(document_id):
            last = document
        return last

    async def delete(self, document_id: DocumentId) -> None:
        """
        Remove a document: row, chunks, vectors and file.

        Raises:
            DocumentNotFound: If there is none.
        """
        document = await self.get(document_id)
        self._ingestion.cancel(document_id)
        async with self._files.changing:
            change = await self._threads.run(
                self._indexes.change,
                document.collection,
                partial(self._store.delete, document_id),
            )
            if change is not None:
                await self._threads.run(self._files.remove, document_id)
                return
        await self.get(document_id)

    async def retry(self, document_id: DocumentId) -> Document:
        """
        Start a document that failed over.

        Raises:
            DocumentNotFound: If there is none.
            InvalidParameter: If it has not failed.
        """
        document = await self.get(document_id)
        if not await self._threads.run(self._jobs.requeue, document_id):
            raise InvalidParameter(
                f"{document.filename} has not failed: it is {document.status.value}. "
                "Only a failed document can be tried again.",
                param="document_id",
            )
        self._ingestion.submit()
        return await self.get(document_id)

    async def require_searchable(
        self, collection: str, document_ids: Sequence[DocumentId] = ()
    ) -> None:
        """
        Do nothing if there is something to search.

        Raises:
            CollectionNotFound: If nothing was ever added to the collection.
            DocumentNotFound: If a named document is not in it.
            DocumentNotReady: If a named document, or every one, cannot be searched yet.
        """
        await self._threads.run(self.check_searchable, collection, document_ids)

    def check_searchable(self, collection: str, document_ids: Sequence[DocumentId] = ()) -> None:
        """`require_searchable` for those who are in a thread already; raises the same."""
        for document_id in document_ids:
            document = self._store.get(document_id)
            if document is None or document.collection != collection:
                raise _not_in(collection, document_id, param="document_ids")
            if document.status is not DocumentStatus.READY:
                raise _not_ready(document)
        if document_ids or self._store.has_ready(collection):
            return
        waiting = self._store.documents(collection=collection, limit=1)
        if waiting:
            raise _not_ready(waiting[0])
        raise CollectionNotFound(
            f"The collection {shown_name(collection)!r} holds no documents. Add one with POST /upload.",
            param="collection",
        )

    async def boxes(self, document_id: DocumentId, page: int, start: int, end: int) -> list[Box]:
        """
        Where a part of a page's text stands on it, one box a line; none if that is not sure.

        Args:
            document_id: A READY document.
            page: From 1.
            start: First character of the page's text.
            end: After the last one.

        Raises:
            DocumentNotFound: If there is none.
            DocumentNotReady: If it is not READY.
            InvalidParameter: If the page does not exist, or has no such characters.
        """
        document = await self.get(document_id)
        if document.status is not DocumentStatus.READY:
            raise _not_ready(document)
        text = await self._threads.run(self._store.page_text, document_id, page)
        if text is None or not 0 <= start < end <= len(text):
            raise InvalidParameter(
                f"Page {page} of {document.filename} has "
                f"{'no text' if text is None else f'{len(text)} characters'}; `start` and `end` come "
                "with each passage.",
                param="page" if text is None else "end",
            )
        path = self._files.path(document_id)
        return await self._sandbox.boxes(path, page, text[start:end], near=start / len(text))

    async def page_texts(self, document_id: DocumentId) -> list[str]:
        """The text of each page of a READY document."""
        return await self._threads.run(self._store.page_texts, document_id)

    def file(self, document_id: DocumentId) -> Path:
        """Where the PDF of a document is."""
        return self._files.path(document_id)

    async def _add(self, received: Received, new: Document, limits: KeyLimits) -> Accepted:
        """File and row of a new document: from here on it is acknowledged."""
        async with self._files.changing:
            await self._threads.run(self._require_room, new)
            await self._threads.run(self._require_quota, new, limits)
            await self._threads.run(self._files.keep, received, new.id)
            document, created = await self._threads.run(self._store.add, new)
        self._ingestion.submit()
        return Accepted(document, duplicate=not created)

    def _require_a_place(self) -> None:
        if self._ingestion.queued >= self._limits.queued_documents:
            raise IngestionQueueFull(
                f"As many documents wait to be read as may ({self._limits.queued_documents}). "
                "Upload this one again later.",
                retry_after_s=30.0,
            )

    def _require_room(self, new: Document) -> None:
        documents, size_bytes = self._store.usage(new.collection)
        if new.replaces is not None:
            documents -= 1
        limits = self._limits
        if documents >= limits.collection_documents:
            raise CollectionFull(
                f"The collection {shown_name(new.collection)!r} holds {documents} documents, which is the limit. "
                "Delete some (DELETE /documents/{id}), or raise "
                "ORCHESTRATOR_MAX_COLLECTION_DOCUMENTS."
            )
        if size_bytes + new.size_bytes > limits.collection_bytes:
            raise CollectionFull(
                f"The PDFs of the collection {shown_name(new.collection)!r} take {size_bytes} bytes; with this "
                f"one they would be above {limits.collection_bytes}, the limit. Delete some (DELETE "
                "/documents/{id}), or raise ORCHESTRATOR_MAX_COLLECTION_BYTES."
            )

    def _require_quota(self, new: Document, limits: KeyLimits) -> None:
        require_within(
            limits,
            self._holdings,
            owner_of(new.collection),
            documents=0 if new.replaces is not None else 1,
            size_bytes=new.size_bytes,
        )

    async def _again(self, known: Document, replaces: DocumentId | None) -> Document:
        """The same bytes came once more: a document that failed for want of means gets its chance."""
        if replaces not in {None, known.id, known.replaces}:
            raise InvalidParameter(
                f"This PDF is in the collection already, as {known.id}: delete {replaces} instead.",
                param="replaces",
            )
        transient = {kind.code for kind in leaves() if kind.retryable} | {Internal.code}
        if known.status is DocumentStatus.FAILED and known.error_code in transient:
            await self._threads.run(self._jobs.requeue, known.id)
            self._ingestion.submit()
            return await self.get(known.id)
        return known

    async def _require_in(self, collection: str, document_id: DocumentId) -> None:
        document = await self._threads.run(self._store.get, document_id)
        if document is None or document.collection != collection:
            raise _not_in(collection, document_id, param="replaces")

    @asynccontextmanager
    async def _alone(self, document_id: DocumentId) -> AsyncIterator[None]:
        """One at a time of those who bring the same bytes: the others find the work done."""
        arrival = self._arriving.setdefault(document_id, _Arrival())
        arrival.users += 1
        try:
            async with arrival.lock:
                yield
        finally:
            arrival.users -= 1
            if not arrival.users:
                del self._arriving[document_id]


@dataclass(slots=True)
class _Arrival:
    """Who brings the same bytes now."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


def clean_filename(name: str) -> str:
    """A name to show: the last part of any path, printable, never empty, bounded."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(c if c.isprintable() else "_" for c in last).strip(" .")
    if len(shown) > MAX_FILENAME_CHARS:
        stem, dot, suffix = shown.rpartition(".")
        shown = f"{stem[: MAX_FILENAME_CHARS - len(suffix) - 1]}{dot}{suffix}"[-MAX_FILENAME_CHARS:]
    return shown or DEFAULT_FILENAME


def no_such_document(document_id: DocumentId) -> DocumentNotFound:
    """What is told of an id that leads nowhere."""
    return DocumentNotFound(
        f"There is no document {document_id!r}. GET /documents lists those that exist.",
        param="document_id",
    )


def _not_in(collection: str, document_id: DocumentId, *, param: str) -> DocumentNotFound:
    return DocumentNotFound(
        f"The collection {shown_name(collection)!r} has no document {document_id!r}. "
        "GET /documents lists those that exist.",
        param=param,
    )


def _not_ready(document: Document) -> DocumentNotReady:
    if document.status is DocumentStatus.FAILED:
        return DocumentNotReady(
            f"{document.filename} could not be read: {document.error_message}", param="document_ids"
        )
    return DocumentNotReady(
        f"{document.filename} is still {document.status.value} "
        f"({document.pages_done} of {document.pages} pages read). Ask again in a moment.",
        param="document_ids",
        retry_after_s=2,
    )


def document_id_of(collection: str, sha256: str) -> DocumentId:
    """The same bytes in the same collection have the same id; it tells nothing of other ones."""
    digest = hashlib.sha256(f"{collection}\0{sha256}".encode()).hexdigest()
    return DocumentId(f"doc-{digest[:24]}")
