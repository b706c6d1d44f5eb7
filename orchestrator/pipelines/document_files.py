"""
The PDFs on disk: received, kept under their document's id, removed.

A file is there before its row and gone after it. A crash in between leaves a file without a row,
which the next start removes.
"""

import asyncio
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from orchestrator.concurrency import Threads
from orchestrator.domain import DocumentId
from orchestrator.errors import (
    DocumentTooLarge,
    EmptyFile,
    OrchestratorError,
    StorageFull,
    StoreUnavailable,
)

COPY_BYTES = 1024 * 1024

logger = logging.getLogger(__name__)


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
class Received:
    """An upload that is on disk, and nobody's document yet."""

    path: Path
    sha256: str
    size_bytes: int


class DocumentFiles:
    """
    The files of one data folder. Methods block, and may be called from any thread.

    Args:
        folder: Holds `files/` (one PDF a document) and `incoming/` (uploads being received).
        limits: What one upload may take.

    Attributes:
        changing: Held while a file and its row come or go together: without it, removing a document
            could take the file of the same bytes that were just uploaded again.
    """

    def __init__(self, *, folder: Path, limits: UploadLimits) -> None:
        self._kept = folder / "files"
        self._incoming = folder / "incoming"
        self._limits = limits
        self.changing = asyncio.Lock()

    def open(self, *, exists: Callable[[DocumentId], bool]) -> None:
        """Make the folders, and remove what a crash left half done."""
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(parents=True)
        self._kept.mkdir(exist_ok=True)
        for path in self._kept.iterdir():
            if not exists(DocumentId(path.stem)):
                path.unlink(missing_ok=True)

    def path(self, document_id: DocumentId) -> Path:
        """Where the PDF of a document is."""
        return self._kept / f"{document_id}.pdf"

    def receive(self, source: BinaryIO) -> Received:
        """
        Copy an upload to disk, synced.

        Raises:
            EmptyFile: If there is nothing in it.
            DocumentTooLarge: If it is larger than allowed.
            StorageFull: If the disk has no room for it.
            StoreUnavailable: If the folder cannot be written.
        """
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
            _remove(path)
            raise _disk_error(exc) from exc
        except OrchestratorError:
            _remove(path)
            raise
        if size == 0:
            _remove(path)
            raise EmptyFile("The file is empty (0 bytes). Upload the PDF again.")
        return Received(path, digest.hexdigest(), size)

    def keep(self, received: Received, document_id: DocumentId) -> None:
        """
        Make a received file the document's, for good; one that it has already stays.

        Raises:
            StorageFull: If the disk has no room for the name.
            StoreUnavailable: If the folder cannot be written.
        """
        try:
            target = self.path(document_id)
            if not target.exists():
                received.path.replace(target)
            _sync_folder(self._kept)
        except OSError as exc:
            raise _disk_error(exc) from exc

    def discard(self, received: Received) -> None:
        """Remove what was received, unless it was kept."""
        _remove(received.path)

    def remove(self, document_id: DocumentId) -> None:
        """Remove the file of a document whose row is gone."""
        _remove(self.path(document_id))

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


@asynccontextmanager
async def receiving(
    files: DocumentFiles, threads: Threads, source: BinaryIO
) -> AsyncIterator[Received]:
    """An upload on disk until the block ends; what was not kept then is removed. See `receive`."""
    received = await threads.run(files.receive, source)
    try:
        yield received
    finally:
        await threads.run(files.discard, received)


def _disk_error(exc: OSError) -> OrchestratorError:
    if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
        return StorageFull(
            "The disk is full. Delete documents or other files on the disk of "
            "ORCHESTRATOR_DATA_DIR, then upload again."
        )
    return StoreUnavailable(f"The data folder cannot be written ({exc.strerror}).")


def _remove(path: Path) -> None:
    """Best effort: a file that stays is removed at the next start."""
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        logger.warning("%s could not be removed (%s)", path.name, exc.strerror)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
