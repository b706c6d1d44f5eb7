"""
Files as OpenAI's clients upload them: kept, listed, given back.

A file is a PDF that nobody has read yet; it is read for each vector store that it is put into.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from orchestrator.access.api_keys import Identity, KeyLimits
from orchestrator.concurrency import Threads
from orchestrator.documents.sandbox import ParserSandbox
from orchestrator.domain import DocumentId
from orchestrator.errors import QuotaExceeded, UploadNotFound
from orchestrator.pipelines.document_files import DocumentFiles, receiving
from orchestrator.pipelines.library import clean_filename
from orchestrator.pipelines.owner_limits import require_within
from orchestrator.retrieval.holdings import Holdings
from orchestrator.retrieval.registry_rows import Listing, UploadedFile
from orchestrator.retrieval.upload_records import UploadRecords

ID_BYTES = 12


class Uploads:
    """
    The uploaded files of one data folder.

    Args:
        files: Their bytes.
        records: Their rows.
        holdings: What else their owners have.
        sandbox: Takes the first look.
        max_files: How many an owner may have.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        *,
        files: DocumentFiles,
        records: UploadRecords,
        holdings: Holdings,
        sandbox: ParserSandbox,
        threads: Threads,
        max_files: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._records = records
        self._holdings = holdings
        self._sandbox = sandbox
        self._threads = threads
        self._max_files = max_files
        self._clock = clock

    def open(self) -> None:
        """Put right what a crash left half done."""
        self._files.open(exists=self._records.exists)

    async def accept(
        self, source: BinaryIO, *, filename: str, purpose: str, identity: Identity
    ) -> UploadedFile:
        """
        Take one file in; it is on disk when this returns.

        Args:
            source: Its bytes.
            filename: What it is called; a label.
            purpose: What it is for.
            identity: Whose it will be.

        Raises:
            DocumentError: If it is no PDF that can be read.
            QuotaExceeded: If its owner has as much as they may.
            StorageFull: If the disk has no room for it.
        """
        async with receiving(self._files, self._threads, source) as received:
            await self._sandbox.inspect(received.path)
            upload = UploadedFile(
                id=f"file-{secrets.token_hex(ID_BYTES)}",
                owner=identity.owner,
                filename=clean_filename(filename),
                purpose=purpose,
                sha256=received.sha256,
                size_bytes=received.size_bytes,
                created_at=self._clock(),
            )
            async with self._files.changing:
                await self._threads.run(self._require_quota, upload, identity.limits)
                await self._threads.run(self._files.keep, received, DocumentId(upload.id))
                await self._threads.run(self._records.add, upload)
        return upload

    async def get(self, identity: Identity, file_id: str) -> UploadedFile:
        """
        One file.

        Raises:
            UploadNotFound: If there is none, or it is somebody else's.
        """
        found = await self._threads.run(self._records.get, identity.owner, file_id)
        if found is None:
            raise no_such_file(file_id)
        return found

    async def named(self, identity: Identity, file_ids: Sequence[str]) -> dict[str, UploadedFile]:
        """
        Several files, by their ids.

        Raises:
            UploadNotFound: If one of them is not there, or is somebody else's.
        """
        found = await self._threads.run(self._records.by_id, identity.owner, file_ids)
        for file_id in file_ids:
            if file_id not in found:
                raise no_such_file(file_id)
        return found

    async def listed(
        self, identity: Identity, listing: Listing, *, purpose: str | None
    ) -> list[UploadedFile]:
        """Files of one owner."""
        return await self._threads.run(
            self._records.listed, identity.owner, listing, purpose=purpose
        )

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are."""
        return self._files.path(DocumentId(file_id))

    async def remove_soon(self, file_id: str) -> None:
        """Let nobody see a file any more; what is left of it goes with `remove_leaving`."""
        await self._threads.run(self._records.remove_soon, file_id)

    async def remove_leaving(self) -> None:
        """Remove the files that are to go and are in no store any more."""
        for file_id in await self._threads.run(self._records.leaving):
            async with self._files.changing:
                await self._threads.run(self._records.forget, file_id)
                await self._threads.run(self._files.remove, DocumentId(file_id))

    def _require_quota(self, new: UploadedFile, limits: KeyLimits) -> None:
        num, _ = self._records.usage(new.owner)
        most = self._max_files if limits.documents is None else limits.documents
        if num >= most:
            raise QuotaExceeded(
                f"{num} files are yours, of {most} that may be. Delete some (DELETE "
                "/v1/files/{id}), or ask whoever runs this service for more.",
                should_retry=False,
            )
        require_within(limits, self._holdings, new.owner, documents=0, size_bytes=new.size_bytes)


def no_such_file(file_id: str) -> UploadNotFound:
    """What is told of an id that leads nowhere."""
    return UploadNotFound(
        f"There is no file {file_id!r}: it was deleted, or never uploaded. GET /v1/files lists those "
        "that exist.",
        param="file_id",
    )
