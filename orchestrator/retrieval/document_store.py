"""
Documents, pages, chunks and vectors on disk: the truth that every index is rebuilt from.

All methods block; async callers run them in a thread. What a write method has returned from is on
disk. A document becomes READY in one transaction, together with its pages, its chunks, their
vectors and their words in the full-text index; it disappears in one, too.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.access.ownership import prefix
from orchestrator.domain import (
    Change,
    ChunkId,
    Document,
    DocumentId,
    DocumentStatus,
    Embeddings,
    Page,
    Passage,
    StoreCounts,
    StoredChunk,
)
from orchestrator.errors import DocumentNotFound
from orchestrator.retrieval.arrays import Ids, Vector
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.rows import (
    OWNED,
    begin_job,
    clean,
    delete_document,
    end_job,
    ids_of,
    insert_chunk,
    insert_document,
    insert_pages,
    next_generation,
    passage_of,
    select_documents,
    seq_of,
    seq_on_its_way,
    set_columns,
)

_RECOUNT_BATCH = 500
_READ_BATCH = 10_000


class DocumentStore:
    """
    The documents of all collections.

    Args:
        path: The SQLite file; it and its folder are made when missing.
        clock: Seconds since the epoch.
    """

    def __init__(self, *, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.database = Database(path=path)
        self._clock = clock

    def open(self) -> None:
        """
        Open the file, and create what it lacks.

        Raises:
            StorageFull: If there is no room for it.
            StoreUnavailable: If it cannot be opened, is damaged, or is from a newer version.
        """
        self.database.open()

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    def check(self) -> None:
        """
        Do nothing while the store can be read, and searched by a word; takes no time.

        Raises:
            StoreUnavailable: If it cannot.
        """
        with self.database.read() as db:
            db.execute("SELECT 1 FROM meta LIMIT 1").fetchone()
            db.execute("SELECT rowid FROM chunks_fts WHERE place MATCH 'c1' LIMIT 1").fetchone()

    def add(self, document: Document) -> tuple[Document, bool]:
        """
        The document as it is stored, and whether this call stored it.

        The same id, or the same bytes in the same collection, give back what is there, unchanged.
        `created_at` is the store's own time unless the document brings one.
        """
        with self.database.write() as db:
            stored = select_documents(
                db,
                "WHERE id = ? OR (collection, sha256) = (?, ?)",
                (document.id, document.collection, document.sha256),
            )
            if stored:
                return stored[0], False
            db.execute(
                "INSERT INTO collections (name) VALUES (?) ON CONFLICT DO NOTHING",
                (document.collection,),
            )
            dated = replace(document, created_at=document.created_at or self._clock())
            added = insert_document(db, dated)
            begin_job(db, seq_of(db, added.id))
            return added, True

    def get(self, document_id: DocumentId) -> Document | None:
        """The document with this id, or None."""
        with self.database.read() as db:
            found = select_documents(db, "WHERE id = ?", (document_id,))
        return found[0] if found else None

    def documents(
        self,
        *,
        collection: str | None = None,
        owner: str | None = None,
        status: DocumentStatus | None = None,
        limit: int = 1000,
        after: DocumentId | None = None,
    ) -> list[Document]:
        """
        Documents, the newest first; with `after`, those older than that one.

        Raises:
            DocumentNotFound: If `after` is no document.
        """
        with self.database.read() as db:
            below = None if after is None else seq_of(db, after)
            return select_documents(
                db,
                "WHERE (?1 IS NULL OR collection = ?1) AND (?2 IS NULL OR seq < ?2)"
                f" AND (?3 IS NULL OR status = ?3) AND {OWNED} ORDER BY seq DESC LIMIT ?4",
                (collection, below, status, limit, None if owner is None else prefix(owner)),
            )

    def collections(self) -> dict[str, int]:
        """The number of documents of each collection that has any, by name."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT collection, count(*) FROM documents GROUP BY collection ORDER BY collection"
            ).fetchall()
        return {name: count for name, count in rows}  # noqa: C416 - rows are sqlite3.Row

    def usage(self, collection: str) -> tuple[int, int]:
        """(documents, bytes of their files) of a collection."""
        with self.database.read() as db:
            documents, size_bytes = db.execute(
                "SELECT count(*), coalesce(sum(size_bytes), 0) FROM documents WHERE collection = ?",
                (collection,),
            ).fetchone()
        return int(documents), int(size_bytes)

    def has_collection(self, name: str) -> bool:
        """Whether a document was ever added to it, even if it is empty now."""
        with self.database.read() as db:
            row = db.execute("SELECT 1 FROM collections WHERE name = ?", (name,)).fetchone()
        return row is not None

    def has_ready(self, collection: str) -> bool:
        """Whether the collection holds a document that can be searched."""
        with self.database.read() as db:
            row = db.execute(
                "SELECT 1 FROM documents WHERE collection = ? AND status = ? LIMIT 1",
                (collection, DocumentStatus.READY),
            ).fetchone()
        return row is not None

    def counts(self) -> StoreCounts:
        """What the store holds."""
        with self.database.read() as db:
            rows = db.execute("SELECT status, count(*) FROM documents GROUP BY status").fetchall()
            (chunks,) = db.execute("SELECT count(*) FROM chunks").fetchone()
        by_status = {status: count for status, count in rows}  # noqa: C416 - rows are sqlite3.Row
        return StoreCounts(
            documents=sum(by_status.values()),
            ready=by_status.get(DocumentStatus.READY, 0),
            chunks=chunks,
            by_status=by_status,
        )

    def publish(
        self,
        document_id: DocumentId,
        *,
        pages: Sequence[Page],
        chunks: Sequence[StoredChunk],
        warning: str | None,
    ) -> Change:
        """
        Make the document READY with all of its pages and chunks, or change nothing.

        The document that it replaces goes in the same moment. Publishing a READY document again
        adds the chunks that it has.

        Raises:
            DocumentNotFound: If it was deleted meanwhile, or is FAILED.
        """
        with self.database.write() as db:
            seq = seq_of(db, document_id)
            (document,) = select_documents(db, "WHERE seq = ?", (seq,))
            if document.status is DocumentStatus.READY:
                return Change(added=_chunks_of(db, seq))
            end_job(db, seq_on_its_way(db, document_id))
            db.execute("DELETE FROM pages WHERE document_seq = ?", (seq,))
            insert_pages(db, seq, pages)
            ids = tuple(insert_chunk(db, seq, chunk) for chunk in chunks)
            set_columns(
                db,
                document_id,
                status=DocumentStatus.READY,
                pages=max(len(pages), document.pages),
                pages_done=max(len(pages), document.pages),
                chunks=len(ids),
                warning=warning and clean(warning),
            )
            removed, replaced = _replace(db, document)
            next_generation(db, document.collection)
        if removed:
            self.database.reclaim()
        return Change(added=ids, removed=removed, replaced=replaced)

    def delete(self, document_id: DocumentId) -> Change | None:
        """What went with the document; None if there was no such document."""
        with self.database.write() as db:
            try:
                seq = seq_of(db, document_id)
            except DocumentNotFound:
                return None
            (document,) = select_documents(db, "WHERE seq = ?", (seq,))
            removed = delete_document(db, seq)
            next_generation(db, document.collection)
        self.database.reclaim()
        return Change(removed=removed)

    def passages(self, ids: Sequence[ChunkId], query: Vector | None) -> dict[ChunkId, Passage]:
        """
        The chunks that still exist, scored against the question's vector.

        Args:
            ids: Chunks, in any order.
            query: (d,) float32 of unit length; None scores all of them 0.
        """
        with self.database.read() as db:
            rows = db.execute(
                "SELECT chunks.id, documents.id AS document_id, filename, page, page_end, char_start,"
                " char_end, text, prompt_tokens, embedding"
                " FROM chunks JOIN documents ON documents.seq = chunks.document_seq"
                " WHERE chunks.id IN (SELECT value FROM json_each(?))",
                (json.dumps([int(chunk_id) for chunk_id in ids]),),
            ).fetchall()
        return {ChunkId(row["id"]): passage_of(row, query) for row in rows}

    def page_text(self, document_id: DocumentId, number: int) -> str | None:
        """The text of one page of a READY document, counted from 1; None if there is none."""
        with self.database.read() as db:
            row = db.execute(
                "SELECT text FROM pages JOIN documents ON documents.seq = pages.document_seq"
                " WHERE documents.id = ? AND number = ? AND status = ?",
                (document_id, number, DocumentStatus.READY),
            ).fetchone()
        return None if row is None else str(row["text"])

    def page_texts(self, document_id: DocumentId) -> list[str]:
        """The text of each page of a READY document, in order; none if there is no such document."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT text FROM pages JOIN documents ON documents.seq = pages.document_seq"
                " WHERE documents.id = ? AND status = ? ORDER BY number",
                (document_id, DocumentStatus.READY),
            ).fetchall()
        return [row["text"] for row in rows]

    def embeddings(
        self, collection: str, *, after: int = 0, limit: int = -1
    ) -> tuple[Ids, Embeddings]:
        """
        The vectors of the collection: all of them, or the next few.

        Args:
            collection: Which one.
            after: Only those of chunks with larger ids; later chunks always have larger ones.
            limit: At most so many; negative means all.

        Returns:
            ids (n,) int64 in ascending order, and (n, d) float32 unit rows; (0, 0) when empty.
        """
        with self.database.read() as db:
            rows = db.execute(
                "SELECT chunks.id, embedding FROM chunks"
                " JOIN documents ON documents.seq = chunks.document_seq"
                " WHERE collection = ? AND chunks.id > ? ORDER BY chunks.id LIMIT ?",
                (collection, after, limit),
            ).fetchall()
        return ids_of(rows), _matrix(rows)

    def embeddings_of(self, ids: Ids) -> Embeddings:
        """The vectors of those of these chunks that exist, by ascending id: (n, d) float32 unit rows."""
        rows: list[sqlite3.Row] = []
        for start in range(0, len(ids), _READ_BATCH):
            with self.database.read() as db:
                rows += db.execute(
                    "SELECT embedding FROM chunks WHERE id IN (SELECT value FROM json_each(?))"
                    " ORDER BY id",
                    (json.dumps(ids[start : start + _READ_BATCH].tolist()),),
                ).fetchall()
        return _matrix(rows)

    def chunk_ids(self, *, collection: str, document_ids: Sequence[DocumentId] = ()) -> Ids:
        """
        The chunks of a collection, or only those of some of its documents.

        Returns:
            (n,) int64, ascending; documents that are not in the collection add none.
        """
        query = (
            "SELECT chunks.id FROM documents JOIN chunks ON chunks.document_seq = documents.seq"
            " WHERE collection = :collection"
        )
        if document_ids:
            query += " AND documents.id IN (SELECT value FROM json_each(:ids))"
        values = {"collection": collection, "ids": json.dumps(list(document_ids))}
        with self.database.read() as db:
            rows = db.execute(query + " ORDER BY chunks.id", values).fetchall()
        return ids_of(rows)

    def count_chunks(self, collection: str) -> int:
        """How many chunks the collection has."""
        with self.database.read() as db:
            (chunks,) = db.execute(
                "SELECT coalesce(sum(chunks), 0) FROM documents WHERE collection = ?", (collection,)
            ).fetchone()
        return int(chunks)

    def generation(self, collection: str) -> int:
        """A number that grows with each change of what the collection's chunks are; 0 at first."""
        with self.database.read() as db:
            row = db.execute(
                "SELECT generation FROM collections WHERE name = ?", (collection,)
            ).fetchone()
        return 0 if row is None else int(row["generation"])

    def recount_prompt_tokens(self, counter: Callable[[str], int]) -> int:
        """
        Count every chunk again, for another engine's tokenizer.

        Returns:
            The number of chunks. In between other writers get their turn.
        """
        done, last = 0, 0
        while True:
            with self.database.read() as db:
                rows = db.execute(
                    "SELECT id, text FROM chunks WHERE id > ? ORDER BY id LIMIT ?",
                    (last, _RECOUNT_BATCH),
                ).fetchall()
            if not rows:
                return done
            counted = [(counter(row["text"]), row["id"]) for row in rows]
            with self.database.write() as db:
                db.executemany("UPDATE chunks SET prompt_tokens = ? WHERE id = ?", counted)
            done, last = done + len(rows), rows[-1]["id"]

    def get_meta(self, key: str) -> str | None:
        """What was noted under this key, or None."""
        with self.database.read() as db:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row["value"])

    def set_meta(self, key: str, value: str) -> None:
        """Note a value under a key, in place of the one before."""
        with self.database.write() as db:
            db.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )


def _matrix(rows: Sequence[sqlite3.Row]) -> Embeddings:
    """The `embedding` column of these rows: (n, d) float32; (0, 0) if there are none."""
    data = b"".join(row["embedding"] for row in rows)
    vectors: Embeddings = np.frombuffer(data, dtype="<f4").reshape(len(rows), -1 if rows else 0)
    return vectors


def _chunks_of(db: sqlite3.Connection, seq: int) -> tuple[ChunkId, ...]:
    rows = db.execute("SELECT id FROM chunks WHERE document_seq = ? ORDER BY ordinal", (seq,))
    return tuple(ChunkId(chunk_id) for (chunk_id,) in rows)


def _replace(
    db: sqlite3.Connection, document: Document
) -> tuple[tuple[ChunkId, ...], DocumentId | None]:
    """The chunks of the document that this one replaces, and which that was, if it still exists."""
    if document.replaces is None:
        return (), None
    try:
        return delete_document(db, seq_of(db, document.replaces)), document.replaces
    except DocumentNotFound:
        return (), None
