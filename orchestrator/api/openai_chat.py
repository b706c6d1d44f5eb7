"""OpenAI's wire: `POST /v1/chat/completions` and `GET /v1/models`, answered from the documents."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from orchestrator.access.quotas import Quotas
from orchestrator.api.answer_events import first_events, metered, whole_answer
from orchestrator.api.answer_json import (
    answer_json,
    citation_json,
    degraded_header,
    degraded_in,
    degraded_json,
)
from orchestrator.api.error_responses import error_event
from orchestrator.api.json_route import JsonRoute
from orchestrator.api.openapi_document import DEADLINE, DEGRADED_HEADERS, ERRORS, event_stream
from orchestrator.api.question_limits import QuestionLimits
from orchestrator.api.schemas import (
    ChatChunkOut,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatMessage,
    ErrorEventOut,
    LastChatChunkOut,
    ModelOut,
    ModelsResponse,
    UsageChunkOut,
)
from orchestrator.api.sse import DONE, EventStream, StreamTimers, frame, unless_disconnected
from orchestrator.domain import Answer, AnswerEvent, Message, Question, Queued, Sampling, Token
from orchestrator.errors import InvalidParameter, ModelNotFound, OrchestratorError
from orchestrator.generation.engine_monitor import EngineMonitor
from orchestrator.generation.engine_request import EngineModel
from orchestrator.pipelines.query import QueryPipeline

OWNER = "tidegate"
CHUNKS = (ChatChunkOut, LastChatChunkOut, UsageChunkOut, ErrorEventOut)
"""What a streamed answer's events carry."""
CHANGES_THE_ANSWER = {
    "audio",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "modalities",
    "tool_choice",
    "tools",
    "top_logprobs",
}
"""Fields of OpenAI's that we do not serve and that must not be dropped in silence."""


class OpenAIRoutes:
    """The doors that the official client knocks at."""

    def __init__(
        self,
        *,
        query: QueryPipeline,
        monitor: EngineMonitor,
        embedding_model: str,
        limits: QuestionLimits,
        quotas: Quotas,
        timers: StreamTimers,
    ) -> None:
        self._query = query
        self._monitor = monitor
        self._embedding_model = embedding_model
        self._limits = limits
        self._quotas = quotas
        self._timers = timers

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1", responses=ERRORS)
        router.add_api_route("/models", self.models, methods=["GET"], response_model=ModelsResponse)
        router.add_api_route(
            "/models/{model_id:path}", self.model, methods=["GET"], response_model=ModelOut
        )
        router.add_api_route(
            "/chat/completions",
            self.chat,
            methods=["POST"],
            response_model=ChatCompletionResponse,
            responses={200: {"content": event_stream(unnamed=CHUNKS), "headers": DEGRADED_HEADERS}},
            openapi_extra=DEADLINE,
            route_class_override=JsonRoute,
            summary="Chat over the documents of a collection",
        )
        return router

    async def models(self) -> dict[str, Any]:
        """List what the engine serves, and the embedding model."""
        served = [m.id for m in self._monitor.listed()]
        return {"object": "list", "data": [_model(m) for m in (*served, self._embedding_model)]}

    async def model(self, model_id: str) -> dict[str, Any]:
        """Describe one model."""
        if model_id != self._embedding_model:
            require_served(self._monitor.listed(), model_id)
        return _model(model_id)

    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Answer the last user message from the documents; whole or as a stream."""
        require_served(self._monitor.state.served, body.model)
        question = self._question(body, request)
        deadline = self._limits.deadline(request, body.timeout_s)
        answered = self._query.answer(question, deadline)
        events = metered(answered, question, request, self._quotas)
        if not body.stream:
            answer = await whole_answer(request, events)
            whole = _completion(answer_json(answer, request.state.request_id), body.model)
            return JSONResponse(whole, headers=degraded_header(answer.degraded))
        head = await unless_disconnected(request, first_events(events))
        stamp = _Stamp(request.state.request_id, body.model)
        usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(
            _chunks(head, events, stamp, include_usage=usage),
            request=request,
            close=events.aclose,
            told=_told,
            timers=self._timers,
            headers=degraded_header(degraded_in(head)),
        )

    def _question(self, body: ChatCompletionRequest, request: Request) -> Question:
        _refuse_what_we_cannot(body)
        *earlier, last = body.messages
        if last.role != "user":
            raise InvalidParameter("The last message must be the user's.", param="messages")
        return self._limits.question(
            _text(last),
            request=request,
            collection=body.collection,
            document_ids=body.document_ids,
            top_k=body.top_k,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            history=[_turn(message) for message in earlier],
            sampling=Sampling(
                temperature=body.temperature or 0.0,
                top_p=body.top_p,
                seed=body.seed,
                stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            ),
            priority=body.priority,
            degrade=body.degrade,
            route="chat",
            param="messages",
        )


def require_served(models: Sequence[EngineModel], model_id: str) -> None:
    """
    Do nothing if this model is among those that the engine serves, or did when it last answered.

    Without an engine passages are answered, by whatever name: one never seen refuses no name.

    Raises:
        ModelNotFound: If it is not.
    """
    served = [m.id for m in models]
    if served and model_id not in served:
        raise ModelNotFound(
            f"The model {model_id!r} is not served here. Use one of: {', '.join(served)}.",
            param="model",
        )


class _Stamp:
    """What every chunk of one stream repeats."""

    def __init__(self, request_id: str, model: str) -> None:
        self._fixed = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return frame({**self._fixed, "choices": [choice], **extra})

    def usage(self, answer: Answer) -> str:
        return frame({
            **self._fixed,
            "choices": [],
            "usage": _usage(answer.usage.prompt_tokens, answer.usage.completion_tokens),
        })


async def _chunks(
    head: list[AnswerEvent],
    events: AsyncIterator[AnswerEvent],
    stamp: _Stamp,
    *,
    include_usage: bool,
) -> AsyncIterator[str]:
    yield stamp.chunk({"role": "assistant", "content": ""})
    for event in head:
        for text in _chunk(event, stamp, include_usage=include_usage):
            yield text
    async for event in events:
        for text in _chunk(event, stamp, include_usage=include_usage):
            yield text
    yield DONE


def _told(error: OrchestratorError) -> str:
    """OpenAI's client finds errors by their key, in unnamed events."""
    return frame(error_event(error))


