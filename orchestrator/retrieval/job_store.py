"""
What is still to be done: one row a document on its way, with who works on it, and until when.

A lease that is not renewed runs out, and somebody else takes the document up: at the page, and at
the chunk, to which the work so far was staged. All methods block; what a write method has returned
from is on disk.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.domain import DocumentId, DocumentStatus, FlawedPage, Page, StagedChunk
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.rows import (
    begin_job,
    clean,
    end_job,
    insert_pages,
    seq_of,
    seq_on_its_way,
    set_columns,
)

SUSPECT_FROM = 2
"""Interruptions without a step forward after which a document is worked on alone, after a pause."""
PAUSES_S = 4.0, 16.0, 64.0
"""
From the start of the process until a suspect is taken up again, in seconds: each longer than the last.

What ends the process for another reason, and does it again and again, does so in these pauses, and
that blames nobody. Only a document in whose work alone the process ends, each time, is the cause.
"""

FURTHEST_S = 600.0
"""
Nothing here is meant for later than this and a lease, in seconds from now.

What is was written before the clock was set back: it is due, and its lease has run out.
"""

# The oldest, and nobody younger before it: a suspect that waits for the others to end is not overtaken
# for ever. The work that is going on counts as an interruption until it has come further.
_NEXT = f"""
    SELECT document_seq FROM (
        SELECT document_seq, interruptions FROM jobs
        WHERE (due_at <= :now OR due_at > :furthest)
        AND (owner IS NULL OR leased_until NOT BETWEEN :now AND :furthest)
        AND document_seq NOT IN (
            SELECT seq FROM documents WHERE id IN (SELECT value FROM json_each(:but_not))
        )
        ORDER BY document_seq LIMIT 1
    ) AS oldest
    WHERE NOT EXISTS (
        SELECT 1 FROM jobs
        WHERE owner IS NOT NULL AND leased_until BETWEEN :now AND :furthest
        AND (interruptions > {SUSPECT_FROM} OR oldest.interruptions >= {SUSPECT_FROM})
    )
"""  # noqa: S608 - a constant
# Counted as an interruption until somebody says how it ended.
_CLAIM = f"""
    UPDATE jobs SET owner = :owner, leased_until = :until, interruptions = interruptions + 1
    WHERE document_seq = ({_NEXT})
    RETURNING document_seq, failures, interruptions - 1 AS interruptions
"""  # noqa: S608 - a constant
_RELEASE_ALL = f"""
    UPDATE jobs SET owner = NULL, due_at = CASE
        WHEN interruptions < {SUSPECT_FROM} THEN 0
        WHEN interruptions = {SUSPECT_FROM} THEN :now + {PAUSES_S[0]}
        WHEN interruptions = {SUSPECT_FROM + 1} THEN :now + {PAUSES_S[1]}
        ELSE :now + {PAUSES_S[2]}
    END
"""  # noqa: S608 - a constant
_PUT_BACK = """
    UPDATE jobs
    SET owner = NULL, due_at = ?, failures = failures + 1, interruptions = max(interruptions - 1, 0)
    WHERE document_seq = (SELECT seq FROM documents WHERE id = ?)
"""
_STAGED_CHUNKS = """
    SELECT ordinal, text_sha256, prompt_tokens, embedding FROM staged_chunks
    WHERE document_seq = (SELECT seq FROM documents WHERE id = ?)
