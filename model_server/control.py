"""
The model server's own HTTP: how its engine is, what was planned for it, and what it is told to do.

    GET  /healthz  200 while this program lives
    GET  /readyz   200 while the engine is ready, or sleeps and can be woken, else 503
    GET  /state    the engine's state, phase and figures, and the pressure on memory
    GET  /plan     the memory plan, with the table's rows and the engine's flags
    GET  /metrics  the same for Prometheus
    POST /sleep    give the engine's memory back until it is woken; 409 unless it is ready
    POST /wake     start a sleeping engine; nothing to any other
    POST /drain    let running requests end, then end the engine and this program, as SIGTERM does

With a key, everything but the first two wants it as a bearer token. Without one, the address has to
be a loopback one for orders to be taken, and an order has to be JSON: a web page cannot send that
to us without asking first.
"""

import contextlib
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, Protocol

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse

from model_server.lifecycle import State, Status


class Keeper(Protocol):
    """Who keeps the engine: `supervisor.Supervisor`."""

    def status(self) -> Status:
        """What is known of the engine now."""
        ...

    def request_sleep(self) -> bool:
        """Give the engine's memory back until somebody asks; False unless it is ready."""
        ...

    def request_wake(self) -> None:
        """Start a sleeping engine."""
        ...

    def request_stop(self) -> None:
        """End the engine, then the program."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """
    Who may ask.

    Attributes:
        key: Bearer token; "" asks for none.
        local: Whether only this machine reaches the control API.
    """

    key: str
    local: bool

    def check(self, request: Request) -> None:
        """
        Do nothing if this request may go on.

        Raises:
            HTTPException: If it lacks the key, or is an order that nobody could have to give.
        """
        if self.key:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self.key.encode()):
                raise HTTPException(
                    HTTPStatus.UNAUTHORIZED,
                    "The control key is missing or wrong: send MODEL_SERVER_CONTROL_KEY as a "
                    "bearer token (ORCHESTRATOR_CONTROL_KEY in the orchestrator).",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        elif request.method == "POST" and not self.local:
            raise HTTPException(
                HTTPStatus.FORBIDDEN,
                "This address can be reached from elsewhere: set MODEL_SERVER_CONTROL_KEY to give "
                "orders here.",
            )
        elif request.method == "POST" and not _is_json(request):
            raise HTTPException(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "Send orders with Content-Type: application/json, or set MODEL_SERVER_CONTROL_KEY.",
            )


def control_app(
    *,
    keeper: Keeper,
    plan: Callable[[], Mapping[str, Any]],
    metrics: Callable[[], str],
    pressure: Callable[[], str],
    access: Access,
) -> FastAPI:
    """The control API over an engine's keeper, and a plan that changes."""
    app = FastAPI(title="Tidegate model server", openapi_url=None)
    guarded = [Depends(access.check)]
    app.add_exception_handler(HTTPException, _refused)

    def shown() -> dict[str, Any]:
        return {**asdict(keeper.status()), "pressure": pressure()}

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        now = keeper.status()
        ready = now.state in {State.READY, State.SLEEPING}
        body = {"ready": ready, "state": now.state, "phase": now.phase}
        return JSONResponse(body, status_code=200 if ready else 503)

    @app.get("/state", dependencies=guarded)
    async def state() -> JSONResponse:
        return JSONResponse(shown())

    @app.get("/plan", dependencies=guarded)
    async def plan_() -> JSONResponse:
        return JSONResponse(dict(plan()))

    @app.get("/metrics", dependencies=guarded)
    async def metrics_() -> PlainTextResponse:
        return PlainTextResponse(metrics(), media_type="text/plain; version=0.0.4")

    @app.post("/sleep", dependencies=guarded)
    async def sleep() -> JSONResponse:
        accepted = keeper.request_sleep()
        return JSONResponse(
            shown(), status_code=HTTPStatus.ACCEPTED if accepted else HTTPStatus.CONFLICT
        )

    @app.post("/wake", dependencies=guarded)
    async def wake() -> JSONResponse:
        keeper.request_wake()
        return JSONResponse(shown(), status_code=HTTPStatus.ACCEPTED)

    @app.post("/drain", dependencies=guarded)
    async def drain() -> JSONResponse:
        keeper.request_stop()
        return JSONResponse(shown(), status_code=HTTPStatus.ACCEPTED)

    return app


async def _refused(_: Request, exc: Exception) -> JSONResponse:
    """A refusal in the shape that the orchestrator's errors have."""
    if not isinstance(exc, HTTPException):  # pragma: no cover - registered for that class alone
        raise exc
    code = HTTPStatus(exc.status_code).name.lower()
    body = {"error": {"code": code, "message": exc.detail}}
    return JSONResponse(body, status_code=exc.status_code, headers=exc.headers)


def _is_json(request: Request) -> bool:
    content_type = request.headers.get("content-type", "")
    return content_type.partition(";")[0].strip().lower() == "application/json"


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
