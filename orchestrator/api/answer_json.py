"""Answers and passages on our own wire."""

from collections.abc import Sequence
from typing import Any

from orchestrator.domain import Answer, AnswerEvent, Citation, Degraded, Passage, Sources

DEGRADED_HEADER = "X-Tidegate-Degraded"


def answer_json(answer: Answer, request_id: str) -> dict[str, Any]:
    """A whole answer on the wire."""
    timings = answer.timings
    return {
        "answer": answer.text,
        "citations": [citation_json(c) for c in answer.citations],
        "degraded": degraded_json(answer.degraded),
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
        },
        "timings_ms": {
            "queue": round(timings.queue_ms, 1),
            "retrieve": round(timings.retrieve_ms, 1),
            "first_token": round(timings.first_token_ms, 1),
            "total": round(timings.total_ms, 1),
        },
        "request_id": request_id,
    }


def citation_json(citation: Citation) -> dict[str, Any]:
    """A citation on the wire."""
    return {"n": citation.n, "cited": citation.cited, **passage_json(citation.passage)}


def passage_json(passage: Passage) -> dict[str, Any]:
    """A passage on the wire."""
    return {
        "document_id": passage.document_id,
        "filename": passage.filename,
        "page": passage.page,
        "char_start": passage.char_start,
        "char_end": passage.char_end,
        "text": passage.text,
        "score": round(passage.score, 4),
    }


def search_json(passages: Sequence[Passage], degraded: Degraded | None) -> dict[str, Any]:
    """What a search found, on the wire."""
    return {
        "passages": [passage_json(passage) for passage in passages],
        "degraded": degraded_json(degraded),
    }


def degraded_json(degraded: Degraded | None) -> dict[str, str] | None:
    """The level and the reason on the wire."""
    return None if degraded is None else {"level": degraded.level, "reason": degraded.reason}


def degraded_header(degraded: Degraded | None) -> dict[str, str]:
    """The level as a header, for those who do not read bodies."""
    return {} if degraded is None else {DEGRADED_HEADER: degraded.level}


def degraded_in(head: Sequence[AnswerEvent]) -> Degraded | None:
    """How the answer is degraded, as far as its first events tell."""
    for event in head:
        if isinstance(event, Sources | Answer) and event.degraded is not None:
            return event.degraded
    return None
