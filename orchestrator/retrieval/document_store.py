"""
Documents, pages, chunks and vectors on disk: the truth that every index is rebuilt from.

All methods block; async callers run them in a thread. What a write method has returned from is on
disk. A document becomes READY in one transaction, together with its pages, its chunks, their
vectors and their words in the full-text index; it disappears in one, too.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.domain import (
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
    clean,
    ids_of,
    insert_chunk,
    insert_document,
    next_generation,
    passage_of,
    select_documents,
    seq_of,
    set_columns,
    tidy_full_text,
)

_UNFINISHED = (DocumentStatus.QUEUED, DocumentStatus.PARSING, DocumentStatus.EMBEDDING)
_RECOUNT_BATCH = 500


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
            return insert_document(db, dated), True

    def get(self, document_id: DocumentId) -> Document | None:
        """The document with this id, or None."""
        with self.database.read() as db:
            found = select_documents(db, "WHERE id = ?", (document_id,))
        return found[0] if found else None

    def documents(
        self, *, collection: str | None = None, limit: int = 1000, after: DocumentId | None = None
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
                " ORDER BY seq DESC LIMIT ?3",
                (collection, below, limit),
            )

    def unfinished(self) -> list[Document]:
        """Documents that are queued or were being worked on, the oldest first."""
        with self.database.read() as db:
            return select_documents(db, "WHERE status IN (?, ?, ?) ORDER BY seq", _UNFINISHED)

    def collections(self) -> dict[str, int]:
        """The number of documents of each collection that has any, by name."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT collection, count(*) FROM documents GROUP BY collection ORDER BY collection"
            ).fetchall()
        return {name: count for name, count in rows}  # noqa: C416 - rows are sqlite3.Row

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

    def update(
        self,
        document_id: DocumentId,
        *,
        status: DocumentStatus | None = None,
        pages: int | None = None,
        pages_done: int | None = None,
    ) -> None:
        """
        Note how far the document has come; what is None stays.

        Raises:
            DocumentNotFound: If it was deleted meanwhile.
        """
        with self.database.write() as db:
            set_columns(db, document_id, status=status, pages=pages, pages_done=pages_done)

    def fail(self, document_id: DocumentId, *, code: str, message: str) -> None:
        """
        Give the document up, and keep the reason.

        Raises:
            DocumentNotFound: If it was deleted meanwhile.
        """
        with self.database.write() as db:
            set_columns(
                db,
                document_id,
                status=DocumentStatus.FAILED,
                error_code=code,
                error_message=clean(message),
            )

    def requeue(self, document_id: DocumentId) -> None:
        """
        Start the document over, with neither progress nor error; a READY one stays as it is.

        Raises:
            DocumentNotFound: If it was deleted meanwhile.
        """
        with self.database.write() as db:
            seq = seq_of(db, document_id)
            db.execute(
                "UPDATE documents SET status = ?, pages_done = 0, error_code = NULL,"
                " error_message = NULL WHERE seq = ? AND status != ?",
                (DocumentStatus.QUEUED, seq, DocumentStatus.READY),
            )

    def publish(
        self,
        document_id: DocumentId,
        *,
        pages: Sequence[Page],
        chunks: Sequence[StoredChunk],
        warning: str | None,
    ) -> list[ChunkId]:
        """
        Make the document READY with all of its pages and chunks, or change nothing.

        Publishing a READY document again gives the ids of the chunks that it has.

        Returns:
            The ids of the chunks, in the order of the chunks.

        Raises:
            DocumentNotFound: If it was deleted meanwhile.
        """
        with self.database.write() as db:
            seq = seq_of(db, document_id)
            (document,) = select_documents(db, "WHERE seq = ?", (seq,))
            if document.status is DocumentStatus.READY:
                rows = db.execute(
                    "SELECT id FROM chunks WHERE document_seq = ? ORDER BY ordinal", (seq,)
                )
                return [ChunkId(chunk_id) for (chunk_id,) in rows]
            db.executemany(
                "INSERT INTO pages (document_seq, number, text) VALUES (?, ?, ?)",
                ((seq, page.number, clean(page.text)) for page in pages),
            )
            ids = [insert_chunk(db, seq, chunk) for chunk in chunks]
            set_columns(
                db,
                document_id,
                status=DocumentStatus.READY,
                pages=max(len(pages), document.pages),
                pages_done=max(len(pages), document.pages),
                chunks=len(ids),
                warning=warning and clean(warning),
            )
            next_generation(db, document.collection)
            return ids

    def delete(self, document_id: DocumentId) -> list[ChunkId] | None:
        """The ids of the chunks that went with the document; None if there was no such document."""
        with self.database.write() as db:
            try:
                seq = seq_of(db, document_id)
            except DocumentNotFound:
                return None
            (document,) = select_documents(db, "WHERE seq = ?", (seq,))
            rows = db.execute("DELETE FROM chunks WHERE document_seq = ? RETURNING id", (seq,))
            ids = sorted(ChunkId(chunk_id) for (chunk_id,) in rows.fetchall())
            db.execute("DELETE FROM pages WHERE document_seq = ?", (seq,))
            db.execute("DELETE FROM documents WHERE seq = ?", (seq,))
            next_generation(db, document.collection)
            tidy_full_text(db)
        self.database.reclaim()
        return ids

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
        """The text of one page, counted from 1; None if there is none."""
        with self.database.read() as db:
            row = db.execute(
                "SELECT text FROM pages JOIN documents ON documents.seq = pages.document_seq"
                " WHERE documents.id = ? AND number = ?",
                (document_id, number),
            ).fetchone()
        return None if row is None else str(row["text"])

    def embeddings(self, collection: str) -> tuple[Ids, Embeddings]:
        """
        Every vector of the collection.

        Returns:
            ids (n,) int64 in ascending order, and (n, d) float32 unit rows; (0, 0) when empty.
        """
        with self.database.read() as db:
            rows = db.execute(
                "SELECT chunks.id, embedding FROM chunks"
                " JOIN documents ON documents.seq = chunks.document_seq"
                " WHERE collection = ? ORDER BY chunks.id",
                (collection,),
            ).fetchall()
        ids = ids_of(rows)
        vectors: Embeddings = np.frombuffer(
            b"".join(row["embedding"] for row in rows), dtype="<f4"
        ).reshape(len(rows), -1 if rows else 0)
        return ids, vectors

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

    def existing(self, ids: Ids) -> Ids:
        """Those of these chunks that exist: (n,) int64, ascending."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT id FROM chunks WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
                (json.dumps(ids.tolist()),),
            ).fetchall()
        return ids_of(rows)

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
