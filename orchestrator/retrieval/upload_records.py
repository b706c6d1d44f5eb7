"""
The files that OpenAI's clients have uploaded, of all owners.

All methods block; async callers run them in a thread.
"""

import json
from collections.abc import Sequence

from orchestrator.retrieval.database import Database
from orchestrator.retrieval.registry_rows import Listing, UploadedFile, listed, upload_of
from orchestrator.retrieval.rows import clean


class UploadRecords:
    """
    One row a file.

    Args:
        database: The document store's.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, upload: UploadedFile) -> None:
        """Store the row of a file whose bytes are on disk."""
        with self._database.write() as db:
            db.execute(
                "INSERT INTO uploads (id, owner, filename, purpose, sha256, size_bytes, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    upload.id,
                    upload.owner,
                    clean(upload.filename),
                    upload.purpose,
                    upload.sha256,
                    upload.size_bytes,
                    upload.created_at,
                ),
            )

    def exists(self, file_id: str) -> bool:
        """Whether there is such a row, whoever's, and even if it is to go."""
        with self._database.read() as db:
            row = db.execute("SELECT 1 FROM uploads WHERE id = ?", (file_id,)).fetchone()
        return row is not None

    def get(self, owner: str, file_id: str) -> UploadedFile | None:
        """This file of this owner, or None."""
        found = self.by_id(owner, [file_id])
        return found.get(file_id)

    def by_id(self, owner: str, file_ids: Sequence[str]) -> dict[str, UploadedFile]:
        """Those of these files that this owner has."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT * FROM uploads WHERE owner = ? AND NOT leaving"
                " AND id IN (SELECT value FROM json_each(?))",
                (owner, json.dumps(list(file_ids))),
            ).fetchall()
        return {row["id"]: upload_of(row) for row in rows}

    def listed(self, owner: str, listing: Listing, *, purpose: str | None) -> list[UploadedFile]:
        """Files of this owner, the newest first unless the listing says otherwise."""
        with self._database.read() as db:
            rows = listed(
                db,
                "SELECT * FROM uploads WHERE owner = :owner AND NOT leaving"
                " AND (:purpose IS NULL OR purpose = :purpose)",
                "SELECT seq FROM uploads WHERE owner = :owner AND id = :id",
                listing,
                {"owner": owner, "purpose": purpose},
            )
        return [upload_of(row) for row in rows]

    def usage(self, owner: str) -> tuple[int, int]:
        """(files, their bytes) of this owner."""
        with self._database.read() as db:
            num, size_bytes = db.execute(
                "SELECT count(*), coalesce(sum(size_bytes), 0) FROM uploads"
                " WHERE owner = ? AND NOT leaving",
                (owner,),
            ).fetchone()
        return int(num), int(size_bytes)

    def remove_soon(self, file_id: str) -> None:
        """Mark a file as one that is to go, with all of its places in stores."""
        with self._database.write() as db:
            db.execute("UPDATE uploads SET leaving = 1 WHERE id = ?", (file_id,))

    def leaving(self) -> list[str]:
        """Ids of the files that are to go, and are in no store any more."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT id FROM uploads WHERE leaving AND NOT EXISTS"
                " (SELECT 1 FROM store_files WHERE upload_seq = uploads.seq)"
            ).fetchall()
        return [row["id"] for row in rows]

    def forget(self, file_id: str) -> None:
        """Remove the row of a file that is in no store."""
        with self._database.write() as db:
            db.execute("DELETE FROM uploads WHERE id = ? AND leaving", (file_id,))
