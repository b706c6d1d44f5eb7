"""What OpenAI's clients put together, as values: uploaded files, vector stores, and files in them."""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from orchestrator.domain import DocumentId

Attributes: TypeAlias = dict[str, str | float | bool]
"""What a client wrote on a file in a store; filters look at it."""

StoreFileStatus: TypeAlias = Literal["in_progress", "completed", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """
    A PDF that was uploaded, and may be in any number of stores.

    Attributes:
        id: `file-` and a random number.
        purpose: What its owner said it is for.
        sha256: Of its bytes.
        created_at: Seconds since the epoch.
    """

    id: str
    owner: str
    filename: str
    purpose: str
    sha256: str
    size_bytes: int
    created_at: float


@dataclass(frozen=True, slots=True)
class VectorStore:
    """
    A set of files that are searched together.

    Attributes:
        id: `vs_` and a random number; also the name of its collection.
        metadata: What its owner wrote on it.
        created_at: Seconds since the epoch.
        last_active_at: When it was searched or changed last, likewise.
    """

    id: str
    owner: str
    name: str
    metadata: dict[str, str]
    created_at: float
    last_active_at: float


@dataclass(frozen=True, slots=True)
class StoreFile:
    """
    A file in a store.

    Attributes:
        seq: Grows with each that is added.
        document_id: What it is in the store's collection, once it is taken in.
        error_code: Of `errors.py`, once the status is "failed".
    """

    seq: int
    store_id: str
    file_id: str
    filename: str
    size_bytes: int
    document_id: DocumentId
    attributes: Attributes
    created_at: float
    status: StoreFileStatus
    error_code: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True)
class FileBatch:
    """Files that were added to a store together. `created_at` is in seconds since the epoch."""

    id: str
    store_id: str
    created_at: float
    cancelled: bool


@dataclass(frozen=True, slots=True)
class FileCounts:
    """How many files are how far, and the bytes of those that are completed."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    usage_bytes: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.in_progress + self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class NewStoreFile:
    """A file that is to be added to a store, as the document that its bytes are there."""

    file_id: str
    document_id: DocumentId
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file in a store that nobody has taken in yet."""

    seq: int
    owner: str
    store_id: str
    file_id: str
    filename: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """
    A file in a store that is to go.

    Attributes:
        shared: Whether another file there has the same bytes, and stays.
    """

    seq: int
    document_id: DocumentId
    shared: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """
    Which part of a list is wanted.

    Attributes:
        limit: At most so many.
        after: Id of the one before the first; None begins at the beginning.
        before: Id of the one after the last.
        ascending: The oldest first.
    """

    limit: int
    after: str | None = None
    before: str | None = None
    ascending: bool = False


def listed(
    db: sqlite3.Connection,
    query: str,
    place: str,
    listing: Listing,
    values: dict[str, Any],
) -> list[sqlite3.Row]:
    """
    The rows of `query` (constants of ours) that the listing wants, in its order.

    Args:
        db: Inside a caller's transaction.
        query: Has a column `seq`, and a WHERE.
        place: The `seq` of the row with the id `:id`.
        listing: Which part.
        values: Of the named parameters of both.
    """
    bounds = []
    for name, given, later in (
        ("after", listing.after, listing.ascending),
        ("before", listing.before, not listing.ascending),
    ):
        if given is not None:
            row = db.execute(place, values | {"id": given}).fetchone()
            # An id that is not there bounds nothing: the list before it is empty, or the one after.
            values = values | {name: None if row is None else row["seq"]}
            bounds.append(f"seq {'>' if later else '<'} :{name}")
    order = "ASC" if listing.ascending else "DESC"
    where = "".join(f" AND {bound}" for bound in bounds)
    return db.execute(
        f"{query}{where} ORDER BY seq {order} LIMIT :limit", values | {"limit": listing.limit}
    ).fetchall()


def upload_of(row: sqlite3.Row) -> UploadedFile:
    """The file of a row."""
    return UploadedFile(
        id=row["id"],
        owner=row["owner"],
        filename=row["filename"],
        purpose=row["purpose"],
        sha256=row["sha256"],
        size_bytes=row["size_bytes"],
        created_at=row["created_at"],
    )


def store_of(row: sqlite3.Row) -> VectorStore:
    """The store of a row."""
    return VectorStore(
        id=row["id"],
        owner=row["owner"],
        name=row["name"],
        metadata=json.loads(row["metadata"]),
        created_at=row["created_at"],
        last_active_at=row["last_active_at"],
    )


def store_file_of(row: sqlite3.Row) -> StoreFile:
    """The file in a store of a row of `store_members`."""
    fields = dict(row)
    return StoreFile(**fields | {"attributes": json.loads(fields["attributes"])})
