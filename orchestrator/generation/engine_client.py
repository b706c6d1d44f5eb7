"""
The OpenAI wire to the engine: one streamed chat completion, told apart from every way it can fail.

Four timers guard a request (connect, first token, stall, total), a semaphore bounds how many are
out at once, and only what came before the first byte is tried again. Closing the stream closes the
connection, which makes vLLM abort the request.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx2
from tenacity import AsyncRetrying, RetryCallState

from orchestrator.domain import EngineChunk, FinishReason, Message, Sampling, Usage
from orchestrator.errors import (
    EngineError,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryPolicy, retry_on, stop_when, wait_for

MAX_EVENT_BYTES = 1024 * 1024
MAX_ERROR_CHARS = 500
END_S = 0.1
"""Longest wait for a body's end after [DONE]; an engine that keeps it open costs a new connection."""
KEEPALIVE_S = 4.0
"""vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE); ours must go first."""


@dataclass(frozen=True, slots=True)
class EngineTimeouts:
    """
    The timers of one request, in seconds; the deadline is the fourth.

    Attributes:
        connect_s: To open a connection.
        first_token_s: From sending the request to the first event.
        stall_s: Between two events.
    """

    connect_s: float
    first_token_s: float
    stall_s: float

    def __post_init__(self) -> None:
        if min(self.connect_s, self.first_token_s, self.stall_s) <= 0:
            raise ValueError(f"timers must be positive: {self!r}")


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model that the engine serves. `max_model_len` is None if it does not say."""

    id: str
    max_model_len: int | None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One completion to ask for. `max_tokens` is always sent: vLLM's default is the whole window."""

    model: str
    messages: Sequence[Message]
    max_tokens: int
    sampling: Sampling = Sampling()

    def body(self) -> dict[str, Any]:
        """The JSON that goes out."""
        chosen = {
            "top_p": self.sampling.top_p,
            "seed": self.sampling.seed,
            "stop": list(self.sampling.stop) or None,
        }
        return {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.sampling.temperature,
            **{name: value for name, value in chosen.items() if value is not None},
            "stream": True,
            "stream_options": {"include_usage": True},
        }


