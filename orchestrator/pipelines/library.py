"""
Where uploads arrive and documents are given back: files on disk, rows in the store.

An upload is acknowledged only when its bytes and its row are on disk: first the file, then the row.
A crash between the two leaves a file without a row, which the next start removes.
"""

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np

from orchestrator.concurrency import Threads
from orchestrator.documents.sandbox import ParserSandbox
from orchestrator.domain import ChunkId, Document, DocumentId, DocumentStatus
from orchestrator.errors import (
    CollectionNotFound,
    DocumentNotFound,
    DocumentNotReady,
    DocumentTooLarge,
    EmptyFile,
    Internal,
    OrchestratorError,
    StorageFull,
    StoreUnavailable,
    leaves,
)
from orchestrator.pipelines.ingestion import IngestionPipeline
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore

COPY_BYTES = 1024 * 1024
MAX_FILENAME_CHARS = 200
POLL_S = 0.2
TERMINAL = {DocumentStatus.READY, DocumentStatus.FAILED}
DEFAULT_FILENAME = "document.pdf"


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """
    What an upload may take.

    Attributes:
        max_bytes: Of one file.
        min_free_bytes: Disk that an upload must leave free.
    """

    max_bytes: int
    min_free_bytes: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """An upload's outcome. `duplicate`: the same bytes were in the collection already."""

    document: Document
    duplicate: bool


