"""Search by meaning: exact, filtered, and snapshots that are either whole or not used."""

import json
import threading

import numpy as np
import psutil
import pytest

from orchestrator.retrieval.vector_index import VectorIndex

DIMENSION = 16


def unit_rows(count, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def filled():
    index = VectorIndex(dimension=DIMENSION)
    index.add(np.arange(100, 200), unit_rows(100))
    return index


def test_search_is_exact(filled):
    """The hits are those of a full comparison, best first, with the cosine as score."""
    rows, query = unit_rows(100), unit_rows(1, seed=7)[0]
    cosines = rows @ query
    best = np.argsort(-cosines)[:5]
    ids, scores = filled.search(query, 5)
    assert ids.tolist() == (best + 100).tolist()
    assert scores == pytest.approx(cosines[best], abs=1e-6)


def test_only_allowed_ids_are_found(filled):
    """A filter gives exactly the allowed ids that exist, however many are asked for."""
    allowed = np.array([5, 107, 190, 5000], dtype=np.int64)
    ids, scores = filled.search(unit_rows(100)[7], 50, allowed=allowed)
    assert ids.tolist() == [107, 190]
    assert scores[0] == pytest.approx(1.0, abs=1e-6)
    assert filled.search(unit_rows(1)[0], 5, allowed=allowed[:0])[0].size == 0


def test_fewer_vectors_give_fewer_hits(filled):
    """There are no hits that do not exist."""
    assert len(filled.search(unit_rows(1)[0], 1000)[0]) == 100
    assert VectorIndex(dimension=DIMENSION).search(unit_rows(1)[0], 5)[0].size == 0


def test_adding_again_changes_nothing(filled):
    """An id is in the index once."""
    filled.add(np.array([100, 300]), unit_rows(2, seed=3))
    assert len(filled) == 101
    assert filled.search(unit_rows(100)[0], 1)[0].tolist() == [100]


def test_removed_vectors_are_not_found(filled):
    """Removing forgets the id; unknown ids are passed over."""
    filled.remove(np.array([100, 999], dtype=np.int64))
    assert len(filled) == 99
    assert filled.search(unit_rows(100)[0], 1)[0].tolist() != [100]


def test_an_index_that_shrank_gives_its_memory_back():
    """After most vectors are gone the process is smaller, and search goes on."""
    index = VectorIndex(dimension=384)
    rows = np.zeros((40_000, 384), dtype=np.float32)  # 61 MB once they are in the index
    rows[np.arange(40_000), np.arange(40_000) % 384] = 1.0
    index.add(np.arange(40_000), rows)
    process = psutil.Process()
    before = process.memory_info().rss
    index.remove(np.arange(39_990))
    assert before - process.memory_info().rss > 40_000_000
    assert index.search(rows[39_995], 1)[0].tolist() == [39_995]


def test_a_snapshot_comes_back(filled, tmp_path):
    """Save and load give the same index."""
    path = tmp_path / "a" / "x.faiss"
    filled.save(path, generation=3)
    loaded = VectorIndex.load(path, dimension=DIMENSION, generation=3)
    assert loaded is not None
    assert sorted(loaded.ids().tolist()) == list(range(100, 200))
    assert loaded.search(unit_rows(100)[9], 1)[0].tolist() == [109]
    loaded.add(np.array([500]), unit_rows(1, seed=5))
    loaded.remove(np.array([100]))
    assert len(loaded) == 100
    assert not list(path.parent.glob("*.tmp"))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _claim_garbage_is_right(path):
    import hashlib  # noqa: PLC0415 - for this case alone

    path.write_bytes(b"garbage")
    manifest = json.loads(path.with_suffix(".json").read_text())
    manifest["sha256"] = hashlib.sha256(b"garbage").hexdigest()
    path.with_suffix(".json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip,
        _claim_garbage_is_right,
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text('{"sha'),
        lambda path: path.with_suffix(".json").write_text("[]"),
    ],
    ids=["cut", "bit", "garbage", "no index", "no manifest", "torn manifest", "other manifest"],
)
def test_a_damaged_snapshot_is_not_used(filled, tmp_path, damage):
    """Torn, changed or half missing: nothing is loaded, nothing is raised."""
    path = tmp_path / "x.faiss"
    filled.save(path, generation=3)
    damage(path)
    assert VectorIndex.load(path, dimension=DIMENSION, generation=3) is None


def test_a_snapshot_of_another_generation_or_dimension_is_not_used(filled, tmp_path):
    """Only the very state that is asked for is loaded."""
    path = tmp_path / "x.faiss"
    filled.save(path, generation=3)
    assert VectorIndex.load(path, dimension=DIMENSION, generation=4) is None
    assert VectorIndex.load(path, dimension=8, generation=3) is None
    VectorIndex.forget(path)
    assert not list(tmp_path.iterdir())


def test_searches_and_changes_may_overlap(filled):
    """Readers beside a writer always see a whole index."""
    rows = unit_rows(100)
    wrong = []
    done = threading.Event()

    def search():
        while not done.is_set():
            ids, _ = filled.search(rows[7], 1)
            if ids.tolist() != [107]:
                wrong.append(ids)

    readers = [threading.Thread(target=search) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(100):
        extra = np.arange(1000 + turn * 20, 1020 + turn * 20)
        filled.add(extra, unit_rows(20, seed=turn + 100))
        filled.remove(extra)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(filled) == 100
