"""What the fault tests share: an orchestrator behind a proxy that breaks things, and what must hold."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from fastapi import Request
from starlette.responses import JSONResponse, Response

from tests import pdfs
from tests.chaos_proxy import ChaosProxy, proxying
from tests.fake_engine import MODEL, FakeEngine, Script, serving
from tests.running import Program, orchestrator

QUESTION = "When does the tide gate close?"
FREED_WITHIN_S = 1.0
PATIENCE_S = 15.0
"""What clients wait for an answer; more than any timer here allows."""
CHAT = b"POST /v1/chat"
SMALL = {
    "connect_timeout_s": "0.5",
    "first_token_timeout_s": "1.5",
    "stall_timeout_s": "1",
    "engine_poll_s": "0.1",
    "metrics_stale_s": "0.5",
    "breaker_window_s": "2",
    "breaker_open_s": "0.5",
    "embed_wait_s": "1",
    "keep_alive_s": "0.5",
    "write_timeout_s": "1",
    # A test must not find the budget spent by the one before it.
    "retry_per_s": "10",
}
"""Settings under which every fault shows within a second or two."""


class FaultyEngine(FakeEngine):
    """
    The scripted engine, with metrics, raw streams and refusals by number.

    Attributes:
        page: What `/metrics` says; None is 404, and so an engine that never had any.
        page_s: Pause before it does.
        raw: Instead of the script's stream, these bytes, one write each.
        refuse: The status with which the nth request is answered, from 0; None for an answer.
        generated: Frames of answers that it has sent: its page counts them as tokens, and as steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.page: Callable[[], str] | None = None
        self.page_s = 0.0
        self.raw: list[bytes] | None = None
        self.refuse: Callable[[int], int | None] = lambda _: None
        self.generated = 0

    def play(self, **script: Any) -> None:
        """Behave like this from now on; refusals and raw streams are over."""
        self.raw = None
        self.refuse = lambda _: None
        super().play(**script)

    async def chat(self, request: Request) -> Response:
        status = self.refuse(len(self.requests))
        if status is not None:
            self.requests.append(await request.json())
            return JSONResponse({"error": {"message": "told to"}}, status)
        return await super().chat(request)

    async def _stream(self, script: Script) -> AsyncIterator[Any]:
        if self.raw is None:
            async for frame in super()._stream(script):
                self.generated += 1
                yield frame
            return
        self.running += 1
        try:
            for part in self.raw:
                self.generated += 1
                yield part
        finally:
            self.running -= 1

    async def metrics(self) -> Response:
        await asyncio.sleep(self.page_s)
        return Response(status_code=404) if self.page is None else Response(self.page())

    def gauges(self, *, kv_tokens: int = 100_000) -> str:
        """What vLLM would say of itself now."""
        labels = f'engine="0",model_name="{MODEL}"'
        return "\n".join([
            f"vllm:num_requests_running{{{labels}}} {float(self.running)}",
            f"vllm:num_requests_waiting{{{labels}}} 0.0",
            f"vllm:kv_cache_usage_perc{{{labels}}} 0.0",
            f"vllm:num_preemptions_total{{{labels}}} 0.0",
            f"vllm:prompt_tokens_total{{{labels}}} 0.0",
            f"vllm:generation_tokens_total{{{labels}}} {float(self.generated)}",
            f"vllm:iteration_tokens_total_count{{{labels}}} {float(self.generated)}",
            f'vllm:cache_config_info{{engine="0",kv_cache_size_tokens="{kv_tokens}"}} 1.0',
            "",
        ])


@dataclass
class Bench:
    """
    An orchestrator, the proxy before its engine, and the engine.

    Attributes:
        http: A plain client of the orchestrator.
        idle_tasks: Tasks of the orchestrator when nothing happens.
    """

    program: Program
    proxy: ChaosProxy
    engine: FaultyEngine
    http: httpx2.Client
    idle_tasks: int = 0

    def ask(self, **body: Any) -> httpx2.Response:
        """One question, as a person would ask it."""
        return self.http.post("/ask", json={"question": QUESTION, **body})

    def events(self, **body: Any) -> list[tuple[str, dict[str, Any]]]:
        """(name, data) of each event of a streamed answer."""
        asked = {"question": QUESTION, "stream": True, **body}
        with self.http.stream("POST", "/ask", json=asked) as response:
            assert response.status_code == 200, response.read()
            return [(e.event, json.loads(e.data)) for e in httpx2.EventSource(response)]

    def status(self) -> dict[str, Any]:
        """The orchestrator's picture of itself."""
        picture: dict[str, Any] = self.http.get("/status").json()
        return picture

    def series(self, name: str) -> float:
        """The value of a Prometheus series, labels and all in its name."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise AssertionError(f"/metrics has no {name}")

    def breaker(self, name: str = "engine") -> str:
        """The state of a breaker."""
        return str(self.status()["breakers"][name])

    def heal(self) -> None:
        """No fault any more, and the orchestrator knows it."""
        self.proxy.play()
        self.engine.play()
        trusted_again(self.program.url, "engine")
        self.engine.play()

    def nothing_left(self, within_s: float = FREED_WITHIN_S) -> None:
        """Within a second every reservation is given back, and no task or request is left over."""
        nothing_left(self.http, self.engine, within_s)
        assert wait_until(lambda: self.status()["process"]["tasks"] <= self.idle_tasks), (
            f"{self.status()['process']['tasks']} tasks, {self.idle_tasks} before"
        )

    def embedder(self) -> psutil.Process:
        """The embedder's process."""
        for process in self.program.descendants():
            if "orchestrator.retrieval.embedder_process" in process.cmdline():
                return process
        raise AssertionError("no embedder runs")


