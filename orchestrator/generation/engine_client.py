"""
The OpenAI wire to the engine: one streamed chat completion, told apart from every way it can fail.

Four timers guard a request (connect, first token, stall, total), a semaphore bounds how many are
out at once, a breaker keeps requests from an engine that fails, and only what came before the first
byte is tried again. Closing the stream closes the connection, which makes vLLM abort the request.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from tenacity import AsyncRetrying, RetryCallState

from orchestrator.domain import EngineChunk
from orchestrator.errors import (
    EngineError,
    EngineOverloaded,
    EngineProtocolError,
    EngineTimeout,
    EngineUnavailable,
)
from orchestrator.generation.completion import Completion
from orchestrator.generation.engine_pages import KEEPALIVE_S, EnginePages
from orchestrator.generation.engine_refusals import no_stream, refusal
from orchestrator.generation.engine_request import EngineModel, EngineRequest, EngineTimeouts
from orchestrator.generation.engine_wire import EngineWire, Response
from orchestrator.generation.event_reader import EventReader
from orchestrator.generation.event_stream import EventStreamParser
from orchestrator.generation.response_body import WireError
from orchestrator.generation.socket_options import watched
from orchestrator.resilience.circuit_breaker import Call, CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryBudget, RetryPolicy, retry_on, stop_when, wait_for

__all__ = ["EngineClient", "EngineModel", "EngineRequest", "EngineTimeouts"]

MAX_ERROR_BYTES = 64 * 1024
END_S = 0.1
"""Longest wait for a body's end after [DONE]; an engine that keeps it open costs a new connection."""
PROBE_TOKENS = 8
"""Steps after which a half-open breaker's probe has proved that the engine works again."""
_EVENT_STREAM = "text/event-stream"
_COMPLETIONS = "/v1/chat/completions"


@dataclass(slots=True)
class _Answer:
    """An answer of the engine that has begun: 200, and a stream of events to come."""

    response: Response
    reader: EventReader
    call: Call
    asked_at_s: float
    slow: bool = False


