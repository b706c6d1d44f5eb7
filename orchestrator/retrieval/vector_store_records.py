"""
Vector stores of all owners. Each is a collection of the same name.

Whatever is to go is marked first and removed afterwards, so that a crash in between leaves a mark, and
never something that is half there. All methods block; async callers run them in a thread.
"""

import json
from collections.abc import Sequence

from orchestrator.retrieval.database import Database
from orchestrator.retrieval.registry_rows import (
    Listing,
    NewStoreFile,
    VectorStore,
    listed,
    store_of,
)
from orchestrator.retrieval.rows import clean
from orchestrator.retrieval.store_file_records import insert_files


class VectorStoreRecords:
    """
    One row a store.

    Args:
        database: The document store's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, store: VectorStore, files: Sequence[NewStoreFile]) -> None:
        """Store a new store with its first files."""
        with self._database.write() as db:
            db.execute(
                "INSERT INTO vector_stores (id, owner, name, metadata, created_at, last_active_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    store.id,
                    store.owner,
                    clean(store.name),
                    json.dumps(store.metadata),
                    store.created_at,
                    store.last_active_at,
                ),
            )
            insert_files(db, store.id, files, batch_id=None, at=store.created_at)

    def get(self, owner: str, store_id: str) -> VectorStore | None:
        """This store of this owner, or None."""
        with self._database.read() as db:
            row = db.execute(
                "SELECT * FROM vector_stores WHERE owner = ? AND id = ? AND NOT leaving",
                (owner, store_id),
            ).fetchone()
        return None if row is None else store_of(row)

    def listed(self, owner: str, listing: Listing) -> list[VectorStore]:
        """Stores of this owner, the newest first unless the listing says otherwise."""
        with self._database.read() as db:
            rows = listed(
                db,
                "SELECT * FROM vector_stores WHERE owner = :owner AND NOT leaving",
                "SELECT seq FROM vector_stores WHERE owner = :owner AND id = :id",
                listing,
                {"owner": owner},
            )
        return [store_of(row) for row in rows]

    def count(self, owner: str) -> int:
        """How many this owner has."""
        with self._database.read() as db:
            (num,) = db.execute(
                "SELECT count(*) FROM vector_stores WHERE owner = ? AND NOT leaving", (owner,)
            ).fetchone()
        return int(num)

    def change(
        self, store_id: str, *, name: str | None, metadata: dict[str, str] | None, at: float
    ) -> None:
        """Give a store another name or other metadata; None leaves what it has."""
        with self._database.write() as db:
            db.execute(
                "UPDATE vector_stores SET name = coalesce(?, name),"
                " metadata = coalesce(?, metadata), last_active_at = ? WHERE id = ?",
                (
                    None if name is None else clean(name),
                    None if metadata is None else json.dumps(metadata),
                    at,
                    store_id,
                ),
            )

    def remove_soon(self, store_id: str) -> None:
        """Mark a store as one that is to go, with all that is in it."""
        with self._database.write() as db:
            db.execute("UPDATE vector_stores SET leaving = 1 WHERE id = ?", (store_id,))

    def leaving(self) -> list[VectorStore]:
        """Stores that are to go."""
        with self._database.read() as db:
            rows = db.execute("SELECT * FROM vector_stores WHERE leaving").fetchall()
        return [store_of(row) for row in rows]

    def forget(self, store_id: str) -> None:
        """Remove the rows of a store whose documents are gone."""
        with self._database.write() as db:
            store = "(SELECT seq FROM vector_stores WHERE id = ?)"
            for table in ("store_files", "file_batches"):
                db.execute(f"DELETE FROM {table} WHERE store_seq = {store}", (store_id,))  # noqa: S608 - our own names
            db.execute("DELETE FROM vector_stores WHERE id = ?", (store_id,))
