"""`POST /ask` and `POST /search`."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from orchestrator.access.api_keys import ApiKey
from orchestrator.access.ownership import stored_name
from orchestrator.access.quotas import Quotas
from orchestrator.api.access import identity
from orchestrator.api.json_route import JsonRoute
from orchestrator.api.openapi_document import DEADLINE, DEGRADED_HEADERS, ERRORS, event_stream
from orchestrator.api.schemas import (
    AskRequest,
    AskResponse,
    ErrorEventOut,
    QueuedOut,
    SearchRequest,
    SearchResponse,
    SourcesOut,
    TokenOut,
)
from orchestrator.api.sse import EventStream, StreamTimers, frame, unless_disconnected
from orchestrator.domain import (
    Answer,
    AnswerEvent,
    Band,
    Caller,
    Citation,
    Degraded,
    DocumentId,
    Message,
    Passage,
    Question,
    Queued,
    Sampling,
    Sources,
    Token,
)
from orchestrator.errors import InvalidParameter, OrchestratorError
from orchestrator.pipelines.query import QueryPipeline
from orchestrator.resilience.deadline import Deadline

DEADLINE_HEADER = "x-request-deadline-ms"
OPENAI_TIMEOUT_HEADER = "x-stainless-read-timeout"
DEGRADED_HEADER = "X-Tidegate-Degraded"
BANDS = {band.name.lower(): band for band in Band}
EVENTS = {
    "queued": QueuedOut,
    "sources": SourcesOut,
    "token": TokenOut,
    "done": AskResponse,
    "error": ErrorEventOut,
}
"""What a streamed answer's events carry, by their names."""

CHUNK_TOKENS, INSTRUCTION_TOKENS, CHARS_PER_TOKEN = 200, 200, 3
"""What a prompt is made of, on the safe side, until the engine has counted it."""


@dataclass(frozen=True, slots=True)
class QuestionLimits:
    """What a question may ask for, and what it gets when it does not say."""

    max_question_chars: int
    max_history_messages: int
    top_k: int
    max_top_k: int
    max_tokens: int
    max_max_tokens: int
    request_timeout_s: float

    def question(
        self,
        text: str,
        *,
        request: Request,
        collection: str,
        document_ids: Sequence[str],
        top_k: int | None,
        max_tokens: int | None = None,
        history: Sequence[Message] = (),
        sampling: Sampling = Sampling(),
        priority: str = "normal",
        degrade: bool = True,
        route: str = "ask",
        param: str = "question",
    ) -> Question:
        """
        A question within the limits, over the documents of whoever asks.

        Raises:
            InvalidParameter: If it is outside of them.
        """
        self._check(text, param=param)
        if len(history) > self.max_history_messages:
            raise InvalidParameter(
                f"{len(history)} earlier turns were sent; at most {self.max_history_messages} are "
                "taken. Leave out the oldest.",
                param="history",
            )
        return Question(
            text=text,
            collection=stored_name(identity(request).owner, collection),
            top_k=_bounded(top_k or self.top_k, self.max_top_k, "top_k"),
            max_tokens=_bounded(max_tokens or self.max_tokens, self.max_max_tokens, "max_tokens"),
            document_ids=tuple(DocumentId(i) for i in document_ids),
            history=tuple(history),
            sampling=sampling,
            caller=_caller(request, priority),
            degrade=degrade,
            route=route,
            traceparent=request.headers.get("traceparent"),
        )

    def deadline(self, request: Request, timeout_s: float | None) -> Deadline:
        """The earliest of the default, the body's `timeout_s` and the headers that clients send."""
        asked = [
            self.request_timeout_s,
            timeout_s,
            _seconds(request, DEADLINE_HEADER, unit_s=0.001),
            _seconds(request, OPENAI_TIMEOUT_HEADER, unit_s=1.0),
        ]
        return Deadline(min(s for s in asked if s is not None))

    def _check(self, text: str, *, param: str) -> None:
        if not text.strip():
            raise InvalidParameter("The question is empty. Write one.", param=param)
        if len(text) > self.max_question_chars:
            raise InvalidParameter(
                f"The question has {len(text)} characters; the limit is "
                f"{self.max_question_chars}. Shorten it.",
                param=param,
            )


