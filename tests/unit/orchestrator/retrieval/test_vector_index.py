"""Search by meaning: exact, filtered, and snapshots that are either whole or not used."""

import contextlib
import json
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from orchestrator.retrieval import index_snapshots
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
    path = tmp_path / "a" / "x"
    filled.save(path, generation=3)
    loaded = VectorIndex.load(path, dimension=DIMENSION, generation=3)
    assert loaded is not None
    assert sorted(loaded.ids().tolist()) == list(range(100, 200))
    assert loaded.search(unit_rows(100)[9], 1)[0].tolist() == [109]
    loaded.add(np.array([500]), unit_rows(1, seed=5))
    loaded.remove(np.array([100]))
    assert len(loaded) == 100
    assert not list(path.parent.glob("*.tmp"))


def clustered(count, seed=0):
    """Vectors in bunches, as those of passages are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((50, DIMENSION))
    rows = centres[rng.integers(50, size=count)] + 0.5 * rng.standard_normal((count, DIMENSION))
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def in_lists():
    """3,000 vectors with the ids from 1,000 on, in lists; 200 more of the same draw are asked."""
    rows = clustered(3200)[:3000]
    index = VectorIndex(dimension=DIMENSION, sample=rows, expected=3000)
    index.add(np.arange(1000, 4000), rows)
    index.tune(rows)
    return index


def test_lists_find_nearly_all_of_the_exact_neighbours(in_lists):
    """95 % of the ten nearest, without looking into every list."""
    rows, queries = np.split(clustered(3200), [3000])
    found = 0
    for query in queries:
        wanted = 1000 + np.argsort(-(rows @ query))[:10]
        found += np.isin(in_lists.search(query, 10)[0], wanted).sum()
    assert found >= 0.95 * 2000
    assert not in_lists.exact
    assert in_lists._index.nprobe < in_lists._index.nlist / 2


def test_a_width_of_one_would_not_do(in_lists):
    """The tuning is what finds them: one list alone misses many."""
    rows, queries = np.split(clustered(3200), [3000])
    in_lists._index.nprobe = 1
    found = sum(
        np.isin(in_lists.search(q, 10)[0], 1000 + np.argsort(-(rows @ q))[:10]).sum()
        for q in queries
    )
    assert found < 0.95 * 2000


def test_lists_can_be_searched_among_some(in_lists):
    """Few allowed ids are found wherever they stand: as many as there are, exactly in order."""
    rows, query = clustered(3200)[:3000], clustered(1, seed=3)[0]
    allowed = np.array([1007, 1500, 2222, 3999])
    ids, scores = in_lists.search(query, 10, allowed=allowed)
    cosines = rows[allowed - 1000] @ query
    assert ids.tolist() == allowed[np.argsort(-cosines)].tolist()
    assert scores == pytest.approx(np.sort(cosines)[::-1], abs=1e-5)


def test_lists_are_changed_saved_and_loaded_as_well(in_lists, tmp_path):
    """Added, removed, swapped; what was saved comes back with its width."""
    rows = clustered(3200)[:3000]
    in_lists.remove(np.arange(1000, 1100))
    in_lists.add(np.array([3999, 5000]), np.stack([rows[0], rows[1]]))
    in_lists.swap(removed=np.array([1100]), added=np.array([6000]), embeddings=rows[2][None])
    assert sorted(in_lists.ids().tolist()) == [*range(1101, 4000), 5000, 6000]
    assert in_lists.search(rows[1], 1)[0].tolist() == [5000]
    in_lists.save(tmp_path / "x", generation=1)
    loaded = VectorIndex.load(tmp_path / "x", dimension=DIMENSION, generation=1)
    assert loaded._index.nprobe == in_lists._index.nprobe
    assert sorted(loaded.ids().tolist()) == sorted(in_lists.ids().tolist())
    assert loaded.search(rows[2], 1)[0].tolist() == [6000]


def test_an_index_knows_when_it_is_outgrown(filled, in_lists):
    """Exact far beyond the limit, in lists far below it, or with four times as many vectors."""
    assert filled.fits(exact_up_to=100)
    assert not filled.fits(exact_up_to=49)
    assert in_lists.fits(exact_up_to=1000)
    assert not in_lists.fits(exact_up_to=10_000)
    more = clustered(10_000, seed=2)
    in_lists.add(np.arange(10_000, 20_000), more)
    assert not in_lists.fits(exact_up_to=1000)


def manifest_of(path):
    return path.with_name("x.json")


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _claim_garbage_is_right(path):
    import hashlib  # noqa: PLC0415 - for this case alone

    path.write_bytes(b"garbage")
    manifest = json.loads(manifest_of(path).read_text())
    manifest["sha256"] = hashlib.sha256(b"garbage").hexdigest()
    manifest_of(path).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip,
        _claim_garbage_is_right,
        lambda path: path.unlink(),
        lambda path: manifest_of(path).unlink(),
        lambda path: manifest_of(path).write_text('{"sha'),
        lambda path: manifest_of(path).write_text("[]"),
    ],
    ids=["cut", "bit", "garbage", "no index", "no manifest", "torn manifest", "other manifest"],
)
def test_a_damaged_snapshot_is_not_used(filled, tmp_path, damage):
    """Torn, changed or half missing: nothing is loaded, nothing is raised."""
    base = tmp_path / "x"
    filled.save(base, generation=3)
    assert index_snapshots.torn(tmp_path) == []
    damage(tmp_path / "x.3.faiss")
    assert VectorIndex.load(base, dimension=DIMENSION, generation=3) is None


@pytest.mark.parametrize("damage", [_truncate, _flip, lambda path: path.unlink()])
def test_a_damaged_snapshot_is_found(filled, tmp_path, damage):
    """Whoever looks over the folder is told which one it is."""
    filled.save(tmp_path / "x", generation=3)
    filled.save(tmp_path / "y", generation=1)
    damage(tmp_path / "x.3.faiss")
    assert index_snapshots.torn(tmp_path) == [tmp_path / "x"]


def test_the_old_snapshot_holds_until_the_new_one_is_named(filled, tmp_path, monkeypatch):
    """Wherever the writing of the second one ends, the first or the second is whole."""
    base = tmp_path / "x"
    filled.save(base, generation=3)
    replace = Path.replace
    for allowed in range(3):
        left = [allowed]

        def dying(path, target, left=left):
            if not left[0]:
                raise OSError("killed here")
            left[0] -= 1
            return replace(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", dying)
            with contextlib.suppress(OSError):
                filled.save(base, generation=4)
        loaded = VectorIndex.load(base, dimension=DIMENSION, generation=4 if allowed == 2 else 3)
        assert len(loaded) == 100
        assert index_snapshots.torn(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.4.faiss", "x.json"]


def test_a_snapshot_of_another_generation_or_dimension_is_not_used(filled, tmp_path):
    """Only the very state that is asked for is loaded."""
    path = tmp_path / "x"
    filled.save(path, generation=3)
    assert VectorIndex.load(path, dimension=DIMENSION, generation=4) is None
    assert VectorIndex.load(path, dimension=8, generation=3) is None
    index_snapshots.forget(path)
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