def _chunk(event: AnswerEvent, stamp: _Stamp, *, include_usage: bool) -> list[str]:
    match event:
        case Token(text):
            return [stamp.chunk({"content": text})]
        case Queued(position, eta_s):
            return [f": queued position={position} eta_s={eta_s}\n\n"]
        case Answer():
            cited = [citation_json(c) for c in event.citations]
            degraded = degraded_json(event.degraded)
            last = stamp.chunk({}, event.finish_reason, citations=cited, degraded=degraded)
            return [last, stamp.usage(event)] if include_usage else [last]
        case _:
            return []


def _completion(answer: dict[str, Any], model: str) -> dict[str, Any]:
    usage = answer["usage"]
    return {
        "id": f"chatcmpl-{answer['request_id']}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer["answer"], "refusal": None},
                "logprobs": None,
                "finish_reason": answer["finish_reason"],
            }
        ],
        "usage": _usage(usage["prompt_tokens"], usage["completion_tokens"]),
        "citations": answer["citations"],
        "degraded": answer["degraded"],
    }


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _model(model_id: str) -> dict[str, Any]:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": OWNER}


def _turn(message: ChatMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    return Message(role, _text(message))


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    if any(part.type != "text" or part.text is None for part in message.content):
        raise InvalidParameter(
            "Only text is understood in a message's content; leave images, audio and files out.",
            param="messages",
        )
    return "\n".join(part.text or "" for part in message.content)


def _refuse_what_we_cannot(body: ChatCompletionRequest) -> None:
    asked = sorted(k for k, v in body.extras().items() if k in CHANGES_THE_ANSWER and v)
    if asked:
        raise InvalidParameter(
            f"{asked[0]} is not supported: answers come from your documents alone. Leave it out.",
            param=asked[0],
        )
    if body.n is not None and body.n != 1:
        raise InvalidParameter("n must be 1: one answer a request.", param="n")
    wanted = body.extras().get("response_format")
    if isinstance(wanted, dict) and wanted.get("type", "text") != "text":
        raise InvalidParameter(
            "response_format must be text: answers carry [n] marks.", param="response_format"
        )
