"""`/healthz`, `/readyz`, `/metrics` and `/status`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse, PlainTextResponse

from orchestrator.api.access import identity, is_known
from orchestrator.api.openapi_document import ERRORS
from orchestrator.api.schemas import (
    AliveResponse,
    ErrorResponse,
    Health,
    ReadyResponse,
    StatusExcerpt,
    StatusResponse,
)
from orchestrator.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Dependency:
    """How one dependency is. `detail` says why, in words, unless it is ok."""

    status: Health
    detail: str = ""


class HealthRoutes:
    """
    What operators and load balancers ask.

    Args:
        dependencies: Looked at for each `/readyz`; ready means that none is down.
        status: The whole picture, for whoever runs the service.
        excerpt: What it shows to an owner of documents, by their name.
    """

    def __init__(
        self,
        *,
        dependencies: Callable[[], Awaitable[dict[str, Dependency]]],
        status: Callable[[], Awaitable[dict[str, Any]]],
        excerpt: Callable[[str], Awaitable[dict[str, Any]]],
        metrics: Metrics,
    ) -> None:
        self._dependencies = dependencies
        self._status = status
        self._excerpt = excerpt
        self._metrics = metrics

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(responses=ERRORS)
        router.add_api_route("/healthz", self.alive, methods=["GET"], response_model=AliveResponse)
        router.add_api_route(
            "/readyz",
            self.ready,
            methods=["GET"],
            response_model=ReadyResponse,
            responses={503: {"model": ReadyResponse | ErrorResponse, "description": "Not ready."}},
        )
        router.add_api_route(
            "/metrics",
            self.metrics,
            methods=["GET"],
            response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        )
        router.add_api_route(
            "/status", self.status, methods=["GET"], response_model=StatusResponse | StatusExcerpt
        )
        return router

    async def alive(self) -> dict[str, str]:
        """Say that the process answers; restart it if this does not."""
        return {"status": "ok"}

    async def ready(self, request: Request) -> Response:
        """Say whether questions can be answered now, and what each dependency does."""
        known = is_known(request)
        found = await self._dependencies()
        worst: Health = "ok"
        for dependency in found.values():
            worst = max(worst, dependency.status, key=("ok", "degraded", "down").index)
        body = {
            "status": worst,
            "dependencies": {
                name: {"status": d.status, "detail": d.detail if known else ""}
                for name, d in found.items()
            },
        }
        down = worst == "down"
        return JSONResponse(body, HTTPStatus.SERVICE_UNAVAILABLE if down else HTTPStatus.OK)

    async def metrics(self) -> Response:
        """Give every series in Prometheus' text format."""
        return PlainTextResponse(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def status(self, request: Request) -> Response:
        """Show queue, engine, documents and memory at one look; less of it without an admin key."""
        asking = identity(request)
        return JSONResponse(await (self._status() if asking.admin else self._excerpt(asking.owner)))