"""


@dataclass(frozen=True, slots=True)
class Job:
    """
    A document that its owner works on.

    Attributes:
        failures: Attempts that failed since the document last came further.
        interruptions: Attempts of which nobody said how they ended, since then.
    """

    document_id: DocumentId
    failures: int
    interruptions: int


class JobStore:
    """
    The documents on their way.

    Args:
        database: The document store's.
        clock: Seconds since the epoch.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def claim(
        self, owner: str, *, lease_s: float, but_not: Sequence[DocumentId] = ()
    ) -> Job | None:
        """
        The oldest document that nobody works on, now leased to this owner; None if there is none.

        A document that may be what ends the process is worked on alone: it is given out when no other
        is leased, and none is given out beside it until it has come further.

        Args:
            owner: Who will work on it; as good as unique.
            lease_s: How long it is theirs unless they renew it, in seconds.
            but_not: What they work on already, even if its lease has run out: after a machine stood
                still they would be given it a second time.
        """
        now_s = self._clock()
        now: dict[str, float | str] = {
            "now": now_s,
            "furthest": now_s + FURTHEST_S + lease_s,
            "but_not": json.dumps(list(but_not)),
        }
        # Asked first: to look for work once a second should not take the writers' lock.
        with self._database.read() as db:
            if db.execute(_NEXT, now).fetchone() is None:
                return None
        with self._database.write() as db:
            values = now | {"owner": owner, "until": self._clock() + lease_s}
            row = db.execute(_CLAIM, values).fetchone()
            if row is None:
                return None
            (document_id,) = db.execute(
                "SELECT id FROM documents WHERE seq = ?", (row["document_seq"],)
            ).fetchone()
        return Job(DocumentId(document_id), row["failures"], row["interruptions"])

    def renew(
        self, owner: str, document_ids: Sequence[DocumentId], *, lease_s: float
    ) -> set[DocumentId]:
        """Those of these documents that are still this owner's, for so many seconds from now on."""
        with self._database.write() as db:
            rows = db.execute(
                "UPDATE jobs SET leased_until = ? WHERE owner = ? AND document_seq IN"
                " (SELECT seq FROM documents WHERE id IN (SELECT value FROM json_each(?)))"
                " RETURNING (SELECT id FROM documents WHERE seq = document_seq)",
                (self._clock() + lease_s, owner, json.dumps(list(document_ids))),
            ).fetchall()
        return {DocumentId(document_id) for (document_id,) in rows}

    def put_back(self, document_id: DocumentId, *, delay_s: float) -> None:
        """Leave the document to whoever comes after so many seconds: this attempt has failed."""
        with self._database.write() as db:
            db.execute(_PUT_BACK, (self._clock() + delay_s, document_id))

    def release(self, owner: str) -> None:
        """Give back what this owner has: it stops in order, which is no document's fault."""
        with self._database.write() as db:
            db.execute(
                "UPDATE jobs SET owner = NULL, interruptions = max(interruptions - 1, 0)"
                " WHERE owner = ?",
                (owner,),
            )

    def release_all(self) -> None:
        """
        Take every lease away: whoever had one is dead, and that was an interruption.

        A document that was interrupted so often without coming further that it may be the cause
        waits before it is taken up again; see `PAUSES_S`.
        """
        with self._database.write() as db:
            db.execute(_RELEASE_ALL, {"now": self._clock()})

    def counts(self) -> tuple[int, int]:
        """(documents that wait for somebody, documents that somebody works on)."""
        with self._database.read() as db:
            waiting, leased = db.execute(
                "SELECT count(*) - count(owner), count(owner) FROM jobs"
            ).fetchone()
        return int(waiting), int(leased)

    def show(
        self,
        document_id: DocumentId,
        *,
        status: DocumentStatus | None = None,
        pages_done: int | None = None,
    ) -> None:
        """
        Note how far the document has come; what is None stays.

        Raises:
            DocumentNotFound: If it was deleted or finished meanwhile.
        """
        with self._database.write() as db:
            seq_on_its_way(db, document_id)
            set_columns(db, document_id, status=status, pages_done=pages_done)

    def stage_pages(self, document_id: DocumentId, pages: Sequence[Page]) -> None:
        """
        Keep pages that were read, the last one's number being how far the document has come.

        Raises:
            DocumentNotFound: If it was deleted or finished meanwhile.
        """
        with self._database.write() as db:
            seq = seq_on_its_way(db, document_id)
            insert_pages(db, seq, pages)
            set_columns(db, document_id, pages_done=pages[-1].number)
            _came_further(db, seq)

    def staged_pages(self, document_id: DocumentId) -> list[Page]:
        """The pages that were kept, from the first one up to the first gap."""
        with self._database.read() as db:
            rows = db.execute(
                "SELECT number, pages.text, flaw FROM pages JOIN documents ON seq = document_seq"
                " WHERE documents.id = ? ORDER BY number",
                (document_id,),
            ).fetchall()
        return [
            Page(row["number"], row["text"])
            if row["flaw"] is None
            else FlawedPage(row["number"], row["text"], row["flaw"])
            for place, row in enumerate(rows, start=1)
            if row["number"] == place
        ]

    def stage_chunks(self, document_id: DocumentId, chunks: Sequence[StagedChunk]) -> None:
        """
        Keep chunks that were embedded.

        Raises:
            DocumentNotFound: If the document was deleted or finished meanwhile.
        """
        with self._database.write() as db:
            seq = seq_on_its_way(db, document_id)
            db.executemany(
                "INSERT OR REPLACE INTO staged_chunks"
                " (document_seq, ordinal, text_sha256, prompt_tokens, embedding)"
                " VALUES (?, ?, ?, ?, ?)",
                ((seq, *_values(chunk)) for chunk in chunks),
            )
            _came_further(db, seq)

    def staged_chunks(self, document_id: DocumentId) -> dict[int, StagedChunk]:
        """The chunks that were kept, by their ordinal."""
        with self._database.read() as db:
            rows = db.execute(_STAGED_CHUNKS, (document_id,)).fetchall()
        return {
            row["ordinal"]: StagedChunk(
                ordinal=row["ordinal"],
                text_sha256=row["text_sha256"],
                embedding=np.frombuffer(row["embedding"], dtype="<f4"),
                prompt_tokens=row["prompt_tokens"],
            )
            for row in rows
        }

    def forget_chunks(self) -> None:
        """Let go of all that was embedded so far: another model, or tokenizer, is in use now."""
        with self._database.write() as db:
            db.execute("DELETE FROM staged_chunks")

    def fail(self, document_id: DocumentId, *, code: str, message: str) -> None:
        """
        Give the document up, and keep the reason; `requeue` starts it over.

        Raises:
            DocumentNotFound: If it was deleted or finished meanwhile.
        """
        with self._database.write() as db:
            seq = seq_on_its_way(db, document_id)
            end_job(db, seq)
            db.execute("DELETE FROM pages WHERE document_seq = ?", (seq,))
            set_columns(
                db,
                document_id,
                status=DocumentStatus.FAILED,
                error_code=code,
                error_message=clean(message),
            )

    def requeue(self, document_id: DocumentId) -> bool:
        """
        Start a FAILED document over, with neither progress nor error; any other stays as it is.

        Returns:
            Whether it was one.

        Raises:
            DocumentNotFound: If it was deleted meanwhile.
        """
        with self._database.write() as db:
            seq = seq_of(db, document_id)
            changed = db.execute(
                "UPDATE documents SET status = ?, pages_done = 0, error_code = NULL,"
                " error_message = NULL WHERE seq = ? AND status = ?",
                (DocumentStatus.QUEUED, seq, DocumentStatus.FAILED),
            ).rowcount
            if changed:
                begin_job(db, seq)
        return bool(changed)


def _came_further(db: sqlite3.Connection, seq: int) -> None:
    """Forget what went wrong before; the attempt that is going on counts until it has ended."""
    db.execute("UPDATE jobs SET failures = 0, interruptions = 1 WHERE document_seq = ?", (seq,))


def _values(chunk: StagedChunk) -> tuple[int, bytes, int, bytes]:
    vector = np.ascontiguousarray(chunk.embedding, dtype="<f4").tobytes()
    return chunk.ordinal, chunk.text_sha256, chunk.prompt_tokens, vector
