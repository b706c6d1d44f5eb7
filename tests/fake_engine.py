"""
An engine without a model, for faults that a real one cannot be told to have.

Speaks the part of vLLM's wire that the orchestrator uses, over a real socket. What it does next is
a `Script`, chosen by the test; it counts what runs, so that aborts can be seen. It embeds, too, for
tests of which the real embedder, seven seconds of processor time at each start, is no part.
"""

import asyncio
import json
import re
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

MODEL = "fake-model"
WINDOW = 4096
DIMENSION = 384
"""That of the bundled embedding model."""


@dataclass
class Script:
    """
    How the next requests are answered.

    Attributes:
        tokens: What the answer says, piece by piece.
        statuses: Statuses to answer first, one a request, before the answer itself.
        first_token_s: Pause before the first token.
        token_s: Pause between tokens.
        ending: "done", or how the stream breaks: "cut", "error", "abort", "garbage", "no_reason",
            "length", "hang".
    """

    tokens: list[str] = field(default_factory=lambda: ["The gate", " closes [1]", "."])
    statuses: list[tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    first_token_s: float = 0.0
    token_s: float = 0.0
    ending: str = "done"


class FakeEngine:
    """The server, its script, and what it saw."""

    def __init__(self) -> None:
        self.script = Script()
        self.running = 0
        self.peak = 0
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.client_ports: list[int] = []
        self.url = ""
        self.metrics_text = ""
        self.app = FastAPI()
        self.app.add_api_route("/v1/models", self.models)
        self.app.add_api_route("/metrics", self.metrics)
        self.app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        self.app.add_api_route("/v1/embeddings", self.embeddings, methods=["POST"])

    def play(self, **script: Any) -> None:
        """Behave like this from now on."""
        self.script = Script(**script)
        self.requests.clear()
        self.headers.clear()
        self.peak = 0

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "max_model_len": WINDOW}]}

    async def metrics(self) -> Response:
        return Response(self.metrics_text, media_type="text/plain")

    async def embeddings(self, request: Request) -> dict[str, Any]:
        texts = (await request.json())["input"]
        data = [{"index": n, "embedding": _counted(text)} for n, text in enumerate(texts)]
        return {"object": "list", "data": data}

    async def chat(self, request: Request) -> Response:
        self.requests.append(await request.json())
        self.headers.append(dict(request.headers))
        self.client_ports.append(request.client.port if request.client else 0)
        if self.script.statuses:
            status, body, headers = self.script.statuses.pop(0)
            return JSONResponse(body, status, headers)
        return StreamingResponse(self._stream(self.script), media_type="text/event-stream")

    async def _stream(self, script: Script) -> AsyncIterator[str]:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(script.first_token_s)
            for text in script.tokens:
                yield _chunk({"content": text})
                await asyncio.sleep(script.token_s)
            async for text in self._end(script):
                yield text
        finally:
            self.running -= 1

    async def _end(self, script: Script) -> AsyncIterator[str]:
        if script.ending == "hang":
            await asyncio.sleep(3600)
        if script.ending == "cut":
            return
        if script.ending == "garbage":
            yield "data: {not json\n\n"
        if script.ending == "error":
            yield _data({"error": {"message": "EngineCore died", "code": 500}})
        reason = {"abort": "abort", "no_reason": None, "length": "length"}.get(
            script.ending, "stop"
        )
        yield _chunk({}, reason)
        tokens = len(script.tokens)
        yield _data({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": tokens}})
        yield "data: [DONE]\n\n"


def _counted(text: str) -> list[float]:
    """A vector whose numbers count the words that fall to each: more words in common, nearer."""
    vector = [0.01] * DIMENSION
    for word in re.findall(r"\w+", text.lower()):
        vector[zlib.crc32(word.encode()) % DIMENSION] += 1.0
    return vector


def _data(payload: dict[str, Any]) -> str:
    return f"data: {json.dumps(payload)}\n\n"


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> str:
    return _data({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


@contextmanager
def serving(engine: FakeEngine) -> Iterator[FakeEngine]:
    """The engine on a loopback port of its own, in a thread."""
    config = uvicorn.Config(engine.app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    engine.url = f"http://127.0.0.1:{port}"
    try:
        yield engine
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