class EngineClient:
    """
    A client of one OpenAI-compatible engine.

    Attributes:
        pages: Everything that is no completion.

    Args:
        base_url: With or without a trailing /v1.
        breaker: Told how each request ended; refuses requests while the engine fails.
        budget: What all requests together may spend on retries.
        max_concurrent: Requests that may be out at once.
        name: What messages call the engine.
        slow_first_token_s: A first token later than this counts as slow, in seconds.
        on_retry: Called with the failure before each further attempt.
        on_overload: Called with the engine's Retry-After, in seconds, each time it says it is full.
    """

    def __init__(
        self,
        *,
        base_url: str,
        timeouts: EngineTimeouts,
        retry: RetryPolicy,
        breaker: CircuitBreaker,
        budget: RetryBudget,
        max_concurrent: int,
        name: str = "engine",
        api_key: str | None = None,
        slow_first_token_s: float | None = None,
        on_retry: Callable[[EngineError], None] = lambda _: None,
        on_overload: Callable[[float | None], None] = lambda _: None,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.name = name
        self._timeouts = timeouts
        self._retry = retry
        self._breaker = breaker
        self._budget = budget
        self._slow_s = slow_first_token_s
        self._on_retry = on_retry
        self.on_overload = on_overload
        self._slots = asyncio.Semaphore(max_concurrent)
        headers = {
            "Accept-Encoding": "identity",  # to be relayed as it comes, not held back in blocks
            **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
        }
        self._wire = EngineWire(
            base_url=self.base_url,
            headers={"Accept": _EVENT_STREAM, **headers},
            connect_s=timeouts.connect_s,
            keepalive_s=KEEPALIVE_S,
            socket_options=watched(),
        )
        self.pages = EnginePages(
            base_url=self.base_url, name=name, timeout_s=timeouts.connect_s, headers=headers
        )

    async def aclose(self) -> None:
        """Close every connection."""
        self._wire.close()
        await self.pages.aclose()

    async def stream(
        self, request: EngineRequest, deadline: Deadline
    ) -> AsyncGenerator[EngineChunk, None]:
        """
        The completion, read by read; closing the iterator aborts it.

        Raises:
            EngineError: The kind tells how it failed.
            CircuitOpen: If the engine failed too often of late.
            DeadlineExceeded: If the request's time is up.
        """
        async with self._slot(deadline), self._first_byte(request, deadline) as answer:
            completion = Completion()
            with self._counted(answer.call):
                while not completion.ended:
                    chunk = await self._read(answer, completion, deadline)
                    if chunk is not None:
                        yield chunk
                if completion.error is not None:
                    raise completion.error
            answer.response.close(linger_s=END_S)

    @asynccontextmanager
    async def _slot(self, deadline: Deadline) -> AsyncIterator[None]:
        """A place among the requests that may be out at once."""
        async with deadline.scope():
            await self._slots.acquire()
        try:
            yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _first_byte(
        self, request: EngineRequest, deadline: Deadline
    ) -> AsyncIterator[_Answer]:
        """An answer that has begun; everything that may be retried happens in here."""
        failures: list[EngineError] = []

        async def attempt() -> _Answer:
            try:
                return await self._ask(request, deadline, self._enter(failures))
            except EngineError as exc:
                failures.append(exc)
                raise

        self._budget.earn()
        try:
            answer = await attempt()
        except EngineError as exc:
            answer = await self._again(attempt, exc, deadline)
        try:
            yield answer
        finally:
            answer.response.close()

    async def _again(
        self, attempt: Callable[[], Awaitable[_Answer]], failed: EngineError, deadline: Deadline
    ) -> _Answer:
        """What further attempts give, if any are left; the one that failed is the first of them."""
        first: EngineError | None = failed

        async def replayed() -> _Answer:
            nonlocal first
            if first is None:
                return await attempt()
            failure, first = first, None
            raise failure

        attempts = AsyncRetrying(
            retry=retry_on(),
            stop=stop_when(self._retry, deadline, self._budget, unless=self._troubled),
            wait=wait_for(self._retry),
            reraise=True,
            before_sleep=self._note,
        )
        answer: _Answer = await attempts(replayed)
        return answer

    def _enter(self, failures: list[EngineError]) -> Call:
        """
        Leave of the breaker to ask.

        Raises:
            CircuitOpen: If it refuses the first attempt.
            EngineError: The last failure, if this would be a retry and the breaker is not closed.
        """
        if failures and self._troubled():
            raise failures[-1]
        return self._breaker.enter()

    def _troubled(self) -> bool:
        """Whether the breaker is open, or waits for one probe: a retry is neither wanted there."""
        return self._breaker.state != "closed"

    def _note(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, EngineError):
            self._on_retry(error)

    @contextmanager
    def _counted(self, call: Call) -> Iterator[None]:
        """Tells the breaker of failures; what is no fault of the engine's is no failure."""
        try:
            yield
        except (EngineUnavailable, EngineTimeout, EngineProtocolError) as exc:
            call.failed(str(exc))
            raise
        except EngineOverloaded as exc:
            call.abandoned()
            self.on_overload(exc.retry_after_s)
            raise
        except BaseException:
            call.abandoned()
            raise

    async def _ask(self, request: EngineRequest, deadline: Deadline, call: Call) -> _Answer:
        """One attempt, up to the headers and what they mean."""
        response: Response | None = None
        asked_at_s = asyncio.get_running_loop().time()
        body = json.dumps(request.body(), ensure_ascii=False, separators=(",", ":"))
        with self._counted(call):
            try:
                async with self._patience(self._timeouts.first_token_s, deadline):
                    response = await self._wire.post(
                        _COMPLETIONS, body.encode(), traceparent=request.traceparent
                    )
                    await self._require_stream(response)
            except BaseException as exc:
                if response is not None:
                    response.close()
                if isinstance(exc, WireError):
                    raise self._unreachable(str(exc)) from exc
                raise
        reader = EventReader(response.body, EventStreamParser())
        return _Answer(response, reader, call, asked_at_s)

    @asynccontextmanager
    async def _patience(self, timer_s: float, deadline: Deadline) -> AsyncIterator[None]:
        """
        Cancel the block when the first token is overdue, or the deadline passes.

        Raises:
            EngineTimeout: If the engine kept silent for `timer_s` seconds.
            DeadlineExceeded: If the time was up before.
        """
        deadline.check()
        remaining_s = deadline.remaining_s()
        try:
            async with asyncio.timeout(min(timer_s, remaining_s)):
                yield
        except TimeoutError as exc:
            if remaining_s <= timer_s:
                raise deadline.error() from exc
            raise self._silent("first token", timer_s) from exc

    async def _require_stream(self, response: Response) -> None:
        """
        Do nothing if a stream of events is to come.

        Raises:
            EngineError: What the engine meant by its answer, if not.
        """
        content_type = response.headers.get("content-type", "")
        if response.status != HTTPStatus.OK:
            text = await _text(response)
            raise refusal(self.name, response.status, response.headers, text)
        if content_type.partition(";")[0].strip().lower() != _EVENT_STREAM:
            text = await _text(response)
            raise no_stream(self.name, content_type, text)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise EngineProtocolError(f"The {self.name} compresses its stream, unasked.")

    async def _read(
        self, answer: _Answer, completion: Completion, deadline: Deadline
    ) -> EngineChunk | None:
        """What the engine says next; None for what says nothing."""
        now_s = asyncio.get_running_loop().time()
        deadline_at_s = now_s + deadline.remaining_s()
        if completion.tokens:
            waits_for, timer_s, since_s = "next token", self._timeouts.stall_s, now_s
        else:
            waits_for, timer_s, since_s = (
                "first token",
                self._timeouts.first_token_s,
                answer.asked_at_s,
            )
        try:
            events = await answer.reader.read(min(since_s + timer_s, deadline_at_s))
        except TimeoutError as exc:
            if deadline_at_s <= since_s + timer_s:
                raise deadline.error() from exc
            raise self._silent(waits_for, timer_s) from exc
        except WireError as exc:
            raise EngineProtocolError(
                f"The connection to the {self.name} broke mid-answer: {exc}."
            ) from exc
        deadline.check()
        if not events:
            completion.cut()
            return None
        first = not completion.tokens
        chunk = completion.take(events)
        if first and self._slow_s is not None:
            answer.slow = asyncio.get_running_loop().time() - answer.asked_at_s > self._slow_s
        proven = answer.call.probe and completion.tokens >= PROBE_TOKENS
        if proven or (completion.ended and completion.error is None):
            answer.call.succeeded(slow=answer.slow)
        return chunk

    def _silent(self, waited_for: str, timer_s: float) -> EngineTimeout:
        return EngineTimeout(
            f"The {self.name} sent no {waited_for} within {timer_s:g} s. Ask again; "
            "if it stays, look at the engine's state in /status."
        )

    def _unreachable(self, why: str) -> EngineUnavailable:
        return EngineUnavailable(
            f"The {self.name} at {self.base_url} cannot be reached ({why}). "
            "It may still be loading: see /status."
        )


async def _text(response: Response) -> str:
    """
    The first part of what an engine says instead of an answer.

    Raises:
        WireError: If the connection broke before it was whole.
    """
    body = bytearray()
    while len(body) <= MAX_ERROR_BYTES and (part := await response.body.take()):
        body += part
    return body.decode("utf-8", "replace")
