"""What stands in the store's tables, as values of ours and back; each inside a caller's transaction."""

import sqlite3
from collections.abc import Sequence

import numpy as np

from orchestrator.domain import (
    ChunkId,
    Document,
    DocumentId,
    DocumentStatus,
    Page,
    Passage,
    StoredChunk,
)
from orchestrator.errors import DocumentNotFound
from orchestrator.retrieval.arrays import Ids, Vector

_COLUMNS = """
    id, collection, filename, sha256, size_bytes, status, created_at, pages, pages_done, chunks,
    error_code, error_message, warning, replaces
"""

OWNED = (
    "(?5 IS NULL OR iif(?5 = '', instr(collection, '/') = 0,"
    " substr(collection, 1, length(?5)) = ?5))"
)
"""Whether a document is one of an owner's; the fifth value is `ownership.prefix`, or NULL for all."""


def select_documents(
    db: sqlite3.Connection, tail: str, values: Sequence[str | int | None] = ()
) -> list[Document]:
    """The documents that `tail` (WHERE, ORDER, LIMIT; a constant of ours) picks."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM documents {tail}", values)  # noqa: S608 - constants
    return [_document(row) for row in rows]


def insert_document(db: sqlite3.Connection, document: Document) -> Document:
    """The document as it stands in its new row."""
    values = (
        document.id,
        document.collection,
        clean(document.filename),
        document.sha256,
        document.size_bytes,
        document.status,
        document.created_at,
        document.pages,
        document.pages_done,
        document.chunks,
        document.error_code,
        document.error_message and clean(document.error_message),
        document.warning and clean(document.warning),
        document.replaces,
    )
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO documents ({_COLUMNS}) VALUES ({marks})", values)  # noqa: S608 - constants
    (stored,) = select_documents(db, "WHERE id = ?", (document.id,))
    return stored


def seq_of(db: sqlite3.Connection, document_id: DocumentId) -> int:
    """
    The row number of a document.

    Raises:
        DocumentNotFound: If there is no such document.
    """
    row = db.execute("SELECT seq FROM documents WHERE id = ?", (document_id,)).fetchone()
    if row is None:
        raise DocumentNotFound(
            f"There is no document {document_id}: it was deleted, or never uploaded. "
            "GET /documents lists those that are there."
        )
    return int(row["seq"])


def seq_on_its_way(db: sqlite3.Connection, document_id: DocumentId) -> int:
    """
    The row number of a document that is to be worked on.

    Raises:
        DocumentNotFound: If there is no such document, or it is READY or FAILED by now.
    """
    seq = seq_of(db, document_id)
    if db.execute("SELECT 1 FROM jobs WHERE document_seq = ?", (seq,)).fetchone() is None:
        raise DocumentNotFound(f"{document_id} is finished: somebody else took it up.")
    return seq


def set_columns(
    db: sqlite3.Connection, document_id: DocumentId, **columns: str | int | None
) -> None:
    """
    Change these columns of a document; what is None stays.

    Raises:
        DocumentNotFound: If there is no such document.
    """
    seq = seq_of(db, document_id)
    given = {name: value for name, value in columns.items() if value is not None}
    if given:
        assignments = ", ".join(f"{name} = :{name}" for name in given)
        db.execute(
            f"UPDATE documents SET {assignments} WHERE seq = :seq",  # noqa: S608 - our own names
            given | {"seq": seq},
        )


def insert_chunk(db: sqlite3.Connection, seq: int, stored: StoredChunk) -> ChunkId:
    """The id of the chunk that this call stored."""
    chunk = stored.chunk
    (chunk_id,) = db.execute(
        "INSERT INTO chunks (document_seq, ordinal, page, page_end, char_start, char_end, heading,"
        " text, num_tokens, prompt_tokens, embedding)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        (
            seq,
            chunk.ordinal,
            chunk.page,
            chunk.page_end,
            chunk.char_start,
            chunk.char_end,
            clean(chunk.heading),
            clean(chunk.text),
            chunk.num_tokens,
            stored.prompt_tokens,
            np.ascontiguousarray(stored.embedding, dtype="<f4").tobytes(),
        ),
    ).fetchone()
    return ChunkId(chunk_id)


def begin_job(db: sqlite3.Connection, seq: int) -> None:
    """Note that the document is to be worked on, from its first page."""
    end_job(db, seq)
    db.execute("DELETE FROM pages WHERE document_seq = ?", (seq,))
    db.execute("INSERT INTO jobs (document_seq) VALUES (?)", (seq,))


def end_job(db: sqlite3.Connection, seq: int) -> None:
    """Note that nobody has to work on the document, and let go of what was embedded so far."""
    db.execute("DELETE FROM jobs WHERE document_seq = ?", (seq,))
    db.execute("DELETE FROM staged_chunks WHERE document_seq = ?", (seq,))


def insert_pages(db: sqlite3.Connection, seq: int, pages: Sequence[Page]) -> None:
    """Store pages of a document; one that is there already is overwritten."""
    db.executemany(
        "INSERT OR REPLACE INTO pages (document_seq, number, text, flaw) VALUES (?, ?, ?, ?)",
        ((seq, page.number, clean(page.text), getattr(page, "reason", None)) for page in pages),
    )


def delete_document(db: sqlite3.Connection, seq: int) -> tuple[ChunkId, ...]:
    """The ids of the chunks that went with the document, ascending."""
    end_job(db, seq)
    rows = db.execute("DELETE FROM chunks WHERE document_seq = ? RETURNING id", (seq,))
    ids = tuple(sorted(ChunkId(chunk_id) for (chunk_id,) in rows.fetchall()))
    db.execute("DELETE FROM pages WHERE document_seq = ?", (seq,))
    db.execute("DELETE FROM documents WHERE seq = ?", (seq,))
    tidy_full_text(db)
    return ids


def next_generation(db: sqlite3.Connection, collection: str) -> None:
    """Note that the collection's chunks have changed."""
    db.execute("UPDATE collections SET generation = generation + 1 WHERE name = ?", (collection,))


