"""The document store: what is acknowledged stays, what is half done never shows."""

import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.domain import Document, DocumentId, DocumentStatus, Page
from orchestrator.errors import DocumentNotFound, StorageFull, StoreUnavailable
from orchestrator.retrieval.database import _SCHEMAS, SCHEMA_VERSION
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.job_store import JobStore


@pytest.fixture
def document():
    return Document(
        id=DocumentId("a"),
        collection="default",
        filename="a.pdf",
        sha256="sha of a",
        size_bytes=10,
        status=DocumentStatus.QUEUED,
        created_at=5.0,
    )


def test_a_document_comes_back_as_it_was_added(store, document):
    """What was added is what is stored."""
    assert store.add(document) == (document, True)
    assert store.get(document.id) == document


def test_the_same_bytes_give_the_same_document(store, document):
    """A second upload of the same bytes changes nothing and says so."""
    store.add(document)
    again = replace(document, id=DocumentId("b"), filename="other.pdf")
    assert store.add(again) == (document, False)
    assert store.counts().documents == 1


def test_the_same_bytes_in_another_collection_are_another_document(store, document):
    """Collections do not share documents."""
    store.add(document)
    other = replace(document, id=DocumentId("b"), collection="other")
    assert store.add(other) == (other, True)


def test_a_document_without_a_time_gets_the_stores(store, document):
    """`created_at` is filled from the clock."""
    stored, _ = store.add(replace(document, created_at=0.0))
    assert stored.created_at == 1000.0


def test_documents_are_listed_newest_first_and_paged(store, library):
    """`after` continues where the page before ended."""
    for name in "abcd":
        library.queue(name, collection="x" if name == "b" else "default")
    first = store.documents(limit=2)
    rest = store.documents(limit=2, after=first[-1].id)
    assert [d.id for d in first + rest] == ["d", "c", "b", "a"]
    assert [d.id for d in store.documents(collection="x")] == ["b"]
    with pytest.raises(DocumentNotFound):
        store.documents(after=DocumentId("gone"))


def test_publish_makes_everything_visible_at_once(store, library):
    """A published document is READY, with its pages, chunks and vectors."""
    ids = library.publish("a", "first page", "second page")
    stored = store.get(DocumentId("a"))
    assert (stored.status, stored.pages, stored.chunks) == (DocumentStatus.READY, 2, 2)
    assert store.page_text(DocumentId("a"), 2) == "second page"
    assert store.page_text(DocumentId("a"), 3) is None
    found, embeddings = store.embeddings("default")
    assert found.tolist() == ids
    assert embeddings.shape == (2, 8)
    assert embeddings.dtype == np.float32
    assert store.counts().by_status == {"ready": 1}


def test_publish_twice_gives_the_same_chunks(store, library):
    """A document is published exactly once, whoever tries again."""
    ids = library.publish("a", "text")
    generation = store.generation("default")
    assert library.publish("a", "text") == ids
    assert store.counts().chunks == 1
    assert store.generation("default") == generation


def test_a_failing_publish_leaves_nothing(store, library, chunk):
    """Chunks that cannot be stored take their pages with them."""
    library.queue("a")
    twice = [chunk(0, "same ordinal"), chunk(0, "same ordinal")]
    with pytest.raises(StoreUnavailable, match="UNIQUE"):
        store.publish(DocumentId("a"), pages=[Page(1, "text")], chunks=twice, warning=None)
    assert store.page_text(DocumentId("a"), 1) is None
    assert store.counts().chunks == 0
    assert store.get(DocumentId("a")).status is DocumentStatus.QUEUED


def test_publish_after_delete_is_refused(store, library):
    """A document deleted while it was read does not come back."""
    library.queue("a")
    assert store.delete(DocumentId("a")).removed == ()
    with pytest.raises(DocumentNotFound):
        store.publish(DocumentId("a"), pages=[], chunks=[], warning=None)


def test_delete_and_publish_at_the_same_time_leave_no_orphan(store, library, chunk):
    """Whoever comes first, no chunk outlives its document."""
    outcomes = set()
    for attempt in range(30):
        document_id = library.queue(f"d{attempt}")
        barrier = threading.Barrier(2)

        def publish(document_id=document_id, barrier=barrier):
            barrier.wait()
            try:
                chunks = [chunk(n, f"text {n}") for n in range(5)]
                store.publish(document_id, pages=[Page(1, "t")], chunks=chunks, warning=None)
                outcomes.add("published first")
            except DocumentNotFound:
                outcomes.add("deleted first")

        thread = threading.Thread(target=publish)
        thread.start()
        barrier.wait()
        assert store.delete(document_id) is not None
        thread.join()
    assert outcomes
    assert store.counts().documents == 0
    assert store.counts().chunks == 0
    with store.database.read() as db:
        assert db.execute("SELECT count(*) FROM pages").fetchone()[0] == 0
        match = "SELECT count(*) FROM chunks_fts WHERE chunks_fts MATCH 'text'"
        assert db.execute(match).fetchone()[0] == 0


