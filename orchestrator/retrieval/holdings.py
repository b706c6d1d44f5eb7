"""What an owner holds: counted over all of their collections, and the files for vector stores."""

from typing import Any

from orchestrator.access.ownership import prefix
from orchestrator.domain import DocumentStatus, StoreCounts
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.rows import OWNED

_FOR_STORES = """
    SELECT coalesce(sum(waiting), 0), coalesce(sum((1 + waiting) * size_bytes), 0) FROM (
        SELECT size_bytes, (SELECT count(*) FROM store_files
            WHERE upload_seq = uploads.seq AND state = 'waiting') AS waiting
        FROM uploads WHERE owner = ?
    )
"""


class Holdings:
    """The documents of each owner, as sums."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def usage(self, owner: str) -> tuple[int, int]:
        """
        (documents, bytes of files) of an owner.

        A file that waits to be taken into a vector store counts as the document that it will be; the
        bytes of uploaded files count beside those of the documents made of them, as on the disk.
        """
        [(documents, size_bytes)] = self._sums(
            "SELECT count(*), coalesce(sum(size_bytes), 0) FROM documents WHERE", owner
        )
        with self._database.read() as db:
            waiting, more_bytes = db.execute(_FOR_STORES, (owner,)).fetchone()
        return documents + waiting, size_bytes + more_bytes

    def counts(self, owner: str) -> StoreCounts:
        """How far the documents of an owner are."""
        rows = self._sums(
            "SELECT status, count(*), sum(chunks) FROM documents WHERE", owner, "GROUP BY status"
        )
        by_status = {status: count for status, count, _ in rows}
        return StoreCounts(
            documents=sum(by_status.values()),
            ready=by_status.get(DocumentStatus.READY, 0),
            chunks=sum(chunks for _, _, chunks in rows),
            by_status=by_status,
        )

    def _sums(self, head: str, owner: str, tail: str = "") -> list[tuple[Any, ...]]:
        with self._database.read() as db:
            values = (None, None, None, None, prefix(owner))
            return [tuple(row) for row in db.execute(f"{head} {OWNED} {tail}", values)]
