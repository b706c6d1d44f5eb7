"""
Whether everything that belongs together on disk is there, and what can be put right.

Every READY document has its chunks, every chunk its vector and its words, every vector its chunk,
every document its file with the bytes that were uploaded, and every snapshot the checksum that it was
written with. Looking changes nothing and may be done beside a running orchestrator; repairing may not.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.domain import DocumentId, DocumentStatus
from orchestrator.retrieval import index_snapshots
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.rows import begin_job, next_generation, seq_of

UNIT_TOLERANCE = 1e-3
"""How far a vector's length may be from 1: they are computed in bfloat16 and normed in float32."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Something that is not as it should be.

    Attributes:
        what: In one sentence.
        repair: What `repair` does about it; None if nothing can be done here.
        document_id: Which document it is about, if one is.
    """

    what: str
    repair: str | None
    document_id: DocumentId | None = None


class StoreCheck:
    """
    Looks through one data folder.

    Args:
        folder: The data folder.
        database: Its open database.
        dimension: Length of a vector; None takes that of the first one stored.
    """

    def __init__(self, *, folder: Path, database: Database, dimension: int | None = None) -> None:
        self._files = folder / "files"
        self._uploads = folder / "uploads" / "files"
        self._indexes = folder / "indexes"
        self._database = database
        self._dimension = dimension

    def findings(self) -> Iterator[Finding]:
        """
        All that is wrong, as it is found; the files take longest, since each is read.

        Raises:
            StoreUnavailable: If the database cannot be read at all.
        """
        with self._database.read() as db:
            yield from _structure(db)
            yield from _documents(db)
            yield from _vectors(db, self._dimension)
            documents = db.execute("SELECT id, filename, sha256 FROM documents").fetchall()
            uploads = db.execute("SELECT id, filename, sha256 FROM uploads").fetchall()
        yield from _stored_files(self._files, documents, "document")
        yield from _stored_files(self._uploads, uploads, "uploaded file")
        yield from self._snapshots()

    def repair(self, findings: Iterable[Finding]) -> list[Finding]:
        """
        Put right what can be; what stays wrong is returned.

        Indexes are derived, so they are made anew. A document whose chunks are not whole is read
        again from its file.
        """
        left = []
        for finding in list(findings):
            if finding.repair is None:
                left.append(finding)
            elif finding.document_id is not None:
                self._read_again(finding.document_id)
        with self._database.write() as db:
            db.execute("DELETE FROM chunks WHERE document_seq NOT IN (SELECT seq FROM documents)")
            db.execute("DELETE FROM pages WHERE document_seq NOT IN (SELECT seq FROM documents)")
            db.execute("INSERT INTO chunks_fts (chunks_fts) VALUES ('rebuild')")
        for base in index_snapshots.torn(self._indexes):
            index_snapshots.forget(base)
        return left

    def _read_again(self, document_id: DocumentId) -> None:
        with self._database.write() as db:
            seq = seq_of(db, document_id)
            (collection,) = db.execute(
                "SELECT collection FROM documents WHERE seq = ?", (seq,)
            ).fetchone()
            db.execute("DELETE FROM chunks WHERE document_seq = ?", (seq,))
            db.execute(
                "UPDATE documents SET status = ?, chunks = 0, pages_done = 0 WHERE seq = ?",
                (DocumentStatus.QUEUED, seq),
            )
            begin_job(db, seq)
            next_generation(db, collection)

    def _snapshots(self) -> Iterator[Finding]:
        for base in index_snapshots.torn(self._indexes):
            what = f"the snapshot {base.name} of a vector index is torn or damaged."
            yield Finding(what, "the index is built anew from the store")


def _stored_files(folder: Path, rows: list[sqlite3.Row], kind: str) -> Iterator[Finding]:
    """Rows without their PDF, or with another one, and PDFs without a row."""
    known = set()
    for row in rows:
        path = folder / f"{row['id']}.pdf"
        known.add(path.name)
        if not path.exists():
            what = f"{row['filename']} ({row['id']}): its PDF is missing; upload it again."
            yield Finding(what, None)
        elif _sha256(path) != row["sha256"]:
            what = f"{row['filename']} ({row['id']}): its PDF is not what was uploaded."
            yield Finding(f"{what} Delete the {kind} and upload it again.", None)
    for path in sorted(folder.glob("*.pdf")) if folder.exists() else ():
        if path.name not in known:
            yield Finding(f"{path.name} belongs to no {kind}.", "removed at the next start")


def _structure(db: sqlite3.Connection) -> Iterator[Finding]:
    """What SQLite says of its own file, and the full-text index of the chunks it should hold."""
    for (said,) in db.execute("PRAGMA integrity_check"):
        if said != "ok":
            yield Finding(f"the database is damaged: {said}", None)
    for row in db.execute("PRAGMA foreign_key_check").fetchall():
        yield Finding(f"a row of {row[0]} belongs to nothing.", "it is deleted")
    (words,) = db.execute("SELECT count(*) FROM chunks_fts_docsize").fetchone()
    (chunks,) = db.execute("SELECT count(*) FROM chunks").fetchone()
    if words != chunks:
        what = f"the full-text index has {words} entries for {chunks} chunks."
        yield Finding(what, "it is built anew")


def _documents(db: sqlite3.Connection) -> Iterator[Finding]:
    """Documents whose parts do not add up."""
    rows = db.execute(
        "SELECT documents.id, filename, status, documents.chunks AS told, count(chunks.id) AS found,"
        " count(DISTINCT ordinal) AS ordinals, max(ordinal) AS last, jobs.document_seq AS job"
        " FROM documents LEFT JOIN chunks ON chunks.document_seq = seq"
        " LEFT JOIN jobs ON jobs.document_seq = seq GROUP BY seq"
    ).fetchall()
    again = "it is read again from its file"
    for row in rows:
        name, document_id = f"{row['filename']} ({row['id']})", DocumentId(row["id"])
        ready = row["status"] == DocumentStatus.READY
        if not ready and row["found"]:
            what = f"{name}: {row['found']} chunks of it can be found, and it is {row['status']}."
            yield Finding(what, again, document_id)
        whole = row["told"] == row["found"] == row["ordinals"] == (row["last"] or 0) + 1
        if ready and not whole:
            what = f"{name}: {row['found']} chunks are there of {row['told']}."
            yield Finding(what, again, document_id)
        at_work = row["job"] is not None
        if at_work == (row["status"] in {DocumentStatus.READY, DocumentStatus.FAILED}):
            state = "is to be worked on" if at_work else "is worked on by nobody"
            yield Finding(f"{name}: {row['status']}, and {state}.", again, document_id)


def _vectors(db: sqlite3.Connection, dimension: int | None) -> Iterator[Finding]:
    """Chunks whose vector is missing, of another length, or no unit vector."""
    bad: dict[str, int] = {}
    rows = db.execute(
        "SELECT documents.id, embedding FROM chunks JOIN documents ON seq = document_seq"
    )
    for document_id, blob in rows:
        dimension = dimension or len(blob) // 4
        vector = np.frombuffer(blob, dtype="<f4") if len(blob) == 4 * dimension else None
        if vector is None or not abs(float(vector @ vector) - 1) < UNIT_TOLERANCE:
            bad[document_id] = bad.get(document_id, 0) + 1
    for document_id, count in bad.items():
        what = f"{document_id}: {count} of its chunks have no vector of {dimension} numbers."
        yield Finding(what, "it is read again from its file", DocumentId(document_id))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
