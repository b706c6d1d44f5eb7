"""Rows of files, stores and memberships: what is seen, counted, and left when something goes."""

import pytest

from orchestrator.domain import Document, DocumentId, DocumentStatus
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.holdings import Holdings
from orchestrator.retrieval.registry_rows import (
    FileCounts,
    Listing,
    NewStoreFile,
    UploadedFile,
    VectorStore,
)
from orchestrator.retrieval.store_file_records import StoreFileRecords
from orchestrator.retrieval.upload_records import UploadRecords
from orchestrator.retrieval.vector_store_records import VectorStoreRecords

ALL = Listing(100)


class Shelf:
    """Everything over one database, with short names."""

    def __init__(self, store):
        self.store = store
        self.uploads = UploadRecords(store.database)
        self.stores = VectorStoreRecords(store.database)
        self.files = StoreFileRecords(store.database)
        self.holdings = Holdings(store.database)

    def upload(self, name, *, owner="ann", size=10):
        self.uploads.add(UploadedFile(name, owner, f"{name}.pdf", "assistants", name, size, 1.0))
        return name

    def make(self, name, *files, owner="ann"):
        self.stores.add(VectorStore(name, owner, "", {}, 1.0, 1.0), [new(f) for f in files])
        return name

    def is_document(self, name, status=DocumentStatus.READY):
        """What the file became is a document in this state."""
        self.store.add(
            Document(DocumentId(f"doc-{name}"), "ann/s", f"{name}.pdf", name, 10, status, 1.0)
        )

    def take_in(self, name="", status=DocumentStatus.READY):
        """The file that waits longest becomes a document."""
        waiting = self.files.waiting()
        self.is_document(waiting.file_id, status)
        self.files.taken_in(waiting.seq)
        return waiting


def new(name, **attributes):
    return NewStoreFile(name, DocumentId(f"doc-{name}"), attributes)


@pytest.fixture
def shelf(tmp_path):
    store = DocumentStore(path=tmp_path / "t.db")
    store.open()
    yield Shelf(store)
    store.close()


def ids(files):
    return [getattr(file, "file_id", None) or file.id for file in files]


def test_lists_go_both_ways_and_on(shelf):
    """By the one before the first, or the one after the last; of an id that never was, nothing."""
    for name in "abcde":
        shelf.upload(name)
    shelf.upload("x", owner="bob")
    listed = lambda **how: ids(shelf.uploads.listed("ann", Listing(2, **how), purpose=None))  # noqa: E731 - asked often
    assert listed() == ["e", "d"]
    assert listed(after="d") == ["c", "b"]
    assert listed(ascending=True) == ["a", "b"]
    assert listed(ascending=True, after="b") == ["c", "d"]
    assert listed(ascending=True, before="c") == ["a", "b"]
    assert listed(before="b") == ["e", "d"]
    assert listed(after="x") == []
    assert listed(after="never") == []


@pytest.mark.parametrize(
    ("state", "seen"),
    [
        (DocumentStatus.QUEUED, "in_progress"),
        (DocumentStatus.EMBEDDING, "in_progress"),
        (DocumentStatus.READY, "completed"),
        (DocumentStatus.FAILED, "failed"),
    ],
)
def test_how_far_a_file_is_says_its_document(shelf, state, seen):
    """No state is kept twice."""
    shelf.make("s", shelf.upload("a"))
    assert shelf.files.get("s", "a").status == "in_progress"
    shelf.take_in(status=state)
    assert shelf.files.get("s", "a").status == seen
    assert getattr(shelf.files.counts("s"), seen) == 1
    assert shelf.files.any_completed("s") == (seen == "completed")


def test_a_document_that_is_gone_is_a_failure(shelf):
    """Somebody deleted it by its own id."""
    shelf.make("s", shelf.upload("a"))
    shelf.take_in()
    shelf.store.delete(DocumentId("doc-a"))
    assert shelf.files.get("s", "a").status == "failed"


def test_what_is_refused_gets_another_chance_when_it_is_added_again(shelf):
    """And what is well is not taken in twice."""
    shelf.make("s", shelf.upload("a"), shelf.upload("b"))
    shelf.files.refused(shelf.files.waiting().seq, code="no_text", message="Pictures.")
    shelf.take_in()
    assert shelf.files.get("s", "a").error_code == "no_text"
    shelf.files.add("s", [new("a"), new("b", year=1)], at=2.0, batch_id=None)
    assert shelf.files.waiting().file_id == "a"
    assert shelf.files.get("s", "a").error_code is None
    assert shelf.files.get("s", "b").status == "completed"
    assert shelf.files.get("s", "b").attributes == {"year": 1}


