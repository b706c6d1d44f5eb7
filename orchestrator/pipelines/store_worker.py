"""
The work behind vector stores: files become documents, and what is marked goes.

One file after the other, and after a restart those that still wait. What is to go is marked in one
transaction and removed by whoever comes next: the request itself, or the worker after a crash.
"""

import asyncio
import logging
from contextlib import suppress

from orchestrator.access.ownership import stored_name
from orchestrator.concurrency import Threads, forever
from orchestrator.domain import DocumentId
from orchestrator.errors import (
    DocumentNotFound,
    Internal,
    OrchestratorError,
    Overloaded,
    StorageFull,
    StoreUnavailable,
    UploadNotFound,
)
from orchestrator.pipelines.library import Library
from orchestrator.pipelines.uploads import Uploads
from orchestrator.retrieval.registry_rows import Waiting
from orchestrator.retrieval.store_file_records import StoreFileRecords
from orchestrator.retrieval.vector_store_records import VectorStoreRecords

logger = logging.getLogger(__name__)

BUSY_S = 2.0
"""How long a file waits that nobody can take in now: too many are being read, or the disk is full."""
LATER = (Overloaded, StorageFull, StoreUnavailable)
COLLECTION_PAGE = 100


class StoreWorker:
    """
    One for a data folder.

    Args:
        uploads: Files.
        stores: Rows of stores.
        files: Which file is in which.
        library: Where they become documents.
    """

    def __init__(
        self,
        *,
        uploads: Uploads,
        stores: VectorStoreRecords,
        files: StoreFileRecords,
        library: Library,
        threads: Threads,
    ) -> None:
        self._uploads = uploads
        self._stores = stores
        self._files = files
        self._library = library
        self._threads = threads
        self._more = asyncio.Event()
        self._changing = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go on with what the last process left."""
        self._worker = asyncio.create_task(forever(self._work, what="vector stores"))

    async def aclose(self) -> None:
        """Stop; what is not done is done after the next start."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})

    def wake(self) -> None:
        """There is more to take in."""
        self._more.set()

    async def take_back(self, batch_id: str) -> None:
        """Cancel what is not done of a batch."""
        async with self._changing:
            for document_id in await self._threads.run(self._files.cancel_batch, batch_id):
                await self._delete(document_id)

    async def remove_leaving(self) -> None:
        """Remove what is marked: files out of stores, files, stores."""
        async with self._changing:
            for file in await self._threads.run(self._files.leaving):
                if not file.shared:
                    await self._delete(file.document_id)
                await self._threads.run(self._files.forget, file.seq)
            for store in await self._threads.run(self._stores.leaving):
                await self._empty(stored_name(store.owner, store.id))
                await self._threads.run(self._stores.forget, store.id)
            await self._uploads.remove_leaving()

    async def _empty(self, collection: str) -> None:
        while documents := await self._library.documents(
            collection=collection, limit=COLLECTION_PAGE, after=None
        ):
            for document in documents:
                await self._delete(document.id)

    async def _delete(self, document_id: DocumentId) -> None:
        with suppress(DocumentNotFound):  # the owner was faster, or a crash came in between
            await self._library.delete(document_id)

    async def _work(self) -> None:
        """Take in what waits and remove what is to go, then wait for more."""
        self._more.clear()
        await self.remove_leaving()
        while (waiting := await self._threads.run(self._files.waiting)) is not None:
            await self._take_in(waiting)
        await self._more.wait()

    async def _take_in(self, waiting: Waiting) -> None:
        """Make a document of a file, or note why not."""
        collection = stored_name(waiting.owner, waiting.store_id)
        try:
            # Nobody may remove the file, its place or its store meanwhile.
            async with self._changing:
                with self._uploads.path(waiting.file_id).open("rb") as source:
                    await self._library.accept(
                        source, filename=waiting.filename, collection=collection
                    )
                await self._threads.run(self._files.taken_in, waiting.seq)
        except FileNotFoundError:
            await self._refused(waiting, UploadNotFound("The file's bytes are gone from the disk."))
        except LATER:
            await asyncio.sleep(BUSY_S)
        except OrchestratorError as exc:
            await self._refused(waiting, exc)
        except Exception:
            # The next one must not wait for a bug that this one meets each time.
            logger.exception("%s could not be taken into %s", waiting.file_id, waiting.store_id)
            await self._refused(waiting, Internal("The file could not be taken in: see the log."))

    async def _refused(self, waiting: Waiting, error: OrchestratorError) -> None:
        await self._threads.run(
            self._files.refused, waiting.seq, code=error.code, message=error.message
        )
