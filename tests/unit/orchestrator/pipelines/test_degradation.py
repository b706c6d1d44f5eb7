"""What a lesser answer is made of."""

from dataclasses import replace

import pytest

from orchestrator.domain import ChunkId, DocumentId, Passage, Question
from orchestrator.errors import EngineUnavailable
from orchestrator.pipelines.degradation import extract, passages_only, reduced

QUESTION = Question("Why?", "default", top_k=8, max_tokens=512)


@pytest.mark.parametrize(
    ("top_k", "max_tokens", "expected"),
    [(8, 512, (4, 256)), (3, 100, (2, 64)), (2, 512, (2, 256)), (1, 64, (1, 64))],
)
def test_less_is_half_but_never_nothing(top_k, max_tokens, expected):
    """Half of each, not below two passages and 64 tokens, and never more than was asked for."""
    less, degraded = reduced(replace(QUESTION, top_k=top_k, max_tokens=max_tokens), "Why")
    assert (less.top_k, less.max_tokens) == expected
    assert (degraded is None) == (expected == (top_k, max_tokens))


def test_an_extract_quotes_the_best_and_lists_all():
    """Three passages are quoted with file and page; every one is a citation."""
    passages = tuple(
        Passage(ChunkId(n), DocumentId("d"), "a.pdf", n, n, 0, 9, f"text {n}", 0.5, 4)
        for n in range(1, 6)
    )
    text, citations = extract(passages)
    assert "[3] a.pdf, page 3:\ntext 3" in text
    assert "text 4" not in text
    assert [c.cited for c in citations] == [True, True, True, False, False]


def test_the_reason_is_the_causes():
    """Whoever reads the answer learns why."""
    assert "loading" in passages_only(EngineUnavailable("The engine is loading.")).reason
