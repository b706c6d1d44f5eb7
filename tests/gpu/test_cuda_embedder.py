"""The embedder on a real card: never over its cap, as right as on a CPU, and beside an engine."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from model_server.memory import GIB, MIB
from orchestrator.retrieval.embedder import Embedder
from orchestrator.retrieval.embedder_model import bundled_embedder
from tests.gpus import CONTEXT_BYTES, cuda_model_server, watching

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

TEXTS = [f"{number} The gate opens at low water. " * 30 for number in range(1024)]
CAP_BYTES = 256 * MIB
BATCH = 1024
"""Its activations take several times the cap: it has to be halved."""


@asynccontextmanager
async def embedder_on(device, *, max_batch=16, gpu_memory_bytes=GIB):
    """A running embedder there."""
    embedder = Embedder(
        model=bundled_embedder(),
        threads=2,
        max_batch=max_batch,
        device=device,
        gpu_memory_bytes=gpu_memory_bytes,
    )
    await embedder.start()
    try:
        yield embedder
    finally:
        await embedder.aclose()


@pytest.fixture(autouse=True)
def on_the_card(card, monkeypatch):
    """The child sees the card that is watched, and no other."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card.device.uuid)


async def test_it_keeps_under_its_cap_though_a_batch_does_not_fit(card):
    """By NVML, batches of a thousand; each text has its vector, the one that the CPU gives."""
    with watching(card) as usage:
        async with embedder_on("cuda", max_batch=BATCH, gpu_memory_bytes=CAP_BYTES) as embedder:
            vectors = await embedder.embed_passages(TEXTS)
            assert embedder.restarts == 0
        assert await asyncio.to_thread(usage.back_after_s, usage.peak()) is not None
        peak = usage.peak()
    print(f"\n{peak / MIB:.0f} MiB at the most, {CAP_BYTES / MIB:.0f} of them its own")
    assert 0 < peak <= CAP_BYTES + CONTEXT_BYTES
    async with embedder_on("cpu") as embedder:
        expected = await embedder.embed_passages(TEXTS[:32])
    assert np.einsum("nd,nd->n", vectors[:32], expected).min() > 0.998


async def test_beside_an_engine_that_takes_all_that_it_may(engine_card, tmp_path):
    """The plan leaves it its slice: an engine with 99 % of the card, and the embedder after it."""
    settings = {
        "MODEL_SERVER_GPU_MEMORY_UTILIZATION": "0.99",
        "MODEL_SERVER_EMBEDDER_BYTES": str(GIB),
    }
    with cuda_model_server(engine_card, tmp_path, **settings):
        async with embedder_on("cuda", max_batch=64) as embedder:
            vectors = await embedder.embed_passages(TEXTS)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)


async def test_a_card_that_is_not_there_is_told(card):
    """Number 99: the start fails, and does not hang."""
    assert card.device.kind == "cuda"
    with pytest.raises(Exception, match="did not start"):
        async with embedder_on("cuda:99"):
            pass
