"""Events become frames; a stream is closed however it ends."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from orchestrator.api.error_responses import dumps, error_body, internal_error
from orchestrator.errors import ClientClosed, OrchestratorError

T = TypeVar("T")

KEEP_ALIVE = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


def frame(payload: Mapping[str, Any], event: str | None = None) -> str:
    """One event."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {dumps(payload)}\n\n"


class EventStream(StreamingResponse):
    """
    A stream of frames that closes its source at the end, also when nobody ever read it.

    Args:
        frames: The frames; errors inside become one `error` frame.
        close: Awaited once, whatever happened.
    """

    def __init__(
        self,
        frames: AsyncIterator[str],
        *,
        request: Request,
        close: Callable[[], Awaitable[None]],
        error_event: str | None = "error",
    ) -> None:
        super().__init__(
            _with_errors(frames, request, error_event),
            media_type="text/event-stream",
            headers=HEADERS,
        )
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


async def _with_errors(
    frames: AsyncIterator[str], request: Request, error_event: str | None
) -> AsyncGenerator[str, None]:
    """The frames; after the first byte an error cannot become a status, so it becomes a frame."""
    try:
        async for text in frames:
            yield text
    except OrchestratorError as exc:
        request.state.outcome = exc.code
        yield frame(error_body(exc), error_event)
    except Exception as exc:  # noqa: BLE001 - the client must be told, the log has the traceback
        error = internal_error(exc)
        request.state.outcome = error.code
        yield frame(error_body(error), error_event)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """
    What `work` gives; it is cancelled if the client hangs up first.

    Raises:
        ClientClosed: If the client is gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientClosed("The client hung up before the answer was ready.")
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
