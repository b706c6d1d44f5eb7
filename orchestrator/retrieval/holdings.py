"""What an owner holds: counted over all of their collections."""

from typing import Any

from orchestrator.access.ownership import prefix
from orchestrator.domain import DocumentStatus, StoreCounts
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.rows import OWNED


class Holdings:
    """The documents of each owner, as sums."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def usage(self, owner: str) -> tuple[int, int]:
        """(documents, bytes of their files) of an owner."""
        [(documents, size_bytes)] = self._sums(
            "SELECT count(*), coalesce(sum(size_bytes), 0) FROM documents WHERE", owner
        )
        return documents, size_bytes

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
