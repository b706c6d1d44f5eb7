"""
The model server's own HTTP: how its engine is, and what was planned for it.

    GET /healthz  200 while this program lives
    GET /readyz   200 while the engine is ready, else 503
    GET /state    the engine's state, phase and figures
    GET /plan     the memory plan, with the table's rows and the engine's flags
"""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from model_server.lifecycle import State, Status


def control_app(*, status: Callable[[], Status], plan: Callable[[], Mapping[str, Any]]) -> FastAPI:
    """The control API over a status and a plan that change."""
    app = FastAPI(title="Tidegate model server", openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        now = status()
        ready = now.state is State.READY
        body = {"ready": ready, "state": now.state, "phase": now.phase}
        return JSONResponse(body, status_code=200 if ready else 503)

    @app.get("/state")
    async def state() -> JSONResponse:
        return JSONResponse(asdict(status()))

    @app.get("/plan")
    async def plan_() -> JSONResponse:
        return JSONResponse(dict(plan()))

    return app


class ControlServer(uvicorn.Server):
    """Serves the control API on a socket that already listens; leaves signals to the program."""

    def __init__(self, app: FastAPI, *, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )
        self._listener = listener

    async def run_until_stopped(self) -> None:
        """Serve until `stop`."""
        await self.serve(sockets=[self._listener])

    def stop(self) -> None:
        """Make `run_until_stopped` return."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not take SIGTERM and SIGINT: they are for the supervisor, which ends the engine first."""
        yield
