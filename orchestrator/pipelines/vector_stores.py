"""
Vector stores: files of an owner that are searched together.

A store is a collection of the same name. Putting a file into it writes a row, and taking something away
marks it; `StoreWorker` does the rest.
"""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.access.api_keys import Identity
from orchestrator.access.ownership import stored_name
from orchestrator.concurrency import Threads
from orchestrator.domain import DocumentId
from orchestrator.errors import (
    DocumentNotReady,
    FileBatchNotFound,
    QuotaExceeded,
    UploadNotFound,
    VectorStoreNotFound,
)
from orchestrator.pipelines.library import Library, document_id_of
from orchestrator.pipelines.owner_limits import require_within
from orchestrator.pipelines.store_worker import StoreWorker
from orchestrator.pipelines.uploads import ID_BYTES, Uploads
from orchestrator.retrieval.holdings import Holdings
from orchestrator.retrieval.registry_rows import (
    Attributes,
    FileBatch,
    FileCounts,
    Listing,
    NewStoreFile,
    StoreFile,
    StoreFileStatus,
    VectorStore,
)
from orchestrator.retrieval.store_file_records import StoreFileRecords
from orchestrator.retrieval.vector_store_records import VectorStoreRecords


@dataclass(frozen=True, slots=True)
class Searchable:
    """
    What a search in a store is to look at.

    Attributes:
        document_ids: The documents that a filter lets through; empty if there was none.
        nothing: Whether nothing there can match.
    """

    document_ids: tuple[DocumentId, ...] = ()
    nothing: bool = False


