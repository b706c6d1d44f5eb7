"""
Lesser answers, and how they say so.

L1 asks for less: fewer passages, a shorter answer. L2 asks another engine. L3 gives the passages
themselves. What is beyond that is refused.
"""

from dataclasses import replace

from orchestrator.domain import Citation, Degraded, Passage, Question
from orchestrator.errors import (
    CircuitOpen,
    EngineOverloaded,
    EngineProtocolError,
    EngineTimeout,
    EngineUnavailable,
    OrchestratorError,
    Overloaded,
)
from orchestrator.retrieval.retriever import Retrieved

MIN_TOP_K = 2
MIN_TOKENS = 64
MAX_QUOTED = 3

ELSEWHERE = (
    CircuitOpen,
    EngineOverloaded,
    EngineProtocolError,
    EngineTimeout,
    EngineUnavailable,
    Overloaded,
)
"""Failures of one engine, before its first token, that another engine or no engine can answer."""


def lesser_search(found: Retrieved) -> Degraded | None:
    """L1: how a search was less than usual; None if it was not."""
    if found.by_words_only is not None:
        cause = found.by_words_only.message
        return Degraded("L1", f"Passages were searched by words only: {cause}")
    if found.not_reranked is not None:
        reason = f"Passages are in the order in which they were found: {found.not_reranked.message}"
        return Degraded("L1", reason)
    return None


MANY_ASK, MEMORY_SHORT = "Many are asking", "The engine's memory is getting short"


def reduced(question: Question, why: str) -> tuple[Question, Degraded | None]:
    """L1: half the passages and half the answer, and what that is called; None if nothing is left out."""
    top_k = min(question.top_k, max(MIN_TOP_K, question.top_k // 2))
    max_tokens = min(question.max_tokens, max(MIN_TOKENS, question.max_tokens // 2))
    if (top_k, max_tokens) == (question.top_k, question.max_tokens):
        return question, None
    reason = (
        f"{why}: at most {top_k} passages instead of {question.top_k} and "
        f"{max_tokens} tokens instead of {question.max_tokens}."
    )
    return replace(question, top_k=top_k, max_tokens=max_tokens), Degraded("L1", reason)


def elsewhere(engine: str, cause: OrchestratorError) -> Degraded:
    """L2: the answer comes from another engine."""
    return Degraded("L2", f"Answered by the fallback engine {engine}. {cause.message}")


def passages_only(cause: OrchestratorError) -> Degraded:
    """L3: nothing was generated."""
    return Degraded("L3", f"No answer was generated: these are the passages. {cause.message}")


def extract(passages: tuple[Passage, ...]) -> tuple[str, tuple[Citation, ...]]:
    """The text of an answer that nobody generated, and its sources: those quoted are cited."""
    quoted = [
        f"[{n}] {p.filename}, page {p.page}:\n{p.text}"
        for n, p in enumerate(passages[:MAX_QUOTED], start=1)
    ]
    text = "\n\n".join(["The model cannot answer now. The passages that fit best:", *quoted])
    citations = tuple(
        Citation(n, passage, cited=n <= MAX_QUOTED) for n, passage in enumerate(passages, start=1)
    )
    return text, citations
