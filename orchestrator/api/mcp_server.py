"""The MCP server behind `/mcp`: the tools, by the pipelines that every other door leads to."""

import asyncio
import base64
import binascii
import io
from contextlib import aclosing
from typing import Any, cast

from fastapi import Request
from mcp.server import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import CallToolResult

from orchestrator.access.quotas import Quotas
from orchestrator.api.access import identity
from orchestrator.api.answer_events import metered
from orchestrator.api.answer_json import answer_json, search_json
from orchestrator.api.documents import accepted_json, documents_page
from orchestrator.api.error_responses import error_retry_after_s, internal_error
from orchestrator.api.mcp_schemas import (
    MAX_BODY_BYTES,
    MAX_INLINE_BYTES,
    AddArguments,
    AskArguments,
    ListArguments,
    SearchArguments,
)
from orchestrator.api.mcp_tools import (
    Doors,
    Notice,
    Tools,
    refusal,
    tool_server,
    waiting_text,
)
from orchestrator.api.question_limits import QuestionLimits
from orchestrator.domain import Answer, Question, Queued
from orchestrator.errors import DocumentTooLarge, InvalidParameter, OrchestratorError
from orchestrator.pipelines.library import Library
from orchestrator.pipelines.owned_library import OwnedLibrary
from orchestrator.pipelines.query import QueryPipeline


def mcp_server(
    *,
    query: QueryPipeline,
    library: Library,
    limits: QuestionLimits,
    quotas: Quotas,
    version: str,
) -> StreamableHTTPSessionManager:
    """
    The SDK's server over our pipelines, without sessions: each request stands alone.

    Args:
        query: Answers and searches.
        library: All documents; each request sees those of its owner.
        limits: What a question may ask for.
        quotas: What each key may use up.
        version: Ours.
    """

    def doors(context: ServerRequestContext[Any]) -> Doors:
        return _RequestDoors(cast("Request", context.request), query, library, limits, quotas)

    server = tool_server(Tools(AddArguments), version=version, doors=doors, told=_told)
    return StreamableHTTPSessionManager(
        server, stateless=True, max_request_body_size=MAX_BODY_BYTES
    )


def _told(exc: Exception, context: ServerRequestContext[Any]) -> CallToolResult:
    """An error as a result; the request counts as what it came to."""
    error = exc if isinstance(exc, OrchestratorError) else internal_error(exc)
    cast("Request", context.request).state.outcome = error.code
    return refusal(error.message, code=error.code, retry_after_s=error_retry_after_s(error))


class _RequestDoors:
    """The work for one request, on behalf of whoever sent it."""

    def __init__(
        self,
        request: Request,
        query: QueryPipeline,
        library: Library,
        limits: QuestionLimits,
        quotas: Quotas,
    ) -> None:
        self._request = request
        self._query = query
        self._library = OwnedLibrary(library, identity(request))
        self._limits = limits
        self._quotas = quotas

    async def search(self, wanted: SearchArguments) -> dict[str, Any]:
        deadline = self._limits.deadline(self._request, None)
        return search_json(*await self._query.search(self._question(wanted), deadline))

    async def ask(self, wanted: AskArguments, notice: Notice) -> dict[str, Any]:
        question = self._question(wanted, max_tokens=wanted.max_tokens)
        answered = self._query.answer(question, self._limits.deadline(self._request, None))
        async with aclosing(metered(answered, question, self._request, self._quotas)) as events:
            async for event in events:
                if isinstance(event, Queued):
                    await notice(waiting_text(event.position, event.eta_s))
                elif isinstance(event, Answer):
                    return answer_json(event, self._request.state.request_id)
        raise RuntimeError("an answer's events end with the Answer")

    async def documents(self, wanted: ListArguments) -> dict[str, Any]:
        return await documents_page(
            self._library, collection=wanted.collection, limit=wanted.limit, after=wanted.after
        )

    async def add(self, given: AddArguments, _notice: Notice) -> dict[str, Any]:
        data = await asyncio.to_thread(_decoded, given.content_base64)
        accepted = await self._library.accept(
            io.BytesIO(data), filename=given.filename, collection=given.collection
        )
        return accepted_json(accepted)

    def _question(self, wanted: SearchArguments, *, max_tokens: int | None = None) -> Question:
        return self._limits.question(
            wanted.question,
            request=self._request,
            collection=wanted.collection,
            document_ids=wanted.document_ids,
            top_k=wanted.top_k,
            max_tokens=max_tokens,
            route="mcp",
        )


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise InvalidParameter(
            f"content_base64 is not base64: {exc}.", param="content_base64"
        ) from exc
    if len(data) > MAX_INLINE_BYTES:
        raise DocumentTooLarge(
            f"A PDF inside a call may have {MAX_INLINE_BYTES} bytes. Send larger ones to POST /upload, "
            "or use `tidegate mcp`, which takes a path."
        )
    return data
