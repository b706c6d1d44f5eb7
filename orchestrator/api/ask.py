"""`POST /ask` and `POST /search`."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from orchestrator.access.quotas import Quotas
from orchestrator.api.answer_events import first_events, metered, whole_answer
from orchestrator.api.answer_json import (
    answer_json,
    degraded_header,
    degraded_in,
    degraded_json,
    passage_json,
    search_json,
)
from orchestrator.api.json_route import JsonRoute
from orchestrator.api.openapi_document import DEADLINE, DEGRADED_HEADERS, ERRORS, event_stream
from orchestrator.api.question_limits import QuestionLimits
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
from orchestrator.domain import Answer, AnswerEvent, Message, Queued, Sources, Token
from orchestrator.pipelines.query import QueryPipeline

EVENTS = {
    "queued": QueuedOut,
    "sources": SourcesOut,
    "token": TokenOut,
    "done": AskResponse,
    "error": ErrorEventOut,
}
"""What a streamed answer's events carry, by their names."""


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
