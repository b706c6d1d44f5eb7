"""
`/mcp`: the MCP server over streamable HTTP, behind the same gate, keys and limits as every door.

The SDK is loaded by whoever comes first: it takes half a second and some 40 MiB, which a start after a
crash, and a service without agents, should not have to spend.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.access.quotas import Quotas
from orchestrator.api.mcp_schemas import PATH
from orchestrator.api.question_limits import QuestionLimits
from orchestrator.errors import NotReady
from orchestrator.pipelines.library import Library
from orchestrator.pipelines.query import QueryPipeline


class McpDoor:
    """
    Serves `/mcp`, and leaves every other path to the application.

    Args:
        app: The application.
        query: Answers and searches; this and the rest is for `mcp_server.mcp_server`.

    Attributes:
        path: What this door counts as in metrics and logs.
    """

    path = PATH

    def __init__(
        self,
        app: ASGIApp,
        *,
        query: QueryPipeline,
        library: Library,
        limits: QuestionLimits,
        quotas: Quotas,
        version: str,
    ) -> None:
        self._app = app
        self._parts: dict[str, Any] = {
            "query": query,
            "library": library,
            "limits": limits,
            "quotas": quotas,
            "version": version,
        }
        self._closing = asyncio.Event()
        self._opened: asyncio.Future[Any] | None = None
        self._serving: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It can be asked until the block ends."""
        try:
            yield
        finally:
            self._closing.set()
            if self._serving is not None:
                await asyncio.wait({self._serving})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Serve one request.

        Raises:
            NotReady: If the service is ending.
        """
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        scope["route"] = self
        if self._closing.is_set():
            raise NotReady("The service is ending. Try again in a moment.", retry_after_s=1)
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(self._opened))
        manager = await asyncio.shield(self._opened)
        await manager.handle_request(scope, receive, send)

    async def _serve(self, opened: "asyncio.Future[Any]") -> None:
        """Load the SDK, and keep its server up until the end."""
        try:
            module = await asyncio.to_thread(importlib.import_module, "orchestrator.api.mcp_server")
            manager = module.mcp_server(**self._parts)
            async with manager.run():
                opened.set_result(manager)
                await self._closing.wait()
        except Exception as exc:
            if opened.done():
                raise
            opened.set_exception(exc)
