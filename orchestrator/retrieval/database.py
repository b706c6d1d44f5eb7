"""
The SQLite file: its schema, its connections, and what its errors mean to us.

One connection writes, behind a lock; reads go over a pool of connections, and in WAL mode neither
waits for the other. Every acknowledged write is on disk (`synchronous=FULL`).
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import OrchestratorError, StorageFull, StoreUnavailable

_BUSY_TIMEOUT_S = 5.0
_WAL_LIMIT_BYTES = 64 * 1024 * 1024

_SCHEMA_1 = """
CREATE TABLE collections (
    id          INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    generation  INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE documents (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT NOT NULL UNIQUE,
    collection     TEXT NOT NULL REFERENCES collections (name),
    filename       TEXT NOT NULL,
    sha256         TEXT NOT NULL,
    size_bytes     INTEGER NOT NULL,
    status         TEXT NOT NULL,
    created_at     REAL NOT NULL,
    pages          INTEGER NOT NULL,
    pages_done     INTEGER NOT NULL,
    chunks         INTEGER NOT NULL,
    error_code     TEXT,
    error_message  TEXT,
    warning        TEXT,
    UNIQUE (collection, sha256)
);
CREATE INDEX documents_by_status ON documents (status);

CREATE TABLE pages (
    document_seq  INTEGER NOT NULL REFERENCES documents (seq),
    number        INTEGER NOT NULL,
    text          TEXT NOT NULL,
    PRIMARY KEY (document_seq, number)
) WITHOUT ROWID;

CREATE TABLE chunks (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    document_seq   INTEGER NOT NULL REFERENCES documents (seq),
    ordinal        INTEGER NOT NULL,
    page           INTEGER NOT NULL,
    page_end       INTEGER NOT NULL,
    char_start     INTEGER NOT NULL,
    char_end       INTEGER NOT NULL,
    heading        TEXT NOT NULL,
    text           TEXT NOT NULL,
    num_tokens     INTEGER NOT NULL,
    prompt_tokens  INTEGER NOT NULL,
    embedding      BLOB NOT NULL,
    UNIQUE (document_seq, ordinal)
);

CREATE TABLE meta (
    key    TEXT PRIMARY KEY,
    value  TEXT NOT NULL
) WITHOUT ROWID;

-- `place` names the chunk's collection and document as words, so that a search is narrowed inside
-- the full-text index: to look each hit up in `chunks` costs twice as much as the whole search.
CREATE VIEW chunk_words AS
    SELECT chunks.id, 'c' || collections.id || ' d' || documents.seq AS place,
        documents.filename, chunks.heading, chunks.text
    FROM chunks
    JOIN documents ON documents.seq = chunks.document_seq
    JOIN collections ON collections.name = documents.collection;

CREATE VIRTUAL TABLE chunks_fts USING fts5 (
    place, filename, heading, text,
    content = 'chunk_words', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);

CREATE TRIGGER chunk_added AFTER INSERT ON chunks BEGIN
    INSERT INTO chunks_fts (rowid, place, filename, heading, text)
    SELECT id, place, filename, heading, text FROM chunk_words WHERE id = new.id;
END;

CREATE TRIGGER chunk_removed BEFORE DELETE ON chunks BEGIN
    INSERT INTO chunks_fts (chunks_fts, rowid, place, filename, heading, text)
    SELECT 'delete', id, place, filename, heading, text FROM chunk_words WHERE id = old.id;
END;
"""

_SCHEMA_2 = """
ALTER TABLE documents ADD COLUMN replaces TEXT;
ALTER TABLE pages ADD COLUMN flaw TEXT;

-- One row a document on its way. Failures, and leases that nobody gave back, count since the document
-- last came further.
CREATE TABLE jobs (
    document_seq   INTEGER PRIMARY KEY REFERENCES documents (seq),
    failures       INTEGER NOT NULL DEFAULT 0,
    interruptions  INTEGER NOT NULL DEFAULT 0,
    due_at         REAL NOT NULL DEFAULT 0,
    owner          TEXT,
    leased_until   REAL NOT NULL DEFAULT 0
);
INSERT INTO jobs (document_seq)
    SELECT seq FROM documents WHERE status IN ('queued', 'parsing', 'embedding');

-- What is embedded already of a document on its way.
CREATE TABLE staged_chunks (
    document_seq   INTEGER NOT NULL REFERENCES documents (seq),
    ordinal        INTEGER NOT NULL,
    text_sha256    BLOB NOT NULL,
    prompt_tokens  INTEGER NOT NULL,
    embedding      BLOB NOT NULL,
    PRIMARY KEY (document_seq, ordinal)
);
"""

_SCHEMA_3 = """
-- Files as OpenAI's clients upload them, the stores that they put them into, and what is in which.
-- What is `leaving` is to go: whoever asks does not see it any more.
CREATE TABLE uploads (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    owner       TEXT NOT NULL,
    filename    TEXT NOT NULL,
    purpose     TEXT NOT NULL,
    sha256      TEXT NOT NULL,
    size_bytes  INTEGER NOT NULL,
    created_at  REAL NOT NULL,
    leaving     INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX uploads_by_owner ON uploads (owner);

CREATE TABLE vector_stores (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    owner           TEXT NOT NULL,
    name            TEXT NOT NULL,
    metadata        TEXT NOT NULL,
    created_at      REAL NOT NULL,
    last_active_at  REAL NOT NULL,
    leaving         INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX vector_stores_by_owner ON vector_stores (owner);

CREATE TABLE file_batches (
    id          TEXT PRIMARY KEY,
    store_seq   INTEGER NOT NULL REFERENCES vector_stores (seq),
    created_at  REAL NOT NULL,
    cancelled   INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX file_batches_by_store ON file_batches (store_seq);

-- `state` is waiting, attached, failed, cancelled or leaving; how far an attached one is, its document
-- says, whose id is known from the start: it is made of the collection and the bytes.
CREATE TABLE store_files (
    seq            INTEGER PRIMARY KEY AUTOINCREMENT,
    store_seq      INTEGER NOT NULL REFERENCES vector_stores (seq),
    upload_seq     INTEGER NOT NULL REFERENCES uploads (seq),
    document_id    TEXT NOT NULL,
    attributes     TEXT NOT NULL,
    created_at     REAL NOT NULL,
    batch_id       TEXT,
    state          TEXT NOT NULL DEFAULT 'waiting',
    error_code     TEXT,
    error_message  TEXT,
    UNIQUE (store_seq, upload_seq)
);
CREATE INDEX store_files_by_upload ON store_files (upload_seq);
CREATE INDEX store_files_by_document ON store_files (document_id);
CREATE INDEX store_files_by_batch ON store_files (batch_id) WHERE batch_id IS NOT NULL;
CREATE INDEX store_files_waiting ON store_files (seq) WHERE state = 'waiting';

CREATE VIEW store_members AS
    SELECT m.seq, s.id AS store_id, u.id AS file_id, u.filename, u.size_bytes, m.document_id,
        m.attributes, m.created_at, m.batch_id,
        CASE
            WHEN m.state = 'waiting' THEN 'in_progress'
            WHEN m.state <> 'attached' THEN m.state
            WHEN d.status = 'ready' THEN 'completed'
            WHEN d.status IS NULL OR d.status = 'failed' THEN 'failed'
            ELSE 'in_progress'
        END AS status,
        coalesce(m.error_code, d.error_code) AS error_code,
        coalesce(m.error_message, d.error_message) AS error_message
    FROM store_files AS m
    JOIN vector_stores AS s ON s.seq = m.store_seq
    JOIN uploads AS u ON u.seq = m.upload_seq
    LEFT JOIN documents AS d ON d.id = m.document_id
    WHERE m.state <> 'leaving' AND NOT s.leaving AND NOT u.leaving;
"""

_SCHEMAS = (_SCHEMA_1, _SCHEMA_2, _SCHEMA_3)
"""What each version adds to the one before; a new file goes through all of them."""

SCHEMA_VERSION = len(_SCHEMAS)


class Database:
    """The connections to one SQLite file, for use from any thread."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        self._write_lock = threading.Lock()
        self._pool_lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._idle: list[sqlite3.Connection] = []
        self._closed = True

    def open(self) -> None:
        """
        Open the file, and create what it lacks.

        Raises:
            StorageFull: If there is no room for it.
            StoreUnavailable: If it cannot be opened, is damaged, or is from a newer version.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StoreUnavailable(
                f"The folder {self.path.parent} cannot be made: {exc.strerror}. "
                "Check the disk and the folder's owner."
            ) from exc
        with _translated(self.path):
            self._writer = self._connect()
            self._closed = False
            self._prepare(self._writer)

    def close(self) -> None:
        """Close every connection; one that is in use is closed when it comes back."""
        with self._write_lock, self._pool_lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()
            if self._writer is not None:
                # The log is folded into the file, so that a copy of the file alone is whole.
                with suppress(sqlite3.Error):
                    self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._writer.close()
                self._writer = None

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """
        One transaction: all of the block, on disk, or nothing of it.

        Raises:
            StorageFull: If the disk is full.
            StoreUnavailable: If the file cannot be written.
        """
        with self._write_lock, _translated(self.path):
            connection = self._writer
            if connection is None:
                raise self._not_open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # A full disk has rolled back by itself already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """
        A connection that sees one state of the file for the whole block.

        Raises:
            StoreUnavailable: If the file cannot be read.
        """
        with _translated(self.path):
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                try:
                    yield connection
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
            finally:
                self._give_back(connection)

    def reclaim(self) -> None:
        """Give the pages that deletions freed back to the disk."""
        with self._write_lock, _translated(self.path):
            if self._writer is not None:
                # As a script: each step frees one page, and `execute` takes one step only.
                self._writer.executescript("PRAGMA incremental_vacuum")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreUnavailable(
                f"{self.path} was written by a newer version (schema {version}, this program knows "
                f"up to {SCHEMA_VERSION}). Run that version, or point to another data folder."
            )
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}").fetchone()
        for number, schema in enumerate(_SCHEMAS[version:], start=version + 1):
            connection.executescript(
                f"BEGIN IMMEDIATE; {schema} PRAGMA user_version = {number}; COMMIT;"
            )

    def _borrow(self) -> sqlite3.Connection:
        with self._pool_lock:
            if self._closed:
                raise self._not_open()
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pool_lock:
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _not_open(self) -> StoreUnavailable:
        return StoreUnavailable(f"The document store {self.path} is closed: shutting down.")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors, and the file system's, as ours."""
    try:
        yield
    except OrchestratorError:
        raise
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFull(
                f"The disk that holds {path} is full. Delete documents, or make room, and try again."
            ) from exc
        raise StoreUnavailable(
            f"The document store {path} cannot be used: {exc}. Check the disk and the folder's owner."
        ) from exc