def test_what_is_marked_is_seen_no_more(shelf):
    """A file out of its store, a file out of all stores, a store."""
    shelf.make("s", *(shelf.upload(name) for name in "abc"))
    shelf.files.remove_soon(shelf.files.get("s", "a"))
    shelf.uploads.remove_soon("b")
    assert ids(shelf.files.listed("s", ALL)) == ["c"]
    assert shelf.uploads.get("ann", "b") is None
    assert shelf.uploads.get("ann", "a") is not None
    assert {file.document_id for file in shelf.files.leaving()} == {"doc-a", "doc-b"}
    shelf.stores.remove_soon("s")
    assert shelf.stores.get("ann", "s") is None
    assert shelf.files.waiting() is None
    assert shelf.files.leaving() == []
    shelf.stores.forget("s")
    assert shelf.uploads.leaving() == ["b"]
    shelf.uploads.forget("b")
    shelf.uploads.forget("a")
    assert shelf.uploads.exists("a")
    assert not shelf.uploads.exists("b")


def test_the_same_bytes_keep_their_document(shelf):
    """While one of the files that it was made of stays."""
    first, second = shelf.upload("a"), shelf.upload("b")
    same = [NewStoreFile(name, DocumentId("doc-a"), {}) for name in (first, second)]
    shelf.stores.add(VectorStore("s", "ann", "", {}, 1.0, 1.0), same)
    shelf.take_in()
    shelf.files.taken_in(shelf.files.waiting().seq)
    shelf.files.remove_soon(shelf.files.get("s", "a"))
    [leaving] = shelf.files.leaving()
    assert leaving.shared
    shelf.files.forget(leaving.seq)
    assert shelf.files.by_document("s", [DocumentId("doc-a")])["doc-a"].file_id == "b"
    shelf.files.remove_soon(shelf.files.get("s", "b"))
    assert not shelf.files.leaving()[0].shared


def test_one_that_comes_back_is_not_forgotten(shelf):
    """Added again between its mark and its end."""
    shelf.make("s", shelf.upload("a"))
    shelf.take_in()
    shelf.files.remove_soon(shelf.files.get("s", "a"))
    [leaving] = shelf.files.leaving()
    shelf.files.add("s", [new("a")], at=2.0, batch_id=None)
    shelf.files.forget(leaving.seq)
    assert shelf.files.get("s", "a") is not None


def test_a_cancelled_batch_keeps_what_is_done(shelf):
    """And what another batch brought, too."""
    shelf.make("s", *(shelf.upload(name) for name in "abc"))
    shelf.files.add("s", [new("a"), new("b")], at=2.0, batch_id="one")
    shelf.take_in()
    shelf.take_in(status=DocumentStatus.EMBEDDING)
    assert shelf.files.cancel_batch("one") == ["doc-b"]
    assert shelf.files.batch("s", "one").cancelled
    counts = shelf.files.counts("s", batch_id="one")
    assert counts == FileCounts(completed=1, cancelled=1, usage_bytes=10)
    assert counts.total == 2
    assert shelf.files.waiting().file_id == "c"
    assert shelf.files.batch("s", "two") is None


def test_what_an_owner_holds_counts_files_and_what_waits(shelf):
    """A file's bytes, and once more for each store that it waits for, as they will be on the disk."""
    shelf.upload("a", size=7)
    assert shelf.holdings.usage("ann") == (0, 7)
    shelf.make("s", "a")
    shelf.make("t", "a")
    assert shelf.holdings.usage("ann") == (2, 21)
    shelf.take_in()
    assert shelf.holdings.usage("ann") == (2, 24)
    assert shelf.holdings.usage("bob") == (0, 0)
    assert shelf.uploads.usage("ann") == (1, 7)


def test_stores_are_ones_own(shelf):
    """Named, changed and counted by their owner alone."""
    shelf.make("s")
    shelf.stores.change("s", name="papers", metadata=None, at=5.0)
    found = shelf.stores.get("ann", "s")
    assert (found.name, found.metadata, found.last_active_at) == ("papers", {}, 5.0)
    assert shelf.stores.get("bob", "s") is None
    assert ids(shelf.stores.listed("ann", ALL)) == ["s"]
    assert (shelf.stores.count("ann"), shelf.stores.count("bob")) == (1, 0)
