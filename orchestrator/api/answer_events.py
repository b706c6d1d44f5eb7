"""An answer's events on their way to a door: the first, the last, and what they cost."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import Request

from orchestrator.access.api_keys import ApiKey
from orchestrator.access.quotas import Quotas
from orchestrator.api.access import identity
from orchestrator.api.sse import unless_disconnected
from orchestrator.domain import Answer, AnswerEvent, Question, Sources
from orchestrator.errors import OrchestratorError

CHUNK_TOKENS, INSTRUCTION_TOKENS, CHARS_PER_TOKEN = 200, 200, 3
"""What a prompt is made of, on the safe side, until the engine has counted it."""


async def first_events(events: AsyncIterator[AnswerEvent]) -> list[AnswerEvent]:
    """
    The events up to the first that proves something: a place in the queue, or a token.

    Until then nothing has been sent, so a failure still becomes a proper status.
    """
    head: list[AnswerEvent] = []
    async for event in events:
        head.append(event)
        if not isinstance(event, Sources):
            break
    return head


async def whole_answer(request: Request, events: AsyncGenerator[AnswerEvent, None]) -> Answer:
    """The finished answer; given up if the client hangs up."""

    async def last() -> Answer:
        async for event in events:
            if isinstance(event, Answer):
                return event
        raise RuntimeError("an answer's events end with the Answer")

    try:
        return await unless_disconnected(request, last())
    finally:
        await events.aclose()


def metered(
    events: AsyncGenerator[AnswerEvent, None], question: Question, request: Request, quotas: Quotas
) -> AsyncGenerator[AnswerEvent, None]:
    """The same events, counted where the key has a limit; RateLimited is raised before the first."""
    key = identity(request).key
    if key is None or key.limits.tokens_per_min is None:
        return events
    return _counted(events, question, key, quotas)


async def _counted(
    events: AsyncGenerator[AnswerEvent, None], question: Question, key: ApiKey, quotas: Quotas
) -> AsyncGenerator[AnswerEvent, None]:
    """Whoever hangs up has used all that was taken: the engine was at work. An error costs nothing."""
    async with aclosing(events):
        with quotas.tokens(key, _most_tokens(question)) as spending:
            try:
                async for event in events:
                    if isinstance(event, Answer):
                        spending.used = event.usage.prompt_tokens + event.usage.completion_tokens
                    yield event
            except OrchestratorError:
                spending.used = 0
                raise


def _most_tokens(question: Question) -> int:
    words = [question.text, *(turn.content for turn in question.history)]
    said = sum(map(len, words)) // CHARS_PER_TOKEN
    return INSTRUCTION_TOKENS + question.top_k * CHUNK_TOKENS + said + question.max_tokens
