"""`tidegate mcp`: the MCP server on stdio, for agents on this machine; a running orchestrator works."""

from pathlib import Path
from typing import Any, cast

import anyio
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp_types import CallToolResult

from orchestrator.api.mcp_schemas import (
    AddPathArguments,
    AskArguments,
    ListArguments,
    SearchArguments,
)
from orchestrator.api.mcp_tools import Notice, Tools, refusal, tool_server, waiting_text
from orchestrator.api.schemas import AskResponse, DocumentOut, QueuedOut
from orchestrator.client import AskOptions, AsyncClient, ClientError, SearchOptions
from orchestrator.errors import InvalidParameter, OrchestratorError


def run(url: str, key: str, version: str) -> None:
    """
    Serve until stdin ends.

    Args:
        url: Where the orchestrator listens.
        key: An API key, if it wants one.
        version: Ours.
    """
    anyio.run(_serve, url, key, version)


async def _serve(url: str, key: str, version: str) -> None:
    async with AsyncClient(url, key=key) as client, stdio_server() as (incoming, outgoing):
        server = stdio_mcp_server(client, version)
        await server.run(incoming, outgoing, server.create_initialization_options())


def stdio_mcp_server(client: AsyncClient, version: str) -> Server[Any]:
    """The server, over a client that does the work."""
    doors = ClientDoors(client)
    tools = Tools(AddPathArguments)
    return tool_server(tools, version=version, doors=lambda _: doors, told=_told)


def _told(exc: Exception, _context: ServerRequestContext[Any]) -> CallToolResult:
    """
    What was refused, by us or by the service, as a result.

    Raises:
        Exception: The same, if it is a bug.
    """
    if isinstance(exc, ClientError):
        return refusal(str(exc), code=exc.code, retry_after_s=exc.retry_after_s)
    if isinstance(exc, OrchestratorError):
        return refusal(exc.message, code=exc.code, retry_after_s=exc.retry_after_s)
    raise exc


class ClientDoors:
    """
    The work, done by a running orchestrator.

    Args:
        client: Speaks with it; waits and comes back where it is told to.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def search(self, wanted: SearchArguments) -> dict[str, Any]:
        """As `POST /search`."""
        found = await self._client.search(wanted.question, **_search_options(wanted))
        return found.model_dump(mode="json")

    async def ask(self, wanted: AskArguments, notice: Notice) -> dict[str, Any]:
        """As `POST /ask`."""
        options = cast("AskOptions", _search_options(wanted))
        if wanted.max_tokens is not None:
            options["max_tokens"] = wanted.max_tokens
        async for event in self._client.stream(wanted.question, **options):
            if isinstance(event, QueuedOut):
                await notice(waiting_text(event.position, event.eta_s))
            elif isinstance(event, AskResponse):
                return event.model_dump(mode="json")
        raise ClientError("The answer broke off.", code="incomplete_answer")

    async def documents(self, wanted: ListArguments) -> dict[str, Any]:
        """As `GET /documents`."""
        found = await self._client.documents_page(
            collection=wanted.collection, after=wanted.after, limit=wanted.limit
        )
        return found.model_dump(mode="json")

    async def add(self, given: AddPathArguments, notice: Notice) -> dict[str, Any]:
        """As one document of `POST /upload`, once it is ready or failed."""
        path = _file(given.path)
        uploaded = await self._client.upload(path, collection=given.collection)
        document: DocumentOut = uploaded
        async for document in self._client.follow(uploaded.id):
            await notice(f"{document.status}: page {document.pages_done} of {document.pages}")
        return {**document.model_dump(mode="json"), "duplicate": uploaded.duplicate}


def _file(path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_file():
        raise InvalidParameter(f"There is no file {found}.", param="path")
    return found


def _search_options(wanted: SearchArguments) -> SearchOptions:
    options: SearchOptions = {
        "collection": wanted.collection,
        "document_ids": wanted.document_ids,
    }
    if wanted.top_k is not None:
        options["top_k"] = wanted.top_k
    return options
