"""One index a collection: rebuilt from the store whenever it is not exactly right."""

import threading
import time

import numpy as np
import pytest

from orchestrator.domain import DocumentId
from orchestrator.errors import IndexNotReady, StoreUnavailable
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.vector_index import VectorIndex


@pytest.fixture
def make(store, tmp_path):
    made = []

    def make(**options):
        options = {"store": store, "wait_s": 10.0} | options
        made.append(CollectionIndexes(folder=tmp_path / "indexes", dimension=8, **options))
        return made[-1]

    yield make
    for indexes in made:
        indexes.close()


@pytest.fixture
def loads(monkeypatch):
    """How each load of a snapshot ended, in order."""
    outcomes = []
    load = VectorIndex.load

    def recorded(path, **options):
        index = load(path, **options)
        outcomes.append("snapshot" if index is not None else "rebuilt")
        return index

    monkeypatch.setattr(VectorIndex, "load", recorded)
    return outcomes


@pytest.fixture
def publish(library, chunk):
    """A document, published as ingestion does it."""

    def publish(indexes, name, *texts, replaces=None):
        rows = np.stack([chunk(n, text).embedding for n, text in enumerate(texts)])
        return indexes.change(
            "default", lambda: library.change(name, *texts, replaces=replaces), embeddings=rows
        )

    return publish


def delete(indexes, store, name):
    return indexes.change("default", lambda: store.delete(DocumentId(name)))


def in_memory(indexes):
    """Sizes by collection, once nothing is being loaded any more."""
    until_s = time.monotonic() + 10
    while indexes.building():
        assert time.monotonic() < until_s
        time.sleep(0.001)
    return indexes.sizes()


def test_indexes_are_loaded_before_anybody_asks(make, publish, loads):
    """After a start, in the background; and not let go at once, though nobody has searched them yet."""
    first = make()
    publish(first, "a", "one", "two")
    first.search("default", np.ones(8, dtype=np.float32), 1)
    first.save()
    again = make(idle_s=3600.0)
    assert again.load_soon() == ["default"]
    assert in_memory(again) == {"default": 2}
    assert loads[-1] == "snapshot"
    assert again.unload_idle() == 0


def test_what_would_take_much_memory_waits_until_it_is_searched(make, publish):
    """As many vectors as an exact index may have, and no more."""
    publish(make(), "a", "one", "two", "three")
    indexes = make(exact_up_to=2)
    assert indexes.load_soon() == []
    assert in_memory(indexes) == {}


def all_ids(indexes, vector, collection="default"):
    return sorted(indexes.search(collection, vector(0), 100)[0].tolist())


def test_the_first_search_builds_the_index(make, library, vector):
    """Without a snapshot the store's vectors are searched."""
    ids = library.publish("a", "one", "two")
    library.publish("b", "three", collection="other")
    indexes = make()
    assert all_ids(indexes, vector) == ids
    assert indexes.sizes() == {"default": 2}


