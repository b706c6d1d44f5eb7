"""A better order when there is one to be had, the found order otherwise, and never an error."""

import asyncio
import json

import numpy as np
import pytest

from orchestrator.domain import ChunkId, DocumentId, Passage
from orchestrator.errors import EmbedderUnavailable, QueueFull
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.retrieval.reranker import Reranker


class FakeProcess:
    """Scores a pair by how often the question's word is in the passage."""

    def __init__(self):
        self.error = None
        self.hangs = False
        self.asked = 0
        self.alive = True
        self.starting = False

    async def embed_passages(self, texts):
        self.asked += 1
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.sleep(60)
        pairs = [json.loads(text) for text in texts]
        return np.array([[passage.count(question)] for question, passage in pairs], np.float32)


@pytest.fixture
def process():
    return FakeProcess()


@pytest.fixture
def reranker(process):
    breaker = CircuitBreaker(name="reranker", policy=BreakerPolicy())
    return Reranker(process=process, breaker=breaker, wait_s=0.1)


def passages(*texts):
    return [
        Passage(ChunkId(n), DocumentId("a"), "a.pdf", 1, 1, 0, len(text), text, 0.5, 3)
        for n, text in enumerate(texts)
    ]


def order(reranked):
    return [passage.chunk_id for passage in reranked.passages]


async def test_the_best_comes_first_and_ties_keep_their_order(reranker):
    """By the score of question and passage together."""
    found = passages("none", "tide", "tide tide", "tide and more")
    reranked = await reranker.rerank("tide", found)
    assert order(reranked) == [2, 1, 3, 0]
    assert reranked.skipped is None


async def test_one_passage_costs_nothing(reranker, process):
    """It has no order."""
    assert order(await reranker.rerank("tide", passages("tide"))) == [0]
    assert process.asked == 0


@pytest.mark.parametrize("error", [EmbedderUnavailable("gone"), QueueFull("full")])
async def test_without_it_the_found_order_holds(reranker, process, error):
    """And it is said why."""
    process.error = error
    reranked = await reranker.rerank("tide", passages("none", "tide"))
    assert order(reranked) == [0, 1]
    assert reranked.skipped is error


async def test_a_slow_one_is_not_waited_for_and_left_alone(reranker, process):
    """Five times too late, and nobody waits for it any longer."""
    process.hangs = True
    for _ in range(5):
        reranked = await reranker.rerank("tide", passages("none", "tide"))
        assert order(reranked) == [0, 1]
        assert "longer than 0.1 s" in reranked.skipped.message
    asked = process.asked
    assert (await reranker.rerank("tide", passages("none", "tide"))).skipped is not None
    assert process.asked == asked


async def test_while_its_model_is_loaded_nothing_is_reranked_and_nobody_blamed(reranker, process):
    """However many ask: afterwards it is asked at once."""
    process.starting = True
    for _ in range(20):
        reranked = await reranker.rerank("tide", passages("none", "tide"))
        assert order(reranked) == [0, 1]
        assert "loading" in reranked.skipped.message
    assert process.asked == 0
    process.starting = False
    assert order(await reranker.rerank("tide", passages("none", "tide"))) == [1, 0]