def test_delete_says_which_chunks_went(store, library):
    """The ids are for the vector index; an unknown document gives None."""
    ids = library.publish("a", "one", "two")
    library.publish("b", "three")
    assert list(store.delete(DocumentId("a")).removed) == ids
    assert store.delete(DocumentId("a")) is None
    assert store.counts().chunks == 1


def test_deleting_gives_the_disk_back(store, library):
    """The file is small again after a big document is gone."""
    library.publish("keep", "small")
    library.publish("big", *("word " * 20_000 for _ in range(20)))
    with store.database.write() as db:
        (before,) = db.execute("PRAGMA page_count").fetchone()
    store.delete(DocumentId("big"))
    with store.database.write() as db:
        (after,) = db.execute("PRAGMA page_count").fetchone()
    assert after < before / 5


def test_the_generation_grows_with_each_change(store, library):
    """Publish and delete each count, in their own collection only."""
    assert store.generation("default") == 0
    library.publish("a", "one")
    library.publish("b", "two", collection="other")
    assert (store.generation("default"), store.generation("other")) == (1, 1)
    store.delete(DocumentId("a"))
    assert (store.generation("default"), store.generation("other")) == (2, 1)


def test_a_collection_is_remembered_when_it_is_empty(store, library):
    """An emptied collection exists, and counts no documents."""
    library.publish("a", "one", collection="x")
    assert store.collections() == {"x": 1}
    store.delete(DocumentId("a"))
    assert store.collections() == {}
    assert store.has_collection("x")
    assert not store.has_collection("y")


def test_a_replaced_document_goes_in_the_same_moment(store, library):
    """Either the old document is searched or the new one, never both and never none."""
    old = library.publish("old", "the gate is green", "more of it")
    change = library.change("new", "the gate is blue", replaces=DocumentId("old"))
    assert (list(change.removed), change.replaced) == (old, "old")
    assert store.get(DocumentId("old")) is None
    assert store.chunk_ids(collection="default").tolist() == list(change.added)
    with store.database.read() as db:
        match = "SELECT rowid FROM chunks_fts WHERE chunks_fts MATCH 'gate'"
        assert [row[0] for row in db.execute(match)] == list(change.added)
        assert db.execute("SELECT count(*) FROM pages").fetchone()[0] == 1


def test_a_document_to_be_replaced_may_be_gone_already(store, library):
    """Its successor is published all the same."""
    library.publish("old", "text")
    store.delete(DocumentId("old"))
    change = library.change("new", "other text", replaces=DocumentId("old"))
    assert (len(change.added), change.removed, change.replaced) == (1, (), None)


def test_pages_of_a_document_on_its_way_are_not_shown(store, library, jobs):
    """A document is visible whole or not at all."""
    library.queue("a")
    jobs.stage_pages(DocumentId("a"), [Page(1, "half read")])
    assert store.page_text(DocumentId("a"), 1) is None
    assert store.documents(status=DocumentStatus.READY) == []


def test_passages_are_scored_by_cosine(store, library, vector):
    """A chunk's score is the cosine with the question; chunks that are gone are left out."""
    ids = library.publish("a", "one", "two")
    _, embeddings = store.embeddings("default")
    query = vector(3)
    found = store.passages([*ids, 999], query)
    assert [found[i].text for i in ids] == ["one", "two"]
    assert [found[i].score for i in ids] == pytest.approx((embeddings @ query).tolist(), abs=1e-6)
    assert found[ids[1]].filename == "a.pdf"
    assert found[ids[1]].page == 2


def test_chunk_ids_stay_in_their_collection(store, library):
    """A document of another collection adds nothing."""
    mine = library.publish("a", "one")
    library.publish("b", "two")
    library.publish("c", "three", collection="other")
    a, c = DocumentId("a"), DocumentId("c")
    assert store.chunk_ids(collection="default", document_ids=[a, c]).tolist() == mine
    assert len(store.chunk_ids(collection="default")) == 2


def test_text_that_is_no_unicode_is_stored_with_replacements(store, library, chunk):
    """Half surrogates and NULs never reach SQLite, and offsets stay right."""
    library.queue("a")
    odd = "a\ud800b\0c"
    chunks = [chunk(0, odd, heading="\udfff")]
    store.publish(DocumentId("a"), pages=[Page(1, odd)], chunks=chunks, warning="\ud800")
    assert store.page_text(DocumentId("a"), 1) == "a?b\ufffdc"
    assert store.get(DocumentId("a")).warning == "?"


def test_prompt_tokens_can_be_counted_again(store, library, vector):
    """Another engine's tokenizer gives other numbers, for every chunk."""
    ids = library.publish("a", *(f"text {n}" for n in range(1200)))
    assert store.recount_prompt_tokens(lambda text: len(text) + 100) == 1200
    assert store.passages(ids[-1:], vector(0))[ids[-1]].prompt_tokens == len("text 1199") + 100


