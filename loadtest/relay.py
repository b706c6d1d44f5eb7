"""
How many chunks of an engine one core relays.

    make relay

Three processes: an engine that sends chunks made beforehand as fast as they are taken; uvicorn with
the parts that a token of `/ask` passes (`EngineClient`, `MarkFilter`, `frame`, `EventStream`); and
clients that only read. What counts is the CPU time of the middle one. Two rounds: flat out, and one
chunk a read, as an engine sends that is busy with other things between two tokens.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvicorn
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from loadtest.programs import commit, machine
from orchestrator.api.sse import EventStream, frame
from orchestrator.domain import EngineChunk, Message
from orchestrator.generation.citations import MarkFilter
from orchestrator.generation.engine_client import EngineClient, EngineRequest, EngineTimeouts
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryBudget, RetryPolicy
from orchestrator.telemetry.processor_time import process_cpu_s

ROOT = Path(__file__).parent.parent
WORDS = (
    " the",
    " gate",
    " closes",
    " at",
    " noon",
    " [1]",
    ",",
    " and",
    " opens",
    " at",
    " six",
    ".",
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
BATCH = 200
"""Chunks in one write of the engine that is flat out."""
LONGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many streams at once, of so many chunks; `pause_s` between two of a stream."""

    streams: int
    chunks: int
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a round took: seconds by the clock, and of the relay's CPU."""

    chunks: int
    wall_s: float
    cpu_s: float


def main() -> None:
    """Play one of the three parts, or measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--chunks", type=int, default=6000, help=f"a stream, flat out; by {BATCH}")
    parser.add_argument("--part", choices=("engine", "relay"), help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "engine":
        asyncio.run(_play_engine(socket.socket(fileno=arguments.fd), _load(arguments.load)))
    elif arguments.part == "relay":
        listener = socket.socket(fileno=arguments.fd)
        config = uvicorn.Config(Relay(arguments.engine), access_log=False, log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])
    else:
        flat_out = Load(arguments.streams, arguments.chunks // BATCH * BATCH)
        paced = Load(arguments.streams, 250, pause_s=0.02)
        print(f"\n{machine()}, no GPU used, commit {commit()}\n")
        print(
            "| what | chunks/s by the clock | chunks per CPU-second of the relay | its microseconds a chunk |"
        )
        print("|---|---|---|---|")
        for name, load in (("flat out", flat_out), ("one chunk a read", paced)):
            found = measure(load)
            print(
                f"| {load.streams} streams, {name} | {found.chunks / found.wall_s:,.0f} "
                f"| {found.chunks / found.cpu_s:,.0f} | {found.cpu_s / found.chunks * 1e6:.1f} |"
            )


def measure(load: Load) -> Figures:
    """One round, after a small one to warm up."""
    with (
        _part("engine", "--load", json.dumps([load.streams, load.chunks, load.pause_s])) as engine,
        _part("relay", "--engine", f"http://127.0.0.1:{engine[1]}") as (process, port),
    ):
        asyncio.run(_read_all(port, load))
        began_s, before_s = time.perf_counter(), process_cpu_s(process.pid)
        asyncio.run(_read_all(port, load))
        wall_s, after_s = time.perf_counter() - began_s, process_cpu_s(process.pid)
    return Figures(load.streams * load.chunks, wall_s, after_s - before_s)


class Relay:
    """The parts that a token of `/ask` passes, without what comes before the first one."""

    def __init__(self, engine_url: str) -> None:
        self._engine_url = engine_url
        self._client: EngineClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay one stream."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        if self._client is None:  # an event loop is needed for it
            self._client = _client(self._engine_url)
        chunks = self._client.stream(
            EngineRequest("relay", [Message("user", "go")], max_tokens=1), Deadline(LONGEST_S)
        )
        scope.setdefault("state", {})
        request = Request(scope, receive)
        await EventStream(_frames(chunks), request=request, close=chunks.aclose)(
            scope, receive, send
        )


def _client(url: str) -> EngineClient:
    return EngineClient(
        base_url=url,
        timeouts=EngineTimeouts(connect_s=5, first_token_s=60, stall_s=60),
        retry=RetryPolicy(),
        breaker=CircuitBreaker(name="engine", policy=BreakerPolicy()),
        budget=RetryBudget(),
        max_concurrent=1024,
    )


async def _frames(chunks: AsyncGenerator[EngineChunk, None]) -> AsyncIterator[str]:
    marks = MarkFilter(4)
    tokens = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            tokens += chunk.tokens
            if shown := marks.feed(chunk.text):
                yield frame({"text": shown}, "token")
    yield frame({"tokens": tokens}, "done")


class _Engine(asyncio.Protocol):
    """Answers every request with the same chunks, as vLLM would spell them."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._request = b""
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, found, body = self._request.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._request = body[length:]
            self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        load = self._load
        size = 1 if load.pause_s else BATCH
        parts = [_delta(word) for word in WORDS]
        batch = b"".join(parts[n % len(parts)] for n in range(size))
        self._transport.write(HEAD)
        for n in range(load.chunks // size):
            if load.pause_s:
                await asyncio.sleep(load.pause_s)
                batch = parts[n % len(parts)]
            await self._writable.wait()
            self._transport.write(batch)
        self._transport.write(_delta("", "length") + _event("[DONE]") + LAST)


def _delta(text: str, finish_reason: str | None = None) -> bytes:
    return _event(
        json.dumps(
            {
                "id": "chatcmpl-0123456789abcdef0123456789abcdef",
                "object": "chat.completion.chunk",
                "created": 1764000000,
                "model": "smollm2-135m-instruct",
                "choices": [
                    {
                        "index": 0,
                        "delta": {"content": text},
                        "logprobs": None,
                        "finish_reason": finish_reason,
                        "token_ids": None,
                    }
                ],
            },
            separators=(",", ":"),
        )
    )


def _event(data: str) -> bytes:
    body = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


async def _play_engine(listener: socket.socket, load: Load) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Engine(load), sock=listener)
    await server.serve_forever()


class _Sink(asyncio.Protocol):
    """Reads one stream to its end, and looks whether it ended well."""

    def __init__(self, chunks: int) -> None:
        self._last = b'{"tokens":%d}' % (chunks + 1)  # the step that says why it ended is one more
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-200:]
        if self._tail.endswith(LAST) and not self.ended.done():
            self.ended.set_result(self._last in self._tail)

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(False)


async def _read_all(port: int, load: Load) -> None:
    loop = asyncio.get_running_loop()
    sinks = []
    for _ in range(load.streams):
        transport, sink = await loop.create_connection(
            lambda: _Sink(load.chunks), "127.0.0.1", port
        )
        sinks.append((transport, sink))
    ended = await asyncio.wait_for(asyncio.gather(*(s.ended for _, s in sinks)), LONGEST_S)
    for transport, _ in sinks:
        transport.close()
    if not all(ended):
        raise SystemExit(f"{ended.count(False)} of {load.streams} streams did not end well")


@contextmanager
def _part(name: str, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """One of the other processes, on a socket that listens already, and its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        fd, port = listener.fileno(), int(listener.getsockname()[1])
        command = [sys.executable, "-m", "loadtest.relay", "--part", name, "--fd", str(fd), *more]
        process = subprocess.Popen(
            command, pass_fds=(fd,), env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    try:
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


def _load(text: str) -> Load:
    streams, chunks, pause_s = json.loads(text)
    return Load(streams, chunks, pause_s)


if __name__ == "__main__":
    main()
