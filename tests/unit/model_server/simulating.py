"""A simulated engine in virtual time, and its application without a socket."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx2

from model_server.simulator.app import App
from model_server.simulator.engine import Engine, EngineConfig
from model_server.simulator.faults import Faults
from model_server.simulator.latency import SMOLLM2_CPU

MODEL = "simulated"


class VirtualTime:
    """A clock that only sleeping moves; the next sleep takes `stall_s` longer."""

    def __init__(self):
        self.now_s = 0.0
        self.stall_s = 0.0

    def clock(self):
        return self.now_s

    async def sleep(self, seconds):
        self.now_s += seconds + self.stall_s
        self.stall_s = 0.0
        await asyncio.sleep(0)


class Simulated:
    """An engine, its faults, its application and its time."""

    def __init__(self, **limits):
        settings = {
            "model": MODEL,
            "kv_cache_tokens": 8192,
            "block_size": 16,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 512,
            "max_model_len": 2048,
        }
        self.time = VirtualTime()
        self.faults = Faults(seed=1, clock=self.time.clock)
        self.config = EngineConfig(**(settings | limits))
        self.engine = Engine(
            config=self.config,
            profile=SMOLLM2_CPU,
            faults=self.faults,
            clock=self.time.clock,
            sleep=self.time.sleep,
        )
        self.resets = []
        self.app = App(
            engine=self.engine,
            faults=self.faults,
            reset=self.resets.append,
            sleep=self.time.sleep,
        )

    @asynccontextmanager
    async def running(self):
        """The engine taking steps, and a client of its application."""
        steps = asyncio.create_task(self.engine.run())
        transport = httpx2.ASGITransport(app=self.app)
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://engine") as client:
                yield client
        finally:
            steps.cancel()
            await asyncio.gather(steps, return_exceptions=True)


def body(content="Say hello.", **fields):
    """A chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]} | fields


def events(text):
    """The payloads of a stream; [DONE] as it is."""
    frames = [frame.removeprefix("data: ") for frame in text.split("\n\n") if frame]
    return [frame if frame == "[DONE]" else json.loads(frame) for frame in frames]


def said(payloads):
    """The text of a stream."""
    chunks = [p for p in payloads if p != "[DONE]" and p.get("choices")]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)


async def send(app, payload, *, gone=None):
    """
    What the application sends for a chat request, message by message.

    `gone` is an event that is set when the client leaves; None for one that stays.
    """
    messages = [{"type": "http.request", "body": json.dumps(payload).encode()}]
    sent = []

    async def receive():
        if messages:
            return messages.pop()
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def answer(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    await app(scope, receive, answer)
    return sent
