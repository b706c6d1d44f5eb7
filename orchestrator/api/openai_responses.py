"""OpenAI's `POST /v1/responses`, with `file_search` over a vector store; whole or as a stream."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from orchestrator.access.quotas import Quotas
from orchestrator.api.access import identity
from orchestrator.api.answer_events import first_events, metered, whole_answer
from orchestrator.api.answer_json import degraded_header, degraded_in
from orchestrator.api.attribute_filters import matcher
from orchestrator.api.json_route import JsonRoute
from orchestrator.api.openai_chat import require_served
from orchestrator.api.openai_vector_stores import check_ranking
from orchestrator.api.openapi_document import DEADLINE, DEGRADED_HEADERS, ERRORS, event_stream
from orchestrator.api.question_limits import QuestionLimits
from orchestrator.api.response_draft import ResponseDraft
from orchestrator.api.responses_schemas import (
    EVENTS,
    FILE_SEARCH,
    RESULTS,
    FileSearchTool,
    InputItem,
    ResponseOut,
    ResponseRequest,
)
from orchestrator.api.sse import EventStream, StreamTimers, unless_disconnected
from orchestrator.domain import (
    Answer,
    AnswerEvent,
    DocumentId,
    Message,
    Passage,
    Question,
    Queued,
    Sampling,
    Sources,
    Token,
)
from orchestrator.errors import InvalidParameter
from orchestrator.generation.engine_monitor import EngineMonitor
from orchestrator.pipelines.query import QueryPipeline, nothing_relevant
from orchestrator.pipelines.vector_stores import VectorStores
from orchestrator.resilience.deadline import Deadline
from orchestrator.retrieval.registry_rows import StoreFile

TEXT_PARTS = {"input_text", "output_text", "text"}
PASSED_OVER = {"file_search_call", "reasoning"}
"""Items of an earlier answer that say nothing: clients send the whole of it back."""
SEARCHING_CHOICES = {None, "auto", "required", FILE_SEARCH}
NOT_SERVED = {
    "background": "An answer comes with its request; leave `background` out.",
    "conversation": "Conversations are not kept here: send the earlier turns in `input`.",
    "previous_response_id": "Responses are not kept here: send the earlier turns in `input`.",
    "prompt": "Prompt templates are not kept here: send `instructions` and `input`.",
    "top_logprobs": "Probabilities of tokens are not told; leave `top_logprobs` out.",
}
"""Fields that change the answer, and what to do instead."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks: a question, the tool that it names, and what to show of its search."""

    question: Question
    tool: FileSearchTool | None
    with_results: bool


class ResponsesRoutes:
    """The door of OpenAI's newer clients."""

    def __init__(
        self,
        *,
        query: QueryPipeline,
        stores: VectorStores,
        monitor: EngineMonitor,
        limits: QuestionLimits,
        quotas: Quotas,
        timers: StreamTimers,
    ) -> None:
        self._query = query
        self._stores = stores
        self._monitor = monitor
        self._limits = limits
        self._quotas = quotas
        self._timers = timers

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1", responses=ERRORS)
        router.add_api_route(
            "/responses",
            self.respond,
            methods=["POST"],
            response_model=ResponseOut,
            responses={200: {"content": event_stream(named=EVENTS), "headers": DEGRADED_HEADERS}},
            openapi_extra=DEADLINE,
            route_class_override=JsonRoute,
            summary="Answer from a vector store, or from a collection",
        )
        return router

    async def respond(self, body: ResponseRequest, request: Request) -> Response:
        """Answer the last user message from a vector store (`file_search`) or a collection."""
        require_served(self._monitor.state.served, body.model)
        asked = self._asked(body, request)
        deadline = self._limits.deadline(request, body.timeout_s)
        found = await self._answered(asked, request, deadline)
        events = metered(found, asked.question, request, self._quotas)
        draft = ResponseDraft(
            body,
            request_id=request.state.request_id,
            query=asked.question.text if asked.tool else None,
            with_results=asked.with_results,
        )
        if not body.stream:
            answer = await whole_answer(request, events)
            shown = [citation.passage for citation in answer.citations]
            draft.found(shown, await self._files(asked.tool, shown))
            whole = draft.answered(answer)
            return JSONResponse(whole, headers=degraded_header(answer.degraded))
        head = await unless_disconnected(request, first_events(events))
        return EventStream(
            self._frames(head, events, asked.tool, draft),
            request=request,
            close=events.aclose,
            told=draft.failed,
            timers=self._timers,
            headers=degraded_header(degraded_in(head)),
        )

    async def _frames(
        self,
        head: Sequence[AnswerEvent],
        events: AsyncIterator[AnswerEvent],
        tool: FileSearchTool | None,
        draft: ResponseDraft,
    ) -> AsyncIterator[str]:
        yield draft.created()
        for event in head:
            yield await self._frame(event, tool, draft)
        async for event in events:
            yield await self._frame(event, tool, draft)

    async def _frame(
        self, event: AnswerEvent, tool: FileSearchTool | None, draft: ResponseDraft
    ) -> str:
        match event:
            case Queued(position, eta_s):
                return draft.queued(position, eta_s)
            case Sources(passages):
                draft.found(passages, await self._files(tool, passages))
                return draft.begun()
            case Token(text):
                return draft.delta(text)
            case Answer():
                return draft.ended(event)

    async def _files(
        self, tool: FileSearchTool | None, passages: Sequence[Passage]
    ) -> Mapping[DocumentId, StoreFile]:
        """Which files of the store that was searched these passages are from."""
        if tool is None or not passages:
            return {}
        [store_id] = tool.vector_store_ids
        return await self._stores.by_document(store_id, [p.document_id for p in passages])

    async def _answered(
        self, asked: _Asked, request: Request, deadline: Deadline
    ) -> AsyncGenerator[AnswerEvent, None]:
        """The answer's events; if no file can be searched, that nothing was found."""
        question, tool = asked.question, asked.tool
        if tool is not None:
            [store_id] = tool.vector_store_ids
            matches = None
            if tool.filters is not None:
                matches = matcher(tool.filters, param="tools[0].filters")
            async with deadline.scope():
                part = await self._stores.searchable(identity(request), store_id, matches)
            if part.nothing:
                return nothing_relevant()
            question = replace(question, document_ids=part.document_ids)
        return self._query.answer(question, deadline)

    def _asked(self, body: ResponseRequest, request: Request) -> _Asked:
        _refuse_what_we_cannot(body)
        tool = _tool(body)
        *earlier, last = _turns(body)
        if last.role != "user":
            raise InvalidParameter("The last item must be the user's message.", param="input")
        question = self._limits.question(
            last.content,
            request=request,
            collection=tool.vector_store_ids[0] if tool else body.collection,
            document_ids=() if tool else body.document_ids,
            top_k=self._top_k(body, tool),
            max_tokens=body.max_output_tokens,
            history=earlier,
            sampling=Sampling(temperature=body.temperature or 0.0, top_p=body.top_p),
            priority=body.priority,
            degrade=body.degrade,
            route="responses",
            param="input",
        )
        return _Asked(question, tool, with_results=RESULTS in (body.include or []))

    def _top_k(self, body: ResponseRequest, tool: FileSearchTool | None) -> int | None:
        if body.top_k is not None or tool is None or tool.max_num_results is None:
            return body.top_k
        return min(tool.max_num_results, self._limits.max_top_k)


