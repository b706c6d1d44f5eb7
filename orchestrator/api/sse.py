"""Events become frames; a stream is closed however it ends."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from orchestrator.api.error_responses import dumps, error_event, internal_error
from orchestrator.errors import ClientClosed, OrchestratorError

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEEP_ALIVE = ": keep-alive\n\n"
MAX_HELD_CHARS = 64 * 1024
"""Gathered ahead of a slow client; beyond it the source waits."""
DONE = "data: [DONE]\n\n"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


def frame(payload: Mapping[str, Any], event: str | None = None) -> str:
    """One event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {dumps(payload)}\n\n"


def error_frame(error: OrchestratorError) -> str:
    """An error as the last event of a stream, by its name."""
    return frame(error_event(error), "error")


@dataclass(frozen=True, slots=True)
class StreamTimers:
    """
    How long a stream may be silent, and its client deaf, in seconds.

    Attributes:
        keep_alive_s: Silence after which a comment is sent.
        write_timeout_s: Longest time that a client may not read; then it is given up.
    """

    keep_alive_s: float = 10.0
    write_timeout_s: float = 30.0


class EventStream(StreamingResponse):
    """
    A stream of frames that closes its source at the end, also when nobody ever read it.

    Frames that are ready together go out together. A source that says nothing for a while is
    bridged by comments, so that nothing on the way takes the silence for a dead connection; a
    client that reads nothing for a while is given up.

    Args:
        frames: The frames.
        close: Awaited once, whatever happened.
        told: What an error becomes that comes after the first byte.
        headers: Headers of this answer, besides those of every stream.
        timers: How long either side may keep silent.
    """

    def __init__(
        self,
        frames: AsyncIterator[str],
        *,
        request: Request,
        close: Callable[[], Awaitable[None]],
        told: Callable[[OrchestratorError], str] = error_frame,
        timers: StreamTimers | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            frames, media_type="text/event-stream", headers={**HEADERS, **(headers or {})}
        )
        self._frames = frames
        self._request = request
        self._close = close
        self._told = told
        self._timers = timers or StreamTimers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's shape
        """Send the stream, until it ends or the client is gone."""
        outbox = _Outbox(self._frames, self._error_frame)
        watch = _WriteWatch(self._timers.write_timeout_s)
        try:
            async with _until_gone(receive), watch:
                await self._send_all(outbox, send, watch)
        except TimeoutError:
            self._request.state.outcome = ClientClosed.code
            logger.info("a client read nothing for %g s: given up", self._timers.write_timeout_s)
        finally:
            await outbox.aclose()
            await self._close()

    async def _send_all(self, outbox: "_Outbox", send: Send, watch: "_WriteWatch") -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with watch:
            await send(start)
        while (text := await outbox.take(self._timers.keep_alive_s)) is not None:
            body = (text or KEEP_ALIVE).encode()
            with watch:
                await send({"type": "http.response.body", "body": body, "more_body": True})
        with watch:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _error_frame(self, exc: Exception) -> str:
        """After the first byte an error cannot become a status, so it becomes a frame."""
        error = exc if isinstance(exc, OrchestratorError) else internal_error(exc)
        self._request.state.outcome = error.code
        return self._told(error)


class _Outbox:
    """Frames gathered by a task of its own, while the client is written to or nothing comes."""

    def __init__(self, frames: AsyncIterator[str], error_frame: Callable[[Exception], str]) -> None:
        self._frames = frames
        self._error_frame = error_frame
        self._held: list[str] = []
        self._held_chars = 0
        self._sender: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._alarm: asyncio.TimerHandle | None = None
        self._silent_at_s = 0.0
        self._task = self._loop.create_task(self._gather())

    async def take(self, silence_s: float) -> str | None:
        """Every frame that is ready; "" if none was for `silence_s` seconds; None at the end."""
        self._silent_at_s = self._loop.time() + silence_s
        while not self._held:
            if self._task.done():
                return None
            if self._loop.time() >= self._silent_at_s:
                return ""
            await self._news()
        text = "".join(self._held) if len(self._held) > 1 else self._held[0]
        self._held.clear()
        self._held_chars = 0
        self._room.set()
        return text

    async def aclose(self) -> None:
        """Stop gathering."""
        if self._alarm is not None:
            self._alarm.cancel()
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _gather(self) -> None:
        try:
            async for text in self._frames:
                await self._put(text)
        except Exception as exc:  # noqa: BLE001 - the client must be told, the log has the traceback
            await self._put(self._error_frame(exc))
        finally:
            self._wake()

    async def _put(self, text: str) -> None:
        self._held.append(text)
        self._held_chars += len(text)
        self._wake()
        if self._held_chars > MAX_HELD_CHARS:
            self._room.clear()
            await self._room.wait()

    async def _news(self) -> None:
        """Wait for a frame, the end or the alarm: one timer a stream, not one a frame."""
        if self._alarm is None:
            self._alarm = self._loop.call_at(self._silent_at_s, self._ring)
        self._sender = self._loop.create_future()
        try:
            await self._sender
        finally:
            self._sender = None

    def _ring(self) -> None:
        self._alarm = None  # whoever waits sees that it is early, and sets it anew
        self._wake()

    def _wake(self) -> None:
        if self._sender is not None and not self._sender.done():
            self._sender.set_result(None)


class _WriteWatch:
    """
    `async with`: leaves the block with a TimeoutError once a write in it, `with`, took too long.

    One timer a stream, not one a frame: a timer of its own made a tenth of a frame's cost.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._block = asyncio.current_task()
        self._timer: asyncio.TimerHandle | None = None
        self._writing_since_s: float | None = None
        self._expired = False

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._expired and self._block is not None:
            others = self._block.uncancel()  # somebody else may have cancelled it, too
            if kind is asyncio.CancelledError and not others:
                raise TimeoutError

    def __enter__(self) -> None:
        self._writing_since_s = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look)

    def __exit__(self, *_: object) -> None:
        self._writing_since_s = None

    def _look(self) -> None:
        self._timer = None
        since_s = self._writing_since_s
        if since_s is None or self._block is None:
            return  # the next write sets it anew
        if (late_s := since_s + self._timeout_s) > self._loop.time():
            self._timer = self._loop.call_at(late_s, self._look)
        else:
            self._expired = True
            self._block.cancel()


@asynccontextmanager
async def _until_gone(receive: Receive) -> AsyncIterator[None]:
    """The block is left without a word when the client hangs up."""
    block = asyncio.current_task()
    if block is None:
        raise RuntimeError("a stream is sent by a task")
    inside = True

    def leave(_: asyncio.Task[None]) -> None:
        if inside:
            block.cancel()

    listener = asyncio.create_task(_disconnected(receive))
    listener.add_done_callback(leave)
    try:
        yield
    except asyncio.CancelledError:
        if not listener.done() or block.uncancel():
            raise
    finally:
        inside = False
        listener.cancel()


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """
    What `work` gives; it is cancelled if the client hangs up first.

    Raises:
        ClientClosed: If the client is gone.
    """
    async with _until_gone(request.receive):
        return await work
    raise ClientClosed("The client hung up before the answer was ready.")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
