"""FAISS on a real card: what the CPU finds, under its cap, and gone when it is let go."""

import gc

import numpy as np
import pytest

from model_server.memory import MIB
from orchestrator.retrieval.gpu_search import GpuSearch, place_bytes, why_no_gpu
from orchestrator.retrieval.vector_index import VectorIndex
from tests.gpus import CONTEXT_BYTES, watching

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

DIMENSION = 384
COUNT = 200_000
CAP_BYTES = place_bytes(COUNT + 10_000, DIMENSION)
WORKING_BYTES = 64 * MIB
K = 10


def unit_rows(count, seed=0):
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def gpu(card, monkeypatch):
    """The card that is watched has to be the only one that CUDA sees, before it is asked."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card.device.uuid)
    if reason := why_no_gpu(0):
        pytest.skip(reason)
    return GpuSearch(device=0, memory_bytes=CAP_BYTES)


def test_the_card_finds_what_the_cpu_finds_under_its_cap(card, gpu):
    """200,000 vectors, some removed and some added: the same ten, by NVML under the cap."""
    rows = unit_rows(COUNT)
    plain = VectorIndex(dimension=DIMENSION)
    with watching(card) as usage:
        copied = VectorIndex(dimension=DIMENSION, gpu=gpu)
        for index in (plain, copied):
            index.add(np.arange(COUNT), rows)
        copied.search(rows[0], K)
        for index in (plain, copied):
            index.remove(np.arange(0, 400))
            index.add(np.arange(COUNT, COUNT + 5000), unit_rows(5000, seed=1))
        for query in unit_rows(100, seed=2):
            ids, scores = copied.search(query, K)
            wanted, cosines = plain.search(query, K)
            assert scores == pytest.approx(cosines, abs=2e-3)
            assert len(np.intersect1d(ids, wanted)) >= K - 1
        assert gpu.state()["failure"] is None
        assert gpu.state()["vectors"] >= COUNT
        peak = usage.peak()
        print(f"\n{peak / MIB:.0f} MiB at the most, {CAP_BYTES / MIB:.0f} of them for vectors")
        assert 0 < peak <= CAP_BYTES + WORKING_BYTES + CONTEXT_BYTES
        held = usage.now
        del copied, index
        gc.collect()
        assert usage.now <= held - 4 * DIMENSION * COUNT
