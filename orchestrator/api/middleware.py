"""
Around every request: its id, its body's limit, its place in the access log.

Plain ASGI, so that a streamed answer is neither buffered nor cut from its client's disconnect.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.error_responses import CLIENT_CLOSED_REQUEST, error_response, internal_error
from orchestrator.errors import BodyTooLarge, ClientClosed, Internal, NotReady, OrchestratorError
from orchestrator.telemetry.logs import FIELDS, REQUEST_ID

logger = logging.getLogger("tidegate.access")

MAX_REQUEST_ID_CHARS = 128
LINGER_S = 2.0
"""How long a refused upload may go on sending: a reset would destroy the answer it has not read."""
QUIET_ROUTES = {"/healthz", "/readyz", "/metrics", "/web"}


@dataclass(frozen=True, slots=True)
class Finished:
    """What a request came to. `code` is "ok" or the error's code."""

    route: str
    code: str
    status: int
    seconds: float


class RequestContext:
    """
    Gives each request an id, counts it, logs it, and turns a bug into a 500 of the one shape.

    Args:
        max_open: Requests that may be open at once; the next one gets 503.
        on_finished: Called once for each request.
    """

    def __init__(
        self, app: ASGIApp, *, max_open: int, on_finished: Callable[[Finished], None]
    ) -> None:
        self._app = app
        self._max_open = max_open
        self._on_finished = on_finished
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        token = REQUEST_ID.set(request_id)
        scope.setdefault("state", {})["request_id"] = request_id
        self._open += 1
        try:
            await self._serve(scope, receive, send, request_id)
        finally:
            self._open -= 1
            REQUEST_ID.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        began_s = time.perf_counter()
        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                took_ms = (time.perf_counter() - began_s) * 1000
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode("latin-1")),
                    (b"server-timing", b"total;dur=%.2f" % took_ms),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            self._check_room()
            await self._app(scope, receive, stamped)
        except OrchestratorError as exc:
            await _answer(scope, receive, stamped, exc)
        except Exception as exc:
            if scope["state"].get("outcome") == Internal.code:
                return  # the framework has told it, and raises it once more for those who log
            error = internal_error(exc)
            if status:
                raise
            await _answer(scope, receive, stamped, error)
        finally:
            self._finish(scope, status, time.perf_counter() - began_s)

    def _check_room(self) -> None:
        if self._open > self._max_open:
            raise NotReady(
                f"{self._max_open} requests are open, the limit. Try again in a moment.",
                retry_after_s=1,
            )

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        outcome = scope["state"].get("outcome")
        code = outcome or ("ok" if status else ClientClosed.code)
        done = Finished(route, code, status or CLIENT_CLOSED_REQUEST, seconds)
        self._on_finished(done)
        level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
        fields = {
            "method": scope["method"],
            "route": route,
            "status": done.status,
            "code": code,
            "ms": round(seconds * 1000, 1),
            **_key(scope),
        }
        logger.log(level, "request", extra={FIELDS: fields})


class BodyLimit:
    """
    Refuses bodies over their route's limit: by Content-Length before a byte is read, else on the way.

    Args:
        limits: Bytes for each path that has a limit of its own.
        default_bytes: For every other path.
    """

    def __init__(self, app: ASGIApp, *, limits: dict[str, int], default_bytes: int) -> None:
        self._app = app
        self._limits = limits
        self._default_bytes = default_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._default_bytes)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > limit:
            await refuse(scope, receive, send, _too_large(limit))
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _too_large(limit)
            return message

        try:
            await self._app(scope, counted, send)
        except BodyTooLarge as exc:
            await refuse(scope, receive, send, exc)


async def refuse(scope: Scope, receive: Receive, send: Send, error: OrchestratorError) -> None:
    """The whole answer at once, then patience until the client has read it and hung up."""

    async def held_open(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Connection"] = "close"
        if message["type"] == "http.response.body":
            message = {**message, "more_body": True}
        await send(message)

    await _answer(scope, receive, held_open, error)
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(scope: Scope, receive: Receive, send: Send, error: OrchestratorError) -> None:
    Request(scope).state.outcome = error.code
    await error_response(error, path=scope["path"])(scope, receive, send)


def _key(scope: Scope) -> dict[str, str]:
    """Which key a request came with, by its id, which is no secret."""
    found = scope["state"].get("identity")
    return {} if found is None or found.key is None else {"key": found.key.id}


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The request's body is larger than {limit} bytes, the limit of this route. "
        "Send less at once."
    )


def _request_id(given: str | None) -> str:
    """The caller's id where it is a sane one, else a new one."""
    if given and len(given) <= MAX_REQUEST_ID_CHARS and given.isascii() and given.isprintable():
        return given
    return uuid.uuid4().hex