def tidy_full_text(db: sqlite3.Connection) -> None:
    """Let the full-text index forget deleted words: some of them each time, all when it is empty."""
    if db.execute("SELECT 1 FROM chunks LIMIT 1").fetchone() is None:
        db.execute("INSERT INTO chunks_fts (chunks_fts) VALUES ('rebuild')")
    else:
        db.execute("INSERT INTO chunks_fts (chunks_fts, rank) VALUES ('merge', 200)")


def clean(text: str) -> str:
    """Text that SQLite can hold: half surrogate pairs and NULs replaced, one character for one."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _document(row: sqlite3.Row) -> Document:
    fields = dict(row) | {"status": DocumentStatus(row["status"]), "id": DocumentId(row["id"])}
    return Document(**fields)


def ids_of(rows: Sequence[sqlite3.Row]) -> Ids:
    """The `id` column of these rows, in their order: (n,) int64."""
    return np.fromiter((row["id"] for row in rows), dtype=np.int64, count=len(rows))


def passage_of(row: sqlite3.Row, query: Vector | None) -> Passage:
    """The passage of a row; its score is the cosine of its vector and the question's, or 0."""
    cosine = 0.0
    if query is not None:
        cosine = float(np.frombuffer(row["embedding"], dtype="<f4") @ query)
    return Passage(
        chunk_id=ChunkId(row["id"]),
        document_id=DocumentId(row["document_id"]),
        filename=row["filename"],
        page=row["page"],
        page_end=row["page_end"],
        char_start=row["char_start"],
        char_end=row["char_end"],
        text=row["text"],
        score=min(max(cosine, -1.0), 1.0),
        prompt_tokens=row["prompt_tokens"],
    )