class EngineClient:
    """
    A client of one OpenAI-compatible engine.

    Args:
        base_url: With or without a trailing /v1.
        max_concurrent: Requests that may be out at once.
        on_retry: Called with the failure before each further attempt.
    """

    def __init__(
        self,
        *,
        base_url: str,
        timeouts: EngineTimeouts,
        retry: RetryPolicy,
        max_concurrent: int,
        api_key: str | None = None,
        on_retry: Callable[[EngineError], None] = lambda _: None,
    ) -> None:
        self._timeouts = timeouts
        self._retry = retry
        self._on_retry = on_retry
        self._slots = asyncio.Semaphore(max_concurrent)
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self._http = httpx2.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(
                connect=timeouts.connect_s, read=None, write=timeouts.stall_s, pool=None
            ),
            limits=httpx2.Limits(
                max_connections=max_concurrent + 8,
                max_keepalive_connections=max_concurrent,
                keepalive_expiry=KEEPALIVE_S,
            ),
            trust_env=False,  # an engine is a neighbour: a proxy from the environment is a mistake
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def models(self) -> list[EngineModel]:
        """
        What the engine serves.

        Raises:
            EngineError: If it does not answer as an OpenAI-compatible engine.
        """
        payload = (await self._get("/v1/models")).json()
        try:
            return [EngineModel(m["id"], m.get("max_model_len")) for m in payload["data"]]
        except (KeyError, TypeError) as exc:
            raise EngineProtocolError("The engine's /v1/models is not the OpenAI shape.") from exc

    async def stream(
        self, request: EngineRequest, deadline: Deadline
    ) -> AsyncGenerator[EngineChunk, None]:
        """
        The completion, step by step; closing the iterator aborts it.

        Raises:
            EngineError: The kind tells how it failed.
            DeadlineExceeded: If the request's time is up.
        """
        async with deadline.scope():
            await self._slots.acquire()
        try:
            async with (
                self._first_byte(request, deadline) as events,
                aclosing(self._relay(events, deadline)) as chunks,
            ):
                async for chunk in chunks:
                    yield chunk
        finally:
            self._slots.release()

    async def _get(self, path: str) -> httpx2.Response:
        try:
            response = await self._http.get(path, timeout=self._timeouts.connect_s)
            response.raise_for_status()
        except httpx2.HTTPStatusError as exc:
            raise EngineUnavailable(
                f"The engine at {self.base_url} answered {exc.response.status_code} to {path}."
            ) from exc
        except httpx2.HTTPError as exc:
            raise self._unreachable(exc) from exc
        return response

    @asynccontextmanager
    async def _first_byte(
        self, request: EngineRequest, deadline: Deadline
    ) -> AsyncIterator[AsyncIterator[httpx2.ServerSentEvent]]:
        """An open stream of events; everything that may be retried happens in here."""
        async with AsyncExitStack() as stack:
            attempts = AsyncRetrying(
                retry=retry_on(),
                stop=stop_when(self._retry, deadline),
                wait=wait_for(self._retry),
                reraise=True,
                before_sleep=self._note,
            )
            response: httpx2.Response = await attempts(self._open, request, deadline, stack)
            yield aiter(httpx2.EventSource(response, max_event_size=MAX_EVENT_BYTES))

    def _note(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, EngineError):
            self._on_retry(error)

    async def _open(
        self, request: EngineRequest, deadline: Deadline, stack: AsyncExitStack
    ) -> httpx2.Response:
        """The response with its headers read and its status judged, owned by `stack`."""
        attempt = AsyncExitStack()
        timer = asyncio.timeout(self._timeouts.first_token_s)
        try:
            async with deadline.scope(), timer:
                response = await attempt.enter_async_context(
                    self._http.stream("POST", "/v1/chat/completions", json=request.body())
                )
                await self._judge(response)
        except TimeoutError as exc:
            await attempt.aclose()
            raise self._silent("first token", self._timeouts.first_token_s) from exc
        except httpx2.HTTPError as exc:
            await attempt.aclose()
            raise self._unreachable(exc) from exc
        except BaseException:
            await attempt.aclose()
            raise
        stack.push_async_callback(attempt.aclose)
        return response

    async def _relay(
        self, events: AsyncIterator[httpx2.ServerSentEvent], deadline: Deadline
    ) -> AsyncGenerator[EngineChunk, None]:
        """The stream's content, until [DONE]; anything else that ends it is an error."""
        patience_s, waits_for = self._timeouts.first_token_s, "first token"
        finished = False
        while True:
            timer = asyncio.timeout(patience_s)
            try:
                async with deadline.scope(), timer:
                    event = await anext(events)
            except StopAsyncIteration:
                raise EngineProtocolError(
                    "The engine's stream ended without [DONE]: the answer is incomplete."
                ) from None
            except TimeoutError as exc:
                raise self._silent(waits_for, patience_s) from exc
            except httpx2.HTTPError as exc:
                raise EngineProtocolError(
                    f"The connection to the engine broke mid-answer ({type(exc).__name__})."
                ) from exc
            if event.data == "[DONE]":
                break
            chunk = _parse(event.data)
            finished = finished or chunk.finish_reason is not None
            patience_s, waits_for = self._timeouts.stall_s, "next token"
            yield chunk
        await _read_to_end(events)
        if not finished:
            raise EngineProtocolError("The engine said [DONE] without a finish_reason.")

    async def _judge(self, response: httpx2.Response) -> None:
        """Do nothing if the engine accepted; raise what its status means if not."""
        if response.status_code != httpx2.codes.OK:
            raise self._refusal(response, await _head(response))

    def _silent(self, waited_for: str, timer_s: float) -> EngineTimeout:
        return EngineTimeout(
            f"The engine sent no {waited_for} within {timer_s:g} s. Ask again; "
            "if it stays, look at the engine's state in /status."
        )

    def _unreachable(self, exc: httpx2.HTTPError) -> EngineUnavailable:
        return EngineUnavailable(
            f"The engine at {self.base_url} cannot be reached ({type(exc).__name__}). "
            "It may still be loading: see /status."
        )

    def _refusal(self, response: httpx2.Response, text: str) -> EngineError:
        """A non-200 answer as one of our errors."""
        status = response.status_code
        retry_after_s = _seconds(response.headers.get("Retry-After"))
        message = _message(text) or f"status {status}"
        if status == httpx2.codes.TOO_MANY_REQUESTS or (
            status == httpx2.codes.SERVICE_UNAVAILABLE and "queue" in message.lower()
        ):
            return EngineOverloaded(
                f"The engine refused: {message}. Try again later.", retry_after_s=retry_after_s
            )
        if status in {httpx2.codes.BAD_GATEWAY, httpx2.codes.SERVICE_UNAVAILABLE}:
            return EngineUnavailable(
                f"The engine is not ready: {message}.", retry_after_s=retry_after_s
            )
        if status >= httpx2.codes.INTERNAL_SERVER_ERROR:
            return EngineProtocolError(f"The engine failed: {message}.")
        return EngineRejected(f"The engine rejected the request ({status}): {message}.")


async def _read_to_end(events: AsyncIterator[httpx2.ServerSentEvent]) -> None:
    """A body that was read to its end leaves its connection open for the next request."""
    with suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(END_S):
            await anext(events, None)


async def _head(response: httpx2.Response) -> str:
    """The first part of an error's body; a hostile one is not read to its end."""
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_EVENT_BYTES:
            break
    return body.decode("utf-8", "replace")


def _message(text: str) -> str:
    try:
        error = json.loads(text)["error"]
        message = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        message = text
    return str(message).strip().rstrip(".")[:MAX_ERROR_CHARS]


def _seconds(header: str | None) -> float | None:
    """A Retry-After in seconds; dates and nonsense count as none."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None


def _parse(data: str) -> EngineChunk:
    """
    One event of the stream.

    Raises:
        EngineProtocolError: If it is no chunk, an error told inside a 200, or an aborted answer.
    """
    try:
        payload = json.loads(data)
        if "error" in payload:
            raise EngineProtocolError(
                f"The engine failed mid-answer: {_message(data)}. Ask again in a moment."
            )
        usage = payload.get("usage")
        counted = Usage(usage["prompt_tokens"], usage["completion_tokens"]) if usage else None
        choices = payload["choices"]
        if not choices:
            return EngineChunk(usage=counted)
        text = choices[0]["delta"].get("content") or ""
        reason = choices[0].get("finish_reason")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise EngineProtocolError("The engine's stream is not the OpenAI wire.") from exc
    return EngineChunk(text=text, finish_reason=_finish_reason(reason), usage=counted)


def _finish_reason(reason: str | None) -> FinishReason | None:
    if reason in {None, "stop", "length"}:
        return reason  # type: ignore[return-value]  # narrowed by the set above
    raise EngineProtocolError(f"The engine gave the answer up (finish_reason {reason!r}).")
