"""Vectors copied to a card: the same answers, and the index's own whenever the card cannot say."""

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from orchestrator.retrieval.gpu_search import MAX_NEIGHBOURS, GpuSearch, place_bytes, why_no_gpu
from orchestrator.retrieval.vector_index import VectorIndex

DIMENSION = 16
ROOM = place_bytes(100_000, DIMENSION)


def unit_rows(count, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Card:
    """FAISS with a GPU, as far as it is used: its indexes take no vector out and know no selection."""

    def __init__(self):
        self.searches = 0
        self.broken = False
        self.indexes = []
        self.temporary = None

    def get_num_gpus(self):
        return 1

    def StandardGpuResources(self):  # noqa: N802
        return SimpleNamespace(setTempMemory=lambda size: setattr(self, "temporary", size))

    def GpuIndexFlatConfig(self):  # noqa: N802
        return SimpleNamespace(device=None)

    def GpuIndexFlatIP(self, resources, dimension, config):  # noqa: N802
        assert self.temporary is not None
        assert resources is not None
        assert config.device == 0
        flat = faiss.IndexFlatIP(dimension)

        def search(rows, k):
            assert k <= MAX_NEIGHBOURS
            if self.broken:
                raise RuntimeError("CUDA error 700 an illegal memory access was encountered\nat …")
            self.searches += 1
            return flat.search(rows, k)

        def add(rows):
            if self.broken:
                raise RuntimeError("CUDA error 2 out of memory")
            flat.add(rows)

        self.indexes.append(flat)
        return SimpleNamespace(search=search, add=add)


@pytest.fixture
def card():
    return Card()


@pytest.fixture
def gpu(card):
    return GpuSearch(device=0, memory_bytes=ROOM, api=card)


@pytest.fixture
def index(gpu):
    index = VectorIndex(dimension=DIMENSION, gpu=gpu)
    index.add(np.arange(100, 5100), unit_rows(5000))
    return index


def expected(query, k, *, without=()):
    cosines = unit_rows(5000) @ query
    cosines[[number - 100 for number in without]] = -2
    return (np.argsort(-cosines)[:k] + 100).tolist()


def test_a_search_over_everything_runs_on_the_card(card, index):
    """It finds what the index would have found, best first, by the index's ids."""
    query = unit_rows(1, seed=7)[0]
    ids, scores = index.search(query, 10)
    assert ids.tolist() == expected(query, 10)
    assert scores == pytest.approx(np.sort(unit_rows(5000) @ query)[::-1][:10], abs=1e-6)
    assert card.searches == 1
    assert len(index.search(query, 10_000)[0]) == 5000
    assert card.searches == 1  # more than it can select: the index did that


def test_a_selection_is_searched_by_the_index(card, index):
    """On a GPU FAISS would pass over it without a word."""
    ids, _ = index.search(unit_rows(5000)[7], 50, allowed=np.array([5, 107, 190], dtype=np.int64))
    assert ids.tolist() == [107, 190]
    assert card.searches == 0


def test_what_is_removed_is_not_found_and_what_is_added_is(card, gpu, index):
    """The copy follows; with many gone it is made anew, without them."""
    query = unit_rows(1, seed=7)[0]
    index.search(query, 1)
    best = expected(query, 10)
    index.remove(np.array(best[:5], dtype=np.int64))
    assert index.search(query, 5)[0].tolist() == best[5:]
    index.add(np.array([9000]), query[None, :])
    assert index.search(query, 2)[0].tolist() == [9000, best[5]]
    index.swap(removed=np.array([9000]), added=np.array([9001]), embeddings=query[None, :])
    assert index.search(query, 2)[0].tolist() == [9001, best[5]]
    assert len(card.indexes) == 1
    gone = np.setdiff1d(np.arange(100, 1100), best)
    index.remove(gone)
    assert index.search(query, 2)[0].tolist() == [9001, best[5]]
    assert len(card.indexes) == 2
    assert card.searches == 5
    gc.collect()
    assert gpu.state()["vectors"] == len(index)


def test_an_id_that_comes_back_has_its_new_vector(index):
    """Not the one that is still in the copy."""
    query = unit_rows(1, seed=7)[0]
    index.search(query, 1)
    index.remove(np.array([100]))
    index.add(np.array([100]), query[None, :])
    ids, scores = index.search(query, 1)
    assert ids.tolist() == [100]
    assert scores[0] == pytest.approx(1.0, abs=1e-6)


def test_a_card_that_fails_costs_nobody_an_answer(card, gpu, index, caplog):
    """The index answers that search, and all after it; the reason is told once, and shown."""
    query = unit_rows(1, seed=7)[0]
    index.search(query, 1)
    card.broken = True
    with caplog.at_level(logging.ERROR):
        assert index.search(query, 10)[0].tolist() == expected(query, 10)
        card.broken = False
        assert index.search(query, 10)[0].tolist() == expected(query, 10)
    assert card.searches == 1
    assert len(caplog.records) == 1
    assert gpu.state()["failure"].startswith("RuntimeError: CUDA error 700")
    assert "\n" not in gpu.state()["failure"]


def test_a_copy_that_cannot_follow_is_searched_no_more(card, index):
    """Out of memory in the middle of an upload: the new document is found."""
    query = unit_rows(1, seed=7)[0]
    index.search(query, 1)
    card.broken = True
    index.add(np.array([9000]), query[None, :])
    assert index.search(query, 1)[0].tolist() == [9000]


def test_what_does_not_fit_stays_where_it_is(card):
    """The cap holds for all indexes together; one that is let go makes room."""
    gpu = GpuSearch(device=0, memory_bytes=place_bytes(150, DIMENSION), api=card)
    query = unit_rows(1, seed=7)[0]
    first, second = (VectorIndex(dimension=DIMENSION, gpu=gpu) for _ in range(2))
    for index in (first, second):
        index.add(np.arange(100), unit_rows(100))
        assert len(index.search(query, 5)[0]) == 5
    assert card.searches == 1
    assert gpu.state()["bytes"] == place_bytes(100, DIMENSION) <= gpu.state()["max_bytes"]
    first.add(np.arange(100, 200), unit_rows(100, seed=3))  # the first grows out of its room, too
    assert len(first.search(query, 200)[0]) == 200
    assert card.searches == 1
    del first, index
    gc.collect()
    second.search(query, 5)
    assert card.searches == 2


def test_two_at_a_time_do_not_take_the_same_room(card):
    """The second is measured when the first is on the card, not while it is on its way."""
    gpu = GpuSearch(device=0, memory_bytes=place_bytes(150, DIMENSION), api=card)
    under_way, go = threading.Event(), threading.Event()

    def slowly():
        under_way.set()
        assert go.wait(5)
        return np.arange(100), unit_rows(100)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gpu.copy, 100, DIMENSION, slowly)
        assert under_way.wait(5)
        second = pool.submit(gpu.copy, 100, DIMENSION, lambda: (np.arange(100), unit_rows(100)))
        assert not wait([second], timeout=0.2).done
        go.set()
        assert second.result(5) is None
        assert len(first.result(5)) == 100


def test_lists_stay_in_memory(card, gpu):
    """Only an exact index has a copy."""
    rows = unit_rows(2000)
    index = VectorIndex(dimension=DIMENSION, sample=rows, expected=2000, gpu=gpu)
    index.add(np.arange(2000), rows)
    index.tune(rows)
    assert index.search(rows[7], 1)[0].tolist() == [7]
    assert card.searches == 0


def test_without_faiss_gpu_it_is_told_what_to_install(card):
    """Once, at the start, in words."""
    assert "make setup DEVICE=gpu" in why_no_gpu(0, api=SimpleNamespace())
    assert why_no_gpu(0, api=card) is None
    assert "no number 1" in why_no_gpu(1, api=card)
