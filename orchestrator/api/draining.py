"""The last thing around every request: what a shutdown says to those whom it cannot wait for."""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.error_responses import OPENAI_PREFIX, error_event, error_response
from orchestrator.api.sse import frame
from orchestrator.errors import NotReady

RETRY_AFTER_S = 5.0
"""What those who come while it drains are told: a restart takes about as long."""

LAST_WORDS_S = 0.5
"""How long a client that does not read may hold the end up, in seconds."""

ALWAYS_SERVED = frozenset({"/healthz", "/readyz", "/metrics", "/status"})


class _Open:
    """One request that is being answered."""

    __slots__ = ("complete", "event_stream", "scope", "send", "silenced", "started", "task")

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.send = send
        self.task = asyncio.current_task()
        self.started = False
        self.complete = False
        self.event_stream = False
        self.silenced = False

    async def pass_on(self, message: Message) -> None:
        """Send what the application says, until somebody else has had the last word."""
        if self.silenced:
            return
        if message["type"] == "http.response.start":
            self.started = True
            kind = Headers(raw=message.get("headers", [])).get("content-type", "")
            self.event_stream = kind.startswith("text/event-stream")
        else:
            self.complete = not message.get("more_body", False)
        await self.send(message)

    async def close(self, error: NotReady) -> None:
        """End the answer with an error, in the shape that it has begun in."""
        if self.complete or self.silenced:
            return
        self.silenced = True
        self.scope.setdefault("state", {})["outcome"] = error.code
        if not self.started:
            await error_response(error, path=self.scope["path"])(self.scope, _nothing, self.send)
        elif self.event_stream:
            ours = not self.scope["path"].startswith(OPENAI_PREFIX)
            text = frame(error_event(error), "error" if ours else None)
            await self.send({"type": "http.response.body", "body": text.encode()})


class Draining:
    """
    Lets requests in until `begin`, and ends those that are left with `finish`.

    A stream that cannot go on ends with an error event, an answer that has not begun is 503; what
    is neither (half a file) is cut off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: set[_Open] = set()
        self._draining = False
        self._empty = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._draining and scope["path"] not in ALWAYS_SERVED:
            await error_response(_leaving(), path=scope["path"])(scope, receive, send)
            return
        request = _Open(scope, send)
        self._open.add(request)
        try:
            await self._app(scope, receive, request.pass_on)
        except asyncio.CancelledError:
            if not request.silenced:
                raise
        finally:
            self._open.discard(request)
            self._note()

    def begin(self) -> None:
        """Answer every new request with 503; those inside go on."""
        self._draining = True
        self._note()

    async def emptied(self) -> None:
        """Return when it has begun to drain and nobody is left."""
        await self._empty.wait()

    async def finish(self) -> int:
        """
        Say the last words to whoever is left, and cancel their requests.

        Returns:
            How many were left.
        """
        left = list(self._open)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await asyncio.gather(
                    *(request.close(_leaving()) for request in left), return_exceptions=True
                )
        for request in left:
            if request.task is not None:
                request.task.cancel()
        return len(left)

    def _note(self) -> None:
        if self._draining and not self._open:
            self._empty.set()


def _leaving() -> NotReady:
    return NotReady(
        "The service is shutting down. Ask again in a moment.", retry_after_s=RETRY_AFTER_S
    )


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