def _refuse_what_we_cannot(body: ResponseRequest) -> None:
    extras = body.extras()
    for field, instead in NOT_SERVED.items():
        if extras.get(field):
            raise InvalidParameter(instead, param=field)
    text = extras.get("text")
    wanted = text.get("format") if isinstance(text, dict) else None
    if isinstance(wanted, dict) and wanted.get("type", "text") != "text":
        raise InvalidParameter(
            "text.format must be text: answers carry [n] marks.", param="text.format"
        )


def _tool(body: ResponseRequest) -> FileSearchTool | None:
    """
    The one tool that may be asked for.

    Raises:
        InvalidParameter: If another one is, or it cannot be used as asked.
    """
    for n, tool in enumerate(body.tools or []):
        if not isinstance(tool, FileSearchTool):
            raise InvalidParameter(
                f"The tool {tool.type!r} is not served here: answers come from your documents. Use "
                f"{FILE_SEARCH!r}, or no tool.",
                param=f"tools[{n}]",
            )
    found = [tool for tool in body.tools or [] if isinstance(tool, FileSearchTool)]
    choice = body.tool_choice
    if isinstance(choice, dict):
        choice = choice.get("type")
    if choice not in (SEARCHING_CHOICES if found else {None, "auto", "none"}):
        raise InvalidParameter(
            f"tool_choice {choice!r} is not possible here: with {FILE_SEARCH!r} the documents are "
            "always searched. Leave it out.",
            param="tool_choice",
        )
    if not found:
        return None
    tool = found[0]
    if len(found) > 1 or len(tool.vector_store_ids) > 1:
        raise InvalidParameter(
            "One vector store is searched for an answer. Put the files into one, or ask twice.",
            param="tools",
        )
    check_ranking(tool.ranking_options, param="tools[0].ranking_options")
    if tool.ranking_options is not None and tool.ranking_options.score_threshold:
        raise InvalidParameter(
            "What is relevant is decided for each question: leave `score_threshold` out.",
            param="tools[0].ranking_options.score_threshold",
        )
    return tool


def _turns(body: ResponseRequest) -> list[Message]:
    """
    Instructions and input as a conversation.

    Raises:
        InvalidParameter: If an item is none that can be understood.
    """
    turns = [Message("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*turns, Message("user", body.input)]
    said = [_turn(item, n) for n, item in enumerate(body.input) if item.type not in PASSED_OVER]
    if not said:
        raise InvalidParameter("`input` holds no message. Send the user's.", param="input")
    return [*turns, *said]


def _turn(item: InputItem, n: int) -> Message:
    if item.type != "message" or item.role is None or item.content is None:
        raise InvalidParameter(
            f"input[{n}] is {item.type!r}: only messages with a role and a content are understood.",
            param=f"input[{n}]",
        )
    role = "system" if item.role == "developer" else item.role
    if isinstance(item.content, str):
        return Message(role, item.content)
    texts = [part.text for part in item.content if part.type in TEXT_PARTS]
    known = [text for text in texts if text is not None]
    if len(known) < len(item.content):
        raise InvalidParameter(
            "Only text is understood in a message's content; leave images, audio and files out.",
            param=f"input[{n}].content",
        )
    return Message(role, "\n".join(known))