class VectorStores:
    """
    The stores of one data folder.

    Args:
        uploads: The files that are put into them.
        stores: Their rows.
        files: Which file is in which.
        worker: Takes files in, and removes what is marked.
        library: Where they are documents.
        holdings: What owners have.
        max_stores: How many an owner may have.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        *,
        uploads: Uploads,
        stores: VectorStoreRecords,
        files: StoreFileRecords,
        worker: StoreWorker,
        library: Library,
        holdings: Holdings,
        threads: Threads,
        max_stores: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._uploads = uploads
        self._stores = stores
        self._files = files
        self._worker = worker
        self._library = library
        self._holdings = holdings
        self._threads = threads
        self._max_stores = max_stores
        self._clock = clock

    # Stores.

    async def create(
        self,
        identity: Identity,
        *,
        name: str,
        metadata: dict[str, str],
        file_ids: Sequence[str] = (),
    ) -> VectorStore:
        """
        A new store, with its first files.

        Raises:
            UploadNotFound: If one of the files is not there.
            QuotaExceeded: If its owner has as much as they may.
        """
        now = self._clock()
        store = VectorStore(
            f"vs_{secrets.token_hex(ID_BYTES)}", identity.owner, name, metadata, now, now
        )
        new = await self._new_files(identity, store.id, dict.fromkeys(file_ids, Attributes()))
        await self._require_a_place(identity.owner)
        await self._threads.run(self._stores.add, store, new)
        self._worker.wake()
        return store

    async def get(self, identity: Identity, store_id: str) -> VectorStore:
        """
        One store.

        Raises:
            VectorStoreNotFound: If there is none, or it is somebody else's.
        """
        found = await self._threads.run(self._stores.get, identity.owner, store_id)
        if found is None:
            raise _no_such_store(store_id)
        return found

    async def listed(self, identity: Identity, listing: Listing) -> list[VectorStore]:
        """Stores of one owner."""
        return await self._threads.run(self._stores.listed, identity.owner, listing)

    async def change(
        self,
        identity: Identity,
        store_id: str,
        *,
        name: str | None,
        metadata: dict[str, str] | None,
    ) -> VectorStore:
        """Give a store another name or other metadata; see `get`."""
        await self.get(identity, store_id)
        await self._threads.run(
            self._stores.change, store_id, name=name, metadata=metadata, at=self._clock()
        )
        return await self.get(identity, store_id)

    async def counts(self, store_id: str, *, batch_id: str | None = None) -> FileCounts:
        """How far the files of a store, or of one of its batches, are."""
        return await self._threads.run(self._files.counts, store_id, batch_id=batch_id)

    async def delete(self, identity: Identity, store_id: str) -> None:
        """Remove a store with its documents; the files that were put into it stay. See `get`."""
        await self.get(identity, store_id)
        await self._threads.run(self._stores.remove_soon, store_id)
        await self._worker.remove_leaving()

    # Files in stores.

    async def add(self, identity: Identity, store_id: str, files: Mapping[str, Attributes]) -> None:
        """
        Put files into a store.

        Args:
            identity: Whose they are.
            store_id: Which store.
            files: What to write on each, by its id.

        Raises:
            VectorStoreNotFound: If there is no such store.
            UploadNotFound: If there is no such file.
            QuotaExceeded: If its owner has as much as they may.
        """
        await self._add(identity, store_id, files, batch=None)

    async def add_batch(
        self, identity: Identity, store_id: str, files: Mapping[str, Attributes]
    ) -> FileBatch:
        """The same as a batch, which can be followed and cancelled as one; raises the same."""
        batch_id = f"vsfb_{secrets.token_hex(ID_BYTES)}"
        batch = FileBatch(batch_id, store_id, self._clock(), cancelled=False)
        await self._add(identity, store_id, files, batch=batch)
        return batch

    async def _add(
        self,
        identity: Identity,
        store_id: str,
        files: Mapping[str, Attributes],
        *,
        batch: FileBatch | None,
    ) -> None:
        await self.get(identity, store_id)
        new = await self._new_files(identity, store_id, files)
        await self._threads.run(
            self._files.add,
            store_id,
            new,
            at=self._clock(),
            batch_id=None if batch is None else batch.id,
        )
        self._worker.wake()

    async def file(self, identity: Identity, store_id: str, file_id: str) -> StoreFile:
        """
        A file in a store.

        Raises:
            VectorStoreNotFound: If there is no such store.
            UploadNotFound: If the file is not in it.
        """
        await self.get(identity, store_id)
        found = await self._threads.run(self._files.get, store_id, file_id)
        if found is None:
            raise UploadNotFound(
                f"The vector store {store_id!r} has no file {file_id!r}. GET "
                f"/v1/vector_stores/{{id}}/files lists those that it has.",
                param="file_id",
            )
        return found

    async def files(
        self,
        identity: Identity,
        store_id: str,
        listing: Listing,
        *,
        status: StoreFileStatus | None = None,
        batch_id: str | None = None,
    ) -> list[StoreFile]:
        """Files of a store, or of one of its batches; see `get` and `batch`."""
        if batch_id is None:
            await self.get(identity, store_id)
        else:
            await self.batch(identity, store_id, batch_id)
        return await self._threads.run(
            self._files.listed, store_id, listing, status=status, batch_id=batch_id
        )

    async def set_attributes(
        self, identity: Identity, store_id: str, file_id: str, attributes: Attributes
    ) -> StoreFile:
        """Write other attributes on a file in a store; see `file`."""
        file = await self.file(identity, store_id, file_id)
        await self._threads.run(self._files.set_attributes, file, attributes)
        return await self.file(identity, store_id, file_id)

    async def remove(self, identity: Identity, store_id: str, file_id: str) -> None:
        """Take a file out of a store; the file itself stays. See `file`."""
        file = await self.file(identity, store_id, file_id)
        await self._threads.run(self._files.remove_soon, file)
        await self._worker.remove_leaving()

    async def delete_upload(self, identity: Identity, file_id: str) -> None:
        """Remove a file, also from all stores; see `Uploads.get`."""
        await self._uploads.get(identity, file_id)
        await self._uploads.remove_soon(file_id)
        await self._worker.remove_leaving()

    async def page_texts(self, identity: Identity, store_id: str, file_id: str) -> list[str]:
        """
        The text of a file in a store, page by page; see `file`.

        Raises:
            DocumentNotReady: If it is not completed.
        """
        file = await self.file(identity, store_id, file_id)
        if file.status != "completed":
            raise DocumentNotReady(
                f"{file.filename} is {file.status.replace('_', ' ')}: its text is there once it is "
                "completed.",
                retry_after_s=2 if file.status == "in_progress" else None,
            )
        return await self._library.page_texts(file.document_id)

    # Batches.

    async def batch(self, identity: Identity, store_id: str, batch_id: str) -> FileBatch:
        """
        One batch of a store.

        Raises:
            VectorStoreNotFound: If there is no such store.
            FileBatchNotFound: If it has no such batch.
        """
        await self.get(identity, store_id)
        found = await self._threads.run(self._files.batch, store_id, batch_id)
        if found is None:
            raise FileBatchNotFound(
                f"The vector store {store_id!r} has no batch {batch_id!r}: its id came when it was "
                "made.",
                param="batch_id",
            )
        return found

    async def cancel(self, identity: Identity, store_id: str, batch_id: str) -> FileBatch:
        """Take back what is not done of a batch; see `batch`."""
        await self.batch(identity, store_id, batch_id)
        await self._worker.take_back(batch_id)
        return await self.batch(identity, store_id, batch_id)

    # Searching.

    async def searchable(
        self,
        identity: Identity,
        store_id: str,
        matches: Callable[[Attributes], bool] | None = None,
    ) -> Searchable:
        """
        What a search in a store is to look at.

        Args:
            identity: Who asks.
            store_id: Which store.
            matches: Whether a file with these attributes is wanted; None wants all.

        Raises:
            VectorStoreNotFound: If there is no such store.
            DocumentNotReady: If files are being read, and none can be searched yet.
        """
        await self.get(identity, store_id)
        if not await self._threads.run(self._files.any_completed, store_id):
            counts = await self.counts(store_id)
            if counts.in_progress:
                raise DocumentNotReady(
                    f"The files of {store_id} are still being read ({counts.in_progress} of "
                    f"{counts.total}). Ask again in a moment.",
                    retry_after_s=2,
                )
            return Searchable(nothing=True)
        if matches is None:
            return Searchable()
        completed = await self._threads.run(self._files.completed, store_id)
        wanted = tuple(f.document_id for f in completed if matches(f.attributes))
        return Searchable(wanted, nothing=not wanted)

    async def by_document(
        self, store_id: str, document_ids: Sequence[DocumentId]
    ) -> dict[DocumentId, StoreFile]:
        """Which file of a store each of these documents is."""
        return await self._threads.run(self._files.by_document, store_id, document_ids)

    async def _new_files(
        self, identity: Identity, store_id: str, files: Mapping[str, Attributes]
    ) -> list[NewStoreFile]:
        """The rows to be, once it is sure that the owner may have them."""
        uploads = await self._uploads.named(identity, list(files))
        collection = stored_name(identity.owner, store_id)
        await self._threads.run(
            require_within,
            identity.limits,
            self._holdings,
            identity.owner,
            documents=len(uploads),
            size_bytes=sum(upload.size_bytes for upload in uploads.values()),
        )
        return [
            NewStoreFile(file_id, document_id_of(collection, uploads[file_id].sha256), attributes)
            for file_id, attributes in files.items()
        ]

    async def _require_a_place(self, owner: str) -> None:
        num = await self._threads.run(self._stores.count, owner)
        if num >= self._max_stores:
            raise QuotaExceeded(
                f"{num} vector stores are yours, of {self._max_stores} that may be. Delete some "
                "(DELETE /v1/vector_stores/{id}).",
                should_retry=False,
            )


def _no_such_store(store_id: str) -> VectorStoreNotFound:
    return VectorStoreNotFound(
        f"There is no vector store {store_id!r}: it was deleted, or never made. GET "
        "/v1/vector_stores lists those that exist.",
        param="vector_store_id",
    )
