"""
POST /v1/chat/completions: what vLLM checks, in its order, then the answer in one piece or in chunks.

A full engine says 503 before anything else. Requests that arrive together all pass that check, since
none of them counts until its prompt is rendered; those too many are refused a second time, and by
then a stream has begun with 200. Both are vLLM's.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from model_server.simulator import wire
from model_server.simulator.answers import Prompt, natural_length, pieces, read_prompt, render
from model_server.simulator.engine import Engine, Generation
from model_server.simulator.faults import Fault, Faults

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Sleep = Callable[[float], Awaitable[None]]

_STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]
_BREAKS = ("reset", "cut", "garbage", "error_event", "abort")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that holds: its prompt, and how long its answer will be."""

    prompt: Prompt
    answer_tokens: int
    finish_reason: str
    stream: bool
    include_usage: bool


@dataclass(slots=True)
class Exchange:
    """
    One HTTP request and its response.

    Attributes:
        reset: Ends the connection with RST.
    """

    receive: Receive
    send: Send
    reset: Callable[[], None]

    async def begin_stream(self) -> None:
        """Send the head of a stream of events."""
        await self.send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})

    async def part(self, body: bytes) -> None:
        """Send some of the body."""
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes) -> None:
        """Send the rest of the body."""
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def until_gone(self) -> None:
        """Return when the client has left."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


class Chat:
    """Answers chat completions from one engine."""

    def __init__(self, *, engine: Engine, faults: Faults, sleep: Sleep = asyncio.sleep) -> None:
        self._engine = engine
        self._faults = faults
        self._sleep = sleep
        self._numbers = itertools.count(1)

    async def answer(self, exchange: Exchange, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """
        The body of an answer in one piece; None when the response has gone out already.

        Raises:
            Refused: If the request is answered with an error.
        """
        due = self._faults.for_request()
        if "hang" in due:
            await exchange.until_gone()
            return None
        if fault := due.get("status"):
            raise wire.Refused(
                fault.status,
                "The simulator was told to fail.",
                body=fault.body,
                retry_after=fault.retry_after,
            )
        asked = self._read(body)
        await self._sleep(self._engine.profile.render_s * self._engine.config.time_scale)
        if asked.stream:
            await exchange.begin_stream()
            await self._stream(exchange, asked, due)
            return None
        return await self._whole(exchange, asked, due)

    def _read(self, body: Mapping[str, Any]) -> Asked:
        config = self._engine.config
        model, messages = body.get("model", config.model), body.get("messages")
        if model != config.model:
            raise wire.Refused(
                404,
                f"The model `{model}` does not exist. Valid aliases: {config.model}.",
                param="model",
            )
        if not isinstance(messages, list) or not messages:
            raise wire.Refused(400, "messages: a list with at least one message", param="messages")
        options = body.get("stream_options") or {}
        if options and not body.get("stream"):
            raise wire.Refused(
                400,
                "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
                param="stream_options",
            )
        self._admit()
        prompt = read_prompt(render(messages), block_size=config.block_size, seed=config.seed)
        if prompt.tokens >= config.max_model_len:
            raise wire.Refused(
                400,
                f"This model's maximum context length is {config.max_model_len} tokens. However, "
                f"your prompt contains at least {prompt.tokens} input tokens, which exceeds this "
                "limit even without any output tokens. Please reduce the length of the input "
                f"prompt. (parameter=input_tokens, value={prompt.tokens})",
                param="input_tokens",
            )
        tokens, reason = self._answer_length(body, prompt)
        return Asked(
            prompt, tokens, reason, bool(body.get("stream")), bool(options.get("include_usage"))
        )

    def _answer_length(self, body: Mapping[str, Any], prompt: Prompt) -> tuple[int, str]:
        """Tokens of the answer, and "stop" or "length"."""
        window = self._engine.config.max_model_len
        given = body.get("max_completion_tokens", body.get("max_tokens"))
        most = window if given is None else given
        if not isinstance(most, int) or most < 1:
            raise wire.Refused(
                400,
                f"max_tokens must be at least 1, got {most}. (parameter=max_tokens, value={most})",
                param="max_tokens",
            )
        if most > window:
            raise wire.Refused(
                400,
                f"max_tokens={most} cannot be greater than max_model_len={window}. "
                f"Please request fewer output tokens. (parameter=max_tokens, value={most})",
                param="max_tokens",
            )
        least = int(body.get("min_tokens") or 0)
        if least > most:
            raise wire.Refused(
                400, f"min_tokens must be less than or equal to max_tokens={most}, got {least}."
            )
        # What the window has no room for is cut off without a word.
        most = min(most, window - prompt.tokens)
        mean = self._engine.profile.answer_tokens
        wanted = max(least, natural_length(prompt, mean_tokens=mean))
        if body.get("ignore_eos"):
            wanted = most
        return min(wanted, most), "stop" if wanted < most else "length"

    def _admit(self) -> None:
        if reason := self._engine.refusal():
            raise wire.Refused(503, wire.BUSY[reason])

    def _start(self, asked: Asked) -> Generation:
        self._admit()
        return self._engine.start(
            asked.prompt, answer_tokens=asked.answer_tokens, finish_reason=asked.finish_reason
        )

    async def _whole(
        self, exchange: Exchange, asked: Asked, due: Mapping[str, Fault]
    ) -> dict[str, Any] | None:
        generation = self._start(asked)
        watcher = asyncio.create_task(self._abort_when_gone(exchange, generation))
        try:
            if fault := due.get("slow"):
                await self._sleep(fault.first_token_s)
            while not generation.ended:
                await generation.more()
        finally:
            await _cancelled(watcher)
            self._engine.abort(generation)
        if generation.aborted:
            return None
        return wire.completion(
            request_id=f"chatcmpl-{next(self._numbers):016x}",
            model=self._engine.config.model,
            created_s=int(time.time()),
            text=pieces(asked.prompt, 0, asked.answer_tokens),
            finish_reason="abort" if "abort" in due else asked.finish_reason,
            usage=_usage(asked, generation),
        )

    async def _stream(self, exchange: Exchange, asked: Asked, due: Mapping[str, Fault]) -> None:
        try:
            generation = self._start(asked)
        except wire.Refused as refused:
            await exchange.end(wire.data(refused.body) + wire.DONE)
            return
        watcher = asyncio.create_task(self._abort_when_gone(exchange, generation))
        try:
            await self._chunks(exchange, asked, generation, due)
        finally:
            await _cancelled(watcher)
            self._engine.abort(generation)

    async def _chunks(
        self, exchange: Exchange, asked: Asked, generation: Generation, due: Mapping[str, Fault]
    ) -> None:
        frames = wire.Frames(
            request_id=f"chatcmpl-{next(self._numbers):016x}",
            model=self._engine.config.model,
            created_s=int(time.time()),
        )
        breaking = next((due[kind] for kind in _BREAKS if kind in due), None)
        sent = 0
        async with aclosing(self._paced(generation, due)) as paces:
            async for start, stop in paces:
                if breaking and sent >= breaking.chunks:
                    break
                sent += 1
                head = b"" if start else frames.role()
                text = pieces(asked.prompt, start, stop)
                if breaking or stop < asked.answer_tokens:
                    await exchange.part(head + frames.text(text))
                    continue
                reason = None if "no_finish_reason" in due else asked.finish_reason
                tail = frames.usage(_usage(asked, generation)) if asked.include_usage else b""
                await exchange.end(head + frames.last(text, reason) + tail + wire.DONE)
        if breaking and not generation.aborted:
            await self._break(exchange, breaking, frames)

    async def _paced(
        self, generation: Generation, due: Mapping[str, Fault]
    ) -> AsyncGenerator[tuple[int, int], None]:
        """The answer's tokens, from and to, chunk by chunk, as fast as the faults let them come."""
        if fault := due.get("slow"):
            await self._sleep(fault.first_token_s)
        drip = due.get("drip")
        while not generation.ended:
            start, stop = await generation.more()
            # A drip is a drip: what has gathered meanwhile still comes token by token.
            width = 1 if drip else max(1, stop - start)
            for place in range(start, stop, width):
                if drip and place:
                    await self._sleep(drip.token_s)
                if generation.aborted:
                    return
                yield place, place + width

    async def _break(self, exchange: Exchange, fault: Fault, frames: wire.Frames) -> None:
        """End a stream as the fault has it."""
        match fault.kind:
            case "reset":
                exchange.reset()
            case "garbage":
                await exchange.end(wire.GARBAGE + wire.DONE)
            case "abort":
                await exchange.end(frames.last("", "abort") + wire.DONE)
            case "error_event":
                body = wire.error_body(500, "EngineCore encountered an issue.")
                await exchange.end(wire.data(body) + wire.DONE)
            case _:
                pass  # cut: the server closes a response that nobody ended

    async def _abort_when_gone(self, exchange: Exchange, generation: Generation) -> None:
        await exchange.until_gone()
        self._engine.abort(generation)


def _usage(asked: Asked, generation: Generation) -> wire.Usage:
    return wire.Usage(
        prompt_tokens=asked.prompt.tokens,
        completion_tokens=asked.answer_tokens,
        cached_tokens=generation.sequence.cached or 0,
    )


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
