"""
Which file is in which vector store.

A file in a store is a document of the store's collection, made of the same bytes; how far it is, is
what the document's row says. All methods block; async callers run them in a thread.
"""

import json
import sqlite3
from collections.abc import Sequence

from orchestrator.domain import DocumentId
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.registry_rows import (
    Attributes,
    FileBatch,
    FileCounts,
    Leaving,
    Listing,
    NewStoreFile,
    StoreFile,
    StoreFileStatus,
    Waiting,
    listed,
    store_file_of,
)
from orchestrator.retrieval.rows import clean

_MEMBER = """
    SELECT seq, store_id, file_id, filename, size_bytes, document_id, attributes, created_at, status,
        error_code, error_message
    FROM store_members
"""


class StoreFileRecords:
    """
    One row a file in a store.

    Args:
        database: The document store's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, store_id: str, files: Sequence[NewStoreFile], *, at: float, batch_id: str | None
    ) -> None:
        """
        Put files into a store; somebody has to take them in (`waiting`).

        One that is there already keeps its place and takes the new attributes; one that has failed
        there, or was cancelled, gets another chance.
        """
        with self._database.write() as db:
            if batch_id is not None:
                db.execute(
                    "INSERT INTO file_batches (id, store_seq, created_at)"
                    " SELECT ?, seq, ? FROM vector_stores WHERE id = ?",
                    (batch_id, at, store_id),
                )
            insert_files(db, store_id, files, batch_id=batch_id, at=at)
            db.execute("UPDATE vector_stores SET last_active_at = ? WHERE id = ?", (at, store_id))

    def get(self, store_id: str, file_id: str) -> StoreFile | None:
        """This file in this store, or None."""
        found = self._members("WHERE store_id = ? AND file_id = ?", (store_id, file_id))
        return found[0] if found else None

    def listed(
        self,
        store_id: str,
        listing: Listing,
        *,
        status: StoreFileStatus | None = None,
        batch_id: str | None = None,
    ) -> list[StoreFile]:
        """Files of a store, or of one of its batches, the newest first unless said otherwise."""
        with self._database.read() as db:
            rows = listed(
                db,
                f"{_MEMBER} WHERE store_id = :store AND (:status IS NULL OR status = :status)"
                " AND (:batch IS NULL OR batch_id = :batch)",
                "SELECT seq FROM store_members WHERE store_id = :store AND file_id = :id",
                listing,
                {"store": store_id, "status": status, "batch": batch_id},
            )
        return [store_file_of(row) for row in rows]

    def any_completed(self, store_id: str) -> bool:
        """Whether a file of a store can be searched."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT 1 FROM store_members WHERE store_id = ? AND status = 'completed' LIMIT 1",
                (store_id,),
            ).fetchone()
        return row is not None

    def completed(self, store_id: str) -> list[StoreFile]:
        """Every file of a store that can be searched, the oldest first."""
        return self._members(
            "WHERE store_id = ? AND status = 'completed' ORDER BY seq", (store_id,)
        )

    def by_document(
        self, store_id: str, document_ids: Sequence[DocumentId]
    ) -> dict[DocumentId, StoreFile]:
        """Which file of a store each of these documents is; the first one if several are the same."""
        found = self._members(
            "WHERE store_id = ? AND document_id IN (SELECT value FROM json_each(?))"
            " ORDER BY seq DESC",
            (store_id, json.dumps(list(document_ids))),
        )
        return {file.document_id: file for file in found}

    def counts(self, store_id: str, *, batch_id: str | None = None) -> FileCounts:
        """How far the files of a store, or of one of its batches, are."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT status, count(*) AS num, sum(size_bytes) AS bytes FROM store_members"
                " WHERE store_id = ?1 AND (?2 IS NULL OR batch_id = ?2) GROUP BY status",
                (store_id, batch_id),
            ).fetchall()
        found = {row["status"]: row["num"] for row in rows}
        usage = next((row["bytes"] for row in rows if row["status"] == "completed"), 0)
        return FileCounts(**found, usage_bytes=usage)

    def set_attributes(self, file: StoreFile, attributes: Attributes) -> None:
        """Write other attributes on a file in a store."""
        with self._database.write() as db:
            db.execute(
                "UPDATE store_files SET attributes = ? WHERE seq = ?",
                (json.dumps(attributes), file.seq),
            )

    def remove_soon(self, file: StoreFile) -> None:
        """Mark a file as one that is to leave its store."""
        with self._database.write() as db:
            db.execute("UPDATE store_files SET state = 'leaving' WHERE seq = ?", (file.seq,))

    def leaving(self) -> list[Leaving]:
        """Files that are to leave a store that stays."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT m.seq, m.document_id, EXISTS (SELECT 1 FROM store_files AS other"
                "   JOIN uploads AS its ON its.seq = other.upload_seq"
                "   WHERE other.document_id = m.document_id AND other.seq <> m.seq"
                "   AND other.state IN ('waiting', 'attached') AND NOT its.leaving) AS shared"
                " FROM store_files AS m JOIN uploads ON uploads.seq = m.upload_seq"
                " JOIN vector_stores ON vector_stores.seq = m.store_seq"
                " WHERE (m.state = 'leaving' OR uploads.leaving) AND NOT vector_stores.leaving"
            ).fetchall()
        return [Leaving(r["seq"], DocumentId(r["document_id"]), bool(r["shared"])) for r in rows]

    def forget(self, seq: int) -> None:
        """Remove the row of a file whose document is gone; one that was added again meanwhile stays."""
        with self._database.write() as db:
            db.execute(
                "DELETE FROM store_files WHERE seq = ? AND (state = 'leaving' OR"
                " (SELECT leaving FROM uploads WHERE uploads.seq = upload_seq))",
                (seq,),
            )

    def waiting(self) -> Waiting | None:
        """The file that waits longest to be taken into its store; None if there is none."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT m.seq, s.owner, s.id AS store_id, u.id AS file_id, u.filename"
                " FROM store_files AS m JOIN vector_stores AS s ON s.seq = m.store_seq"
                " JOIN uploads AS u ON u.seq = m.upload_seq"
                " WHERE m.state = 'waiting' AND NOT s.leaving AND NOT u.leaving"
                " ORDER BY m.seq LIMIT 1"
            ).fetchone()
        return None if row is None else Waiting(**dict(row))

    def waiting_usage(self, owner: str) -> tuple[int, int]:
        """(files, their bytes) of this owner that wait to be taken into a store."""
        with self._database.read() as db:
            num, size_bytes = db.execute(
                "SELECT count(*), coalesce(sum(u.size_bytes), 0) FROM store_files AS m"
                " JOIN uploads AS u ON u.seq = m.upload_seq"
                " WHERE m.state = 'waiting' AND u.owner = ?",
                (owner,),
            ).fetchone()
        return int(num), int(size_bytes)

    def taken_in(self, seq: int) -> None:
        """Note that a file is a document now."""
        with self._database.write() as db:
            db.execute(
                "UPDATE store_files SET state = 'attached', error_code = NULL,"
                " error_message = NULL WHERE seq = ? AND state = 'waiting'",
                (seq,),
            )

    def refused(self, seq: int, *, code: str, message: str) -> None:
        """Note why a file did not become a document."""
        with self._database.write() as db:
            db.execute(
                "UPDATE store_files SET state = 'failed', error_code = ?, error_message = ?"
                " WHERE seq = ? AND state = 'waiting'",
                (code, clean(message), seq),
            )

    def batch(self, store_id: str, batch_id: str) -> FileBatch | None:
        """This batch of this store, or None."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT b.id, s.id AS store_id, b.created_at, b.cancelled FROM file_batches AS b"
                " JOIN vector_stores AS s ON s.seq = b.store_seq WHERE s.id = ? AND b.id = ?",
                (store_id, batch_id),
            ).fetchone()
        if row is None:
            return None
        return FileBatch(
            row["id"], row["store_id"], row["created_at"], cancelled=bool(row["cancelled"])
        )

    def cancel_batch(self, batch_id: str) -> list[DocumentId]:
        """
        Take back what is not done of a batch.

        Returns:
            The documents that are on their way and have to go: no other file there is the same.
        """
        undone = "batch_id = :batch AND status = 'in_progress'"
        with self._database.write() as db:
            db.execute(
                "UPDATE file_batches SET cancelled = 1 WHERE id = :batch", {"batch": batch_id}
            )
            rows = db.execute(
                f"SELECT document_id FROM store_members AS mine WHERE {undone} AND NOT EXISTS"  # noqa: S608 - our own words
                " (SELECT 1 FROM store_members AS other WHERE other.document_id = mine.document_id"
                " AND other.batch_id IS NOT :batch)",
                {"batch": batch_id},
            ).fetchall()
            db.execute(
                "UPDATE store_files SET state = 'cancelled' WHERE seq IN"  # noqa: S608 - our own words
                f" (SELECT seq FROM store_members WHERE {undone})",
                {"batch": batch_id},
            )
        return [DocumentId(row["document_id"]) for row in rows]

    def _members(self, tail: str, values: Sequence[str]) -> list[StoreFile]:
        with self._database.read() as db:
            return [store_file_of(row) for row in db.execute(f"{_MEMBER} {tail}", values)]


def insert_files(
    db: sqlite3.Connection,
    store_id: str,
    files: Sequence[NewStoreFile],
    *,
    batch_id: str | None,
    at: float,
) -> None:
    """Put files into a store, inside the caller's transaction; see `StoreFileRecords.add`."""
    db.executemany(
        "INSERT INTO store_files"
        " (store_seq, upload_seq, document_id, attributes, created_at, batch_id)"
        " SELECT s.seq, u.seq, ?, ?, ?, ? FROM vector_stores AS s, uploads AS u"
        " WHERE s.id = ? AND u.id = ?"
        " ON CONFLICT (store_seq, upload_seq) DO UPDATE SET attributes = excluded.attributes,"
        " batch_id = excluded.batch_id, error_code = NULL, error_message = NULL,"
        " state = iif(state = 'attached' AND EXISTS (SELECT 1 FROM documents"
        "   WHERE id = excluded.document_id AND status <> 'failed'), 'attached', 'waiting')",
        [
            (f.document_id, json.dumps(f.attributes), at, batch_id, store_id, f.file_id)
            for f in files
        ],
    )