class AskRoutes:
    """The question's own doors."""

    def __init__(
        self,
        *,
        query: QueryPipeline,
        limits: QuestionLimits,
        quotas: Quotas,
        timers: StreamTimers,
    ) -> None:
        self._query = query
        self._limits = limits
        self._quotas = quotas
        self._timers = timers

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(route_class=JsonRoute, responses=ERRORS)
        router.add_api_route(
            "/ask",
            self.ask,
            methods=["POST"],
            response_model=AskResponse,
            responses={200: {"content": event_stream(named=EVENTS), "headers": DEGRADED_HEADERS}},
            openapi_extra=DEADLINE,
            summary="Ask a question",
        )
        router.add_api_route(
            "/search",
            self.search,
            methods=["POST"],
            response_model=SearchResponse,
            responses={200: {"headers": DEGRADED_HEADERS}},
            openapi_extra=DEADLINE,
            summary="Find passages without generating an answer",
        )
        return router

    async def ask(self, body: AskRequest, request: Request) -> Response:
        """Answer a question from the documents, with numbered sources; JSON or SSE."""
        question = self._limits.question(
            body.question,
            request=request,
            collection=body.collection,
            document_ids=body.document_ids,
            top_k=body.top_k,
            max_tokens=body.max_tokens,
            history=[Message(m.role, m.content) for m in body.history],
            priority=body.priority,
            degrade=body.degrade,
        )
        deadline = self._limits.deadline(request, body.timeout_s)
        answered = self._query.answer(question, deadline)
        events = metered(answered, question, request, self._quotas)
        if not body.stream:
            answer = await whole_answer(request, events)
            whole = answer_json(answer, request.state.request_id)
            return JSONResponse(whole, headers=degraded_header(answer.degraded))
        head = await unless_disconnected(request, first_events(events))
        return EventStream(
            _frames(head, events, request),
            request=request,
            close=events.aclose,
            timers=self._timers,
            headers=degraded_header(degraded_in(head)),
        )

    async def search(self, body: SearchRequest, request: Request) -> Response:
        """Find the passages that fit a question best."""
        question = self._limits.question(
            body.question,
            request=request,
            collection=body.collection,
            document_ids=body.document_ids,
            top_k=body.top_k,
        )
        deadline = self._limits.deadline(request, body.timeout_s)
        passages, degraded = await unless_disconnected(
            request, self._query.search(question, deadline)
        )
        return JSONResponse(search_json(passages, degraded), headers=degraded_header(degraded))


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


def _caller(request: Request, priority: str) -> Caller:
    """Who asks: by API key, or by address where there are no keys; no better than the key may."""
    key = identity(request).key
    asked = BANDS[priority]
    if key is None:
        return Caller(request.client.host if request.client else "unknown", asked)
    return Caller(key.id, max(asked, key.band))


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


def degraded_in(head: Sequence[AnswerEvent]) -> Degraded | None:
    """How the answer is degraded, as far as its first events tell."""
    for event in head:
        if isinstance(event, Sources | Answer) and event.degraded is not None:
            return event.degraded
    return None


def degraded_header(degraded: Degraded | None) -> dict[str, str]:
    """The level as a header, for those who do not read bodies."""
    return {} if degraded is None else {DEGRADED_HEADER: degraded.level}


def degraded_json(degraded: Degraded | None) -> dict[str, str] | None:
    """The level and the reason on the wire."""
    return None if degraded is None else {"level": degraded.level, "reason": degraded.reason}


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


def citation_json(citation: Citation) -> dict[str, Any]:
    """A citation on the wire."""
    return {"n": citation.n, "cited": citation.cited, **passage_json(citation.passage)}


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


async def _frames(
    head: list[AnswerEvent], events: AsyncIterator[AnswerEvent], request: Request
) -> AsyncIterator[str]:
    for event in head:
        yield _frame(event, request)
    async for event in events:
        yield _frame(event, request)


def _frame(event: AnswerEvent, request: Request) -> str:
    match event:
        case Token(text):
            return frame({"text": text}, "token")
        case Queued(position, eta_s):
            return frame({"position": position, "eta_s": eta_s}, "queued")
        case Sources(passages, degraded):
            listed = [{"n": n, **passage_json(p)} for n, p in enumerate(passages, start=1)]
            return frame({"citations": listed, "degraded": degraded_json(degraded)}, "sources")
        case Answer():
            return frame(answer_json(event, request.state.request_id), "done")


def _bounded(value: int, limit: int, param: str) -> int:
    if value > limit:
        raise InvalidParameter(f"{param} is {value}; the limit is {limit}.", param=param)
    return value


def _seconds(request: Request, header: str, *, unit_s: float) -> float | None:
    """
    A time that the caller gave in a header, in seconds.

    Raises:
        InvalidParameter: If our own header holds no positive number; foreign ones are forgiven.
    """
    text = request.headers.get(header)
    if text is None:
        return None
    try:
        seconds = float(text) * unit_s
    except ValueError:
        seconds = 0.0
    if 0 < seconds < float("inf"):
        return seconds
    if header == DEADLINE_HEADER:
        raise InvalidParameter(f"{header} must be a positive number of milliseconds.", param=header)
    return None