def test_meta_keeps_the_last_value(store):
    """A key has one value."""
    assert store.get_meta("tokenizer") is None
    store.set_meta("tokenizer", "one")
    store.set_meta("tokenizer", "two")
    assert store.get_meta("tokenizer") == "two"


def test_everything_is_there_after_opening_again(store, library):
    """The file is the truth."""
    library.publish("a", "one")
    store.close()
    reopened = DocumentStore(path=store.database.path)
    reopened.open()
    reopened.check()
    assert reopened.get(DocumentId("a")).status is DocumentStatus.READY
    reopened.close()


def test_a_closed_store_says_so(store):
    """Using a closed store is an error of the tree, not of SQLite."""
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.check()
    with pytest.raises(StoreUnavailable, match="closed"):
        store.set_meta("a", "b")


def test_a_store_that_cannot_be_searched_is_not_well(store, library):
    """Reading the rest of the file proves nothing of the index of its words."""
    library.publish("a", "one")
    store.check()
    with store.database.write() as db:
        db.execute("ALTER TABLE chunks_fts RENAME TO lost")
    with pytest.raises(StoreUnavailable, match="chunks_fts"):
        store.check()


def test_a_file_of_the_first_version_is_taken_along(tmp_path):
    """Its unfinished documents become work to do; its finished ones stay as they are."""
    path = tmp_path / "documents.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(f"{_SCHEMAS[0]} PRAGMA user_version = 1;")
    connection.execute("INSERT INTO collections (name) VALUES ('default')")
    for name, status in (("a", "ready"), ("b", "parsing"), ("c", "failed")):
        connection.execute(
            "INSERT INTO documents (id, collection, filename, sha256, size_bytes, status,"
            " created_at, pages, pages_done, chunks) VALUES (?, 'default', 'x', ?, 1, ?, 1, 1, 0, 0)",
            (name, name, status),
        )
    connection.commit()
    connection.close()
    store = DocumentStore(path=path)
    store.open()
    jobs = JobStore(store.database)
    assert [d.id for d in store.documents()] == ["c", "b", "a"]
    assert jobs.claim("me", lease_s=9).document_id == "b"
    assert jobs.claim("me", lease_s=9) is None
    store.close()


def test_a_newer_schema_is_refused(store):
    """A file of a newer version is left alone."""
    store.close()
    connection = sqlite3.connect(store.database.path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreUnavailable, match="newer version"):
        store.open()
    store.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    """Garbage in place of the store is an error that names the file."""
    path = tmp_path / "documents.sqlite"
    path.write_bytes(b"this is no database" * 100)
    store = DocumentStore(path=path)
    with pytest.raises(StoreUnavailable, match="not a database"):
        store.open()
    store.close()


def test_a_full_disk_is_its_own_error(store, library, chunk):
    """SQLite's "disk is full" becomes StorageFull, and the store goes on."""
    library.queue("a")
    with store.database.write() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    store.database._writer.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone()
    chunks = [chunk(n, "long text " * 500) for n in range(50)]
    with pytest.raises(StorageFull, match="full"):
        store.publish(DocumentId("a"), pages=[], chunks=chunks, warning=None)
    assert store.counts().chunks == 0
    store.database._writer.execute("PRAGMA max_page_count = 1000000").fetchone()
    change = store.publish(DocumentId("a"), pages=[], chunks=chunks, warning=None)
    assert len(change.added) == 50


_KILLED_WHILE_PUBLISHING = """
import os, signal, sys
from pathlib import Path
import numpy as np
from orchestrator.domain import Chunk, Document, DocumentId, DocumentStatus, Page, StoredChunk
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.job_store import JobStore

def chunks():
    for n in range(2000):
        if n == 1500:
            os.kill(os.getpid(), signal.SIGKILL)
        chunk = Chunk(n, "some text " * 50, 1, 1, 0, 10, "", 2)
        yield StoredChunk(chunk, np.ones(384, dtype=np.float32), 2)

store = DocumentStore(path=Path(sys.argv[1]))
store.open()
document = Document(DocumentId("a"), "default", "a.pdf", "sha", 1, DocumentStatus.QUEUED, 1.0)
store.add(document)
jobs = JobStore(store.database)
jobs.show(document.id, status=DocumentStatus.EMBEDDING)
store.publish(document.id, pages=[Page(1, "x" * 100_000)], chunks=chunks(), warning=None)
"""


def test_a_process_killed_while_it_publishes_leaves_the_document_unfinished(tmp_path):
    """After kill -9 in the middle there is the acknowledged document, and nothing of the rest."""
    path = tmp_path / "documents.sqlite"
    program = [sys.executable, "-c", _KILLED_WHILE_PUBLISHING, str(path)]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    store = DocumentStore(path=path)
    store.open()
    assert [d.status for d in store.documents()] == [DocumentStatus.EMBEDDING]
    assert JobStore(store.database).claim("next", lease_s=9).document_id == "a"
    assert store.counts().chunks == 0
    assert store.page_text(DocumentId("a"), 1) is None
    assert store.generation("default") == 0
    store.close()
