"""One index a collection: rebuilt from the store whenever it is not exactly right."""

import threading

import numpy as np
import pytest

from orchestrator.domain import DocumentId
from orchestrator.errors import StoreUnavailable
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.vector_index import VectorIndex


@pytest.fixture
def make(store, tmp_path):
    return lambda: CollectionIndexes(folder=tmp_path / "indexes", store=store, dimension=8)


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


def test_published_and_deleted_chunks_are_followed(make, library, store, vector):
    """`add` and `remove` keep a loaded index in step."""
    a = library.publish("a", "one")
    indexes = make()
    assert all_ids(indexes, vector) == a
    b = library.publish("b", "two", "three")
    _, embeddings = store.embeddings("default")
    indexes.add("default", np.array(b), embeddings[1:])
    assert all_ids(indexes, vector) == a + b
    indexes.remove("default", np.array(store.delete(DocumentId("a"))))
    assert all_ids(indexes, vector) == b


def test_an_add_that_comes_after_the_deletion_leaves_no_ghost(make, library, store, vector):
    """Chunks deleted before they were added to the index are not found."""
    library.publish("a", "one")
    indexes = make()
    all_ids(indexes, vector)
    late = library.publish("b", "two")
    _, embeddings = store.embeddings("default")
    indexes.remove("default", np.array(store.delete(DocumentId("b"))))
    indexes.add("default", np.array(late), embeddings[1:])
    assert indexes.sizes() == {"default": 1}


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
    indexes.remove("default", np.array(store.delete(DocumentId("a"))))
    assert indexes.sizes() == {}
    assert not list((tmp_path / "indexes").iterdir())
    assert all_ids(indexes, vector) == []
    again = library.publish("b", "two")
    assert all_ids(indexes, vector) == again


def test_vectors_of_another_model_are_refused(store, library, tmp_path, vector):
    """The message says what is stored and what to do."""
    library.publish("a", "one")
    indexes = CollectionIndexes(folder=tmp_path, store=store, dimension=384)
    with pytest.raises(StoreUnavailable, match=r"8 numbers each.*384"):
        indexes.search("default", np.ones(384, dtype=np.float32), 5)