def test_many_first_searches_load_once(make, library, vector, loads):
    """Loading is single-flight."""
    library.publish("a", "one", "two")
    indexes = make()
    barrier = threading.Barrier(8)

    def search():
        barrier.wait()
        indexes.search("default", vector(0), 5)

    threads = [threading.Thread(target=search) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["rebuilt"]


def test_published_and_deleted_chunks_are_followed(publish, make, library, store, vector):
    """`change` keeps a loaded index in step."""
    a = library.publish("a", "one")
    indexes = make()
    assert all_ids(indexes, vector) == a
    b = publish(indexes, "b", "two", "three").added
    assert all_ids(indexes, vector) == [*a, *b]
    delete(indexes, store, "a")
    assert all_ids(indexes, vector) == list(b)
    assert indexes.sizes() == {"default": 2}


def test_a_replaced_document_leaves_the_index_with_its_successors_arrival(
    publish, make, library, vector, monkeypatch
):
    """No search sees both documents, or neither."""
    library.publish("old", "one")
    indexes = make()
    all_ids(indexes, vector)
    seen = []
    swap = VectorIndex.swap

    def watched(index, **changes):
        seen.append(len(index))
        swap(index, **changes)
        seen.append(len(index))

    monkeypatch.setattr(VectorIndex, "swap", watched)
    change = publish(indexes, "new", "two", replaces=DocumentId("old"))
    assert all_ids(indexes, vector) == list(change.added)
    assert seen == [1, 1]


def test_a_change_that_fails_changes_nothing(make, library, vector):
    """What the transaction raises is raised, and the index goes on."""
    ids = library.publish("a", "one")
    indexes = make()
    all_ids(indexes, vector)

    def fail():
        raise StoreUnavailable("disk gone")

    with pytest.raises(StoreUnavailable, match="disk gone"):
        indexes.change("default", fail)
    assert indexes.change("default", lambda: None) is None
    assert all_ids(indexes, vector) == ids


def test_an_index_that_cannot_follow_is_built_anew(publish, make, library, vector, monkeypatch):
    """The store has the change: memory that runs out costs a rebuild, not the document."""
    ids = library.publish("a", "one")
    indexes = make()
    all_ids(indexes, vector)
    with monkeypatch.context() as patched:
        patched.setattr(VectorIndex, "swap", no_memory)
        more = publish(indexes, "b", "two").added
    assert indexes.sizes() == {}
    assert all_ids(indexes, vector) == [*ids, *more]


def no_memory(*_args, **_options):
    raise MemoryError


class SlowStore:
    """The store, whose vectors come when the test lets them."""

    def __init__(self, store):
        self._store = store
        self.may_go = threading.Event()

    def __getattr__(self, name):
        return getattr(self._store, name)

    def embeddings(self, *args, **options):
        self.may_go.wait(10)
        return self._store.embeddings(*args, **options)


@pytest.fixture
def slow(store):
    slow = SlowStore(store)
    yield slow
    slow.may_go.set()


def test_a_search_does_not_wait_for_a_long_rebuild(make, slow, library, vector):
    """It is told how far the index is, and finds everything later; one thread builds it."""
    ids = library.publish("a", "one", "two")
    indexes = make(store=slow, wait_s=0.05)
    for _ in range(3):
        with pytest.raises(IndexNotReady, match="0 of 2 vectors"):
            indexes.search("default", vector(0), 5)
    assert indexes.building() == {"default": (0, 2)}
    slow.may_go.set()
    until_built(indexes)
    assert all_ids(indexes, vector) == ids


def test_what_changes_during_a_rebuild_is_in_the_index(publish, make, slow, library, store, vector):
    """Documents that come and go while it is being built are found, or not, as they should be."""
    library.publish("gone", "one")
    kept = library.publish("kept", "two")
    indexes = make(store=slow, wait_s=0.01)
    with pytest.raises(IndexNotReady):
        indexes.search("default", vector(0), 5)
    delete(indexes, store, "gone")
    late = publish(indexes, "late", "three").added
    slow.may_go.set()
    until_built(indexes)
    assert all_ids(indexes, vector) == [*kept, *late]


def test_a_rebuild_ends_when_it_is_closed(make, slow, library, vector):
    """Nobody waits for it at the end of the program."""
    library.publish("a", "one")
    indexes = make(store=slow, wait_s=0.01)
    with pytest.raises(IndexNotReady):
        indexes.search("default", vector(0), 5)
    indexes.close()
    slow.may_go.set()
    with pytest.raises(IndexNotReady, match="closed"):
        indexes.search("default", vector(0), 5)


def test_a_cold_index_leaves_the_memory_and_comes_back(make, library, vector, loads):
    """Nobody searched it for an hour: its snapshot is loaded by the next search."""
    ids = library.publish("a", "one", "two")
    clock = [0.0]
    indexes = make(idle_s=3600, clock=lambda: clock[0])
    all_ids(indexes, vector)
    clock[0] = 3599
    assert indexes.unload_idle() == 0
    clock[0] = 3601
    assert indexes.unload_idle() == 1
    assert indexes.sizes() == {}
    assert all_ids(indexes, vector) == ids
    assert loads == ["rebuilt", "snapshot"]


def test_a_large_collection_is_put_into_lists_and_a_small_one_back(
    publish, make, library, store, vector, tmp_path
):
    """Built anew beside the searches when its kind no longer fits, and everything is still found."""
    ids = library.publish("a", *(f"text {n}" for n in range(20)))
    indexes = make(exact_up_to=50)
    assert all_ids(indexes, vector) == ids
    assert indexes.renew_outgrown() == 0
    more = publish(indexes, "b", *(f"other {n}" for n in range(100))).added
    assert indexes.renew_outgrown() == 1
    until_built(indexes)
    assert not indexes._slots["default"].index.exact
    for part in (ids, more[:50]):
        found = indexes.search("default", vector(0), 200, allowed=np.array(part))[0]
        assert sorted(found.tolist()) == list(part)
    assert indexes.save() == 1
    again = make(exact_up_to=50)
    again.search("default", vector(0), 1)
    assert not again._slots["default"].index.exact
    delete(again, store, "b")
    assert again.renew_outgrown() == 1
    until_built(again)
    assert again._slots["default"].index.exact
    assert all_ids(again, vector) == ids


def test_a_snapshot_of_the_wrong_kind_is_not_kept(make, library, vector, loads):
    """The limit was lowered: built anew once, saved although nothing changed, and loaded after that."""
    library.publish("a", *(f"text {n}" for n in range(40)))
    exact = make()
    all_ids(exact, vector)
    assert exact.save() == 1
    lists = make(exact_up_to=10)
    lists.search("default", vector(0), 1)
    assert lists.save() == 1
    again = make(exact_up_to=10)
    again.search("default", vector(0), 1)
    assert not again._slots["default"].index.exact
    assert again.save() == 0
    assert loads == ["rebuilt", "snapshot", "snapshot"]


def until_built(indexes):
    until = time.monotonic() + 10
    while indexes.building() and time.monotonic() < until:
        time.sleep(0.01)


def test_an_index_is_saved_when_its_collection_is_at_rest(publish, make, library, vector):
    """A bulk upload is not followed by a snapshot a document."""
    library.publish("a", "one")
    clock = [100.0]
    indexes = make(clock=lambda: clock[0])
    all_ids(indexes, vector)
    publish(indexes, "b", "two")
    assert indexes.save(quiet_s=2) == 0
    clock[0] += 2
    assert indexes.save(quiet_s=2) == 1


def test_a_snapshot_spares_the_rebuild(make, library, vector, loads):
    """What was saved is loaded, as long as nothing changed."""
    ids = library.publish("a", "one", "two")
    first = make()
    all_ids(first, vector)
    assert first.save() == 1
    assert first.save() == 0
    assert all_ids(make(), vector) == ids
    assert loads == ["rebuilt", "snapshot"]


def test_a_change_after_the_snapshot_means_a_rebuild(make, library, vector, loads):
    """A crash between publish and save costs a rebuild and nothing else."""
    a = library.publish("a", "one")
    first = make()
    all_ids(first, vector)
    first.save()
    b = library.publish("b", "two")
    assert all_ids(make(), vector) == a + b
    assert loads == ["rebuilt", "rebuilt"]


def test_a_torn_snapshot_means_a_rebuild(make, library, vector, tmp_path, loads):
    """A damaged file is not noticed by anyone who searches."""
    ids = library.publish("a", "one")
    first = make()
    all_ids(first, vector)
    first.save()
    (snapshot,) = (tmp_path / "indexes").glob("*.faiss")
    snapshot.write_bytes(snapshot.read_bytes()[:40])
    assert all_ids(make(), vector) == ids
    assert loads == ["rebuilt", "rebuilt"]


def test_an_index_out_of_step_is_never_saved(make, library, vector, tmp_path):
    """A publish that the index was not told of does not get into a snapshot as if it had."""
    library.publish("a", "one")
    indexes = make()
    all_ids(indexes, vector)
    ids = library.publish("b", "two")
    assert indexes.save() == 0
    assert not list(tmp_path.glob("indexes/*.faiss"))
    assert ids[0] in all_ids(indexes, vector)
    assert indexes.save() == 1


def test_an_emptied_collection_gives_memory_and_disk_back(make, library, store, vector, tmp_path):
    """With the last document go the index and its snapshot."""
    library.publish("a", "one")
    indexes = make()
    all_ids(indexes, vector)
    indexes.save()
    delete(indexes, store, "a")
    assert indexes.sizes() == {}
    assert not list((tmp_path / "indexes").iterdir())
    assert all_ids(indexes, vector) == []
    again = library.publish("b", "two")
    assert all_ids(indexes, vector) == again


def test_vectors_of_another_model_are_refused(store, library, tmp_path, vector):
    """The message says what is stored and what to do."""
    library.publish("a", "one")
    indexes = CollectionIndexes(folder=tmp_path, store=store, dimension=384, wait_s=10)
    with pytest.raises(StoreUnavailable, match=r"8 numbers each.*384"):
        indexes.search("default", np.ones(384, dtype=np.float32), 5)
    indexes.close()