@contextmanager
def bench(data_dir: Path, *, own_embedder: bool = False, **settings: str) -> Iterator[Bench]:
    """
    The three of them with the sample handbook inside, until the block ends.

    Args:
        data_dir: The orchestrator's data folder.
        own_embedder: Whether the orchestrator runs the real one, or asks the engine, not through the proxy.
        settings: ORCHESTRATOR_* without the prefix; `SMALL` where none is given.
    """
    with (
        serving(FaultyEngine()) as engine,
        proxying(engine.url) as proxy,
        orchestrator(
            data_dir,
            proxy.url,
            **SMALL | ({} if own_embedder else {"embedder_url": engine.url}) | settings,
        ) as program,
        httpx2.Client(base_url=program.url, timeout=PATIENCE_S, trust_env=False) as http,
    ):
        assert isinstance(engine, FaultyEngine)
        made = Bench(program, proxy, engine, http)
        upload(http)
        assert made.ask(degrade=False).status_code == 200
        engine.play()
        made.idle_tasks = made.status()["process"]["tasks"]
        yield made


def upload(http: httpx2.Client) -> httpx2.Response:
    """The sample handbook in the default collection, searchable."""
    response = http.post(
        "/upload",
        params={"wait": "true"},
        files={"file": ("handbook.pdf", pdfs.handbook(), "application/pdf")},
    )
    assert response.status_code == 200, response.text
    return response


def nothing_left(http: httpx2.Client, engine: FakeEngine, within_s: float = FREED_WITHIN_S) -> None:
    """Within a second nobody runs, nobody waits, nothing is reserved, and the engine is idle."""

    def left() -> dict[str, Any]:
        gate = http.get("/status").json()["gate"]
        return {
            "engine": engine.running,
            **{name: gate[name] for name in ("running", "queued", "reserved_tokens")},
        }

    assert wait_until(lambda: not any(left().values()), within_s), left()


def trusted_again(url: str, breaker: str) -> None:
    """Ask until the breaker is closed; it needs a request that goes well."""
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as http:

        def closed() -> bool:
            picture = http.get("/status").json()
            if picture["dependencies"][breaker]["status"] == "ok":
                return True
            http.post("/ask", json={"question": QUESTION})
            return False

        assert wait_until(closed, 15), http.get("/status").json()["dependencies"]


def refused(response: httpx2.Response) -> tuple[int, str]:
    """(status, code) of an error, which has the one shape."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert response.headers["x-request-id"]
    return response.status_code, error["code"]


def is_passages_only(response: httpx2.Response) -> bool:
    """Whether it is an L3 answer that says so everywhere, and holds cited passages."""
    if response.headers.get("x-tidegate-degraded") != "L3":
        return False
    body = response.json()
    assert response.status_code == 200
    assert body["degraded"]["level"] == "L3"
    assert body["degraded"]["reason"]
    assert body["citations"][0]["text"] in body["answer"]
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}
    return True


def raw_request(http: httpx2.Client, method: str, path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a request, for clients that misbehave below HTTP."""
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {http.base_url.host}",
        f"Content-Length: {len(body)}",
        *(headers or ("Content-Type: application/json",)),
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


@contextmanager
def connected(http: httpx2.Client, *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    """A bare connection to the orchestrator; `receive_bytes` makes its receive buffer that small."""
    with socket.socket() as raw:
        if receive_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        raw.settimeout(10)
        raw.connect((http.base_url.host, http.base_url.port))
        yield raw


def wait_until(condition: Callable[[], Any], seconds: float = 3.0, *, look_s: float = 0.01) -> bool:
    """Whether the condition came true in time; looked at every `look_s` seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(look_s)
    return bool(condition())