class Library:
    """
    The documents of one data folder.

    Args:
        folder: Holds `files/` (one PDF a document) and `incoming/` (uploads being received).
    """

    def __init__(
        self,
        *,
        folder: Path,
        limits: UploadLimits,
        store: DocumentStore,
        sandbox: ParserSandbox,
        ingestion: IngestionPipeline,
        indexes: CollectionIndexes,
        threads: Threads,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = folder / "files"
        self._incoming = folder / "incoming"
        self._limits = limits
        self._store = store
        self._sandbox = sandbox
        self._ingestion = ingestion
        self._indexes = indexes
        self._threads = threads
        self._clock = clock
        # A file and its row come and go together: without this, deleting a document could take the
        # file of the same bytes that were just uploaded again.
        self._changing = asyncio.Lock()

    def open(self) -> None:
        """Make the folders, and remove what a crash left half done."""
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(parents=True)
        self._files.mkdir(exist_ok=True)
        for path in self._files.iterdir():
            if self._store.get(DocumentId(path.stem)) is None:
                path.unlink(missing_ok=True)

    async def accept(self, source: BinaryIO, *, filename: str, collection: str) -> Accepted:
        """
        Take one file in; it is on disk when this returns.

        Raises:
            DocumentError: If it is no PDF that can be read.
            StorageFull: If the disk has no room for it.
        """
        path, sha256, size = await self._threads.run(self._receive, source)
        try:
            return await self._take(path, sha256, size, filename=filename, collection=collection)
        finally:
            await self._threads.run(_discard, path)

    async def get(self, document_id: DocumentId) -> Document:
        """
        The document as it is now.

        Raises:
            DocumentNotFound: If there is none.
        """
        document = await self._threads.run(self._store.get, document_id)
        if document is None:
            raise DocumentNotFound(
                f"There is no document {document_id!r}. GET /documents lists those that exist.",
                param="document_id",
            )
        return document

    async def documents(
        self, *, collection: str | None, limit: int, after: DocumentId | None
    ) -> list[Document]:
        """Up to `limit` documents, newest first, those before `after`."""
        return await self._threads.run(
            self._store.documents, collection=collection, limit=limit, after=after
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
        async with self._changing:
            ids = await self._threads.run(self._store.delete, document_id)
            if ids is not None:
                await self._threads.run(self._forget, document, ids)
                return
        await self.get(document_id)

    def _forget(self, document: Document, ids: Sequence[ChunkId]) -> None:
        """Vectors and file of a document whose row is gone."""
        self._indexes.remove(document.collection, np.array(ids, dtype=np.int64))
        _discard(self.file(document.id))

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
                raise DocumentNotFound(
                    f"The collection {collection!r} has no document {document_id!r}. "
                    "GET /documents lists those that exist.",
                    param="document_ids",
                )
            if document.status is not DocumentStatus.READY:
                raise _not_ready(document)
        if document_ids or self._store.has_ready(collection):
            return
        waiting = self._store.documents(collection=collection, limit=1)
        if waiting:
            raise _not_ready(waiting[0])
        raise CollectionNotFound(
            f"The collection {collection!r} holds no documents. Add one with POST /upload.",
            param="collection",
        )

    def file(self, document_id: DocumentId) -> Path:
        """Where the PDF of a document is."""
        return self._files / f"{document_id}.pdf"

    async def _take(
        self, path: Path, sha256: str, size: int, *, filename: str, collection: str
    ) -> Accepted:
        """The received file as a document: the one that is there already, or a new one."""
        document_id = _document_id(collection, sha256)
        known = await self._threads.run(self._store.get, document_id)
        if known is not None:
            return Accepted(await self._again(known), duplicate=True)
        info = await self._sandbox.inspect(path)
        new = Document(
            id=document_id,
            collection=collection,
            filename=clean_filename(filename),
            sha256=sha256,
            size_bytes=size,
            status=DocumentStatus.QUEUED,
            created_at=self._clock(),
            pages=info.pages,
        )
        async with self._changing:
            document, created = await self._threads.run(self._keep, path, new)
        if created:
            self._ingestion.submit(document.id)
        return Accepted(document, duplicate=not created)

    async def _again(self, known: Document) -> Document:
        """The same bytes came once more: a document that failed for want of means gets its chance."""
        transient = {kind.code for kind in leaves() if kind.retryable} | {Internal.code}
        if known.status is DocumentStatus.FAILED and known.error_code in transient:
            await self._threads.run(self._store.requeue, known.id)
            self._ingestion.submit(known.id)
            return await self.get(known.id)
        return known

    def _receive(self, source: BinaryIO) -> tuple[Path, str, int]:
        """Copy an upload to `incoming/`, synced: its path, SHA-256 and size."""
        path = self._incoming / uuid4().hex
        digest = hashlib.sha256()
        size = 0
        try:
            with path.open("wb") as target:
                while block := source.read(COPY_BYTES):
                    size += len(block)
                    self._check_room(size)
                    digest.update(block)
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
        except OSError as exc:
            _discard(path)
            raise self._disk_error(exc) from exc
        except OrchestratorError:
            _discard(path)
            raise
        if size == 0:
            _discard(path)
            raise EmptyFile("The file is empty (0 bytes). Upload the PDF again.")
        return path, digest.hexdigest(), size

    def _check_room(self, size: int) -> None:
        if size > self._limits.max_bytes:
            raise DocumentTooLarge(
                f"The file is larger than {self._limits.max_bytes} bytes, the limit for one PDF. "
                "Split it, or raise ORCHESTRATOR_MAX_UPLOAD_BYTES."
            )
        if shutil.disk_usage(self._incoming).free < self._limits.min_free_bytes:
            raise StorageFull(
                f"Less than {self._limits.min_free_bytes} bytes of disk are left. Delete documents "
                "or other files on the disk of ORCHESTRATOR_DATA_DIR, then upload again."
            )

    def _keep(self, path: Path, document: Document) -> tuple[Document, bool]:
        """Move the received file to its place and write its row: from here on it is acknowledged."""
        try:
            # A copy of the name, not a move: a second upload of the same bytes may be here too.
            target = self.file(document.id)
            if not target.exists():
                path.replace(target)
            _sync_folder(self._files)
        except OSError as exc:
            raise self._disk_error(exc) from exc
        return self._store.add(document)

    def _disk_error(self, exc: OSError) -> OrchestratorError:
        if exc.errno in {28, 122}:  # ENOSPC, EDQUOT
            return StorageFull(
                "The disk is full. Delete documents or other files on the disk of "
                "ORCHESTRATOR_DATA_DIR, then upload again."
            )
        return StoreUnavailable(f"The data folder cannot be written ({exc.strerror}).")


def clean_filename(name: str) -> str:
    """A name to show: the last part of any path, printable, never empty, bounded."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(c if c.isprintable() else "_" for c in last).strip(" .")
    if len(shown) > MAX_FILENAME_CHARS:
        stem, dot, suffix = shown.rpartition(".")
        shown = f"{stem[: MAX_FILENAME_CHARS - len(suffix) - 1]}{dot}{suffix}"[-MAX_FILENAME_CHARS:]
    return shown or DEFAULT_FILENAME


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


def _document_id(collection: str, sha256: str) -> DocumentId:
    """The same bytes in the same collection have the same id; it tells nothing of other ones."""
    digest = hashlib.sha256(f"{collection}\0{sha256}".encode()).hexdigest()
    return DocumentId(f"doc-{digest[:24]}")


def _discard(path: Path) -> None:
    path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
