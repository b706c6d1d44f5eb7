"""SIGTERM while questions are being answered, on real processes."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx2
import psutil
import pytest

from tests import pdfs
from tests.fake_engine import FakeEngine, serving
from tests.running import orchestrator

# Our server around an application that leaves a thread behind, as a look-up of a name can be.
LEAVES_A_THREAD = """
import asyncio, socket, time
from orchestrator.api.draining import Draining
from orchestrator.server import _Server

async def application(scope, receive, send):
    await receive()
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    await send({"type": "lifespan.startup.complete"})
    print("started", flush=True)
    await receive()
    await send({"type": "lifespan.shutdown.complete"})

server = _Server(draining=Draining(application), on_drain=lambda: None, drain_timeout_s=1)
server.run(sockets=[socket.create_server(("127.0.0.1", 0))])
"""

QUESTION = "At what water level are the gates closed?"
TOKENS = ["The gates ", "close ", "at ", "3.40 ", "m ", "[1]", "."]


@dataclass
class Stream:
    """One streamed question: what came, and when the first of it did."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    events: list[tuple[str, dict]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    def last(self):
        return self.events[-1]

    def run(self, url, path="/ask", **more):
        body = {"question": QUESTION, "stream": True, "degrade": False} | more
        with (
            httpx2.Client(base_url=url, timeout=60, trust_env=False) as client,
            client.stream("POST", path, json=body) as response,
        ):
            self.status, self.headers = response.status_code, dict(response.headers)
            if self.status != 200:
                self.events.append(("", json.loads(response.read())))
                return self
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                if line.startswith("data: {"):
                    self.events.append((name, json.loads(line.removeprefix("data: "))))
                    name = ""
                    if "word" in line or TOKENS[0] in line:
                        self.begun.set()
        return self


@dataclass
class Stage:
    """A running orchestrator of its own, its engine, and threads to ask from."""

    program: object
    engine: FakeEngine
    pool: ThreadPoolExecutor

    def ask(self, path="/ask", **more) -> tuple[Stream, "Future[Stream]"]:
        stream = Stream()
        return stream, self.pool.submit(stream.run, self.program.url, path, **more)

    def streaming(self, path="/ask", **more):
        """A question whose first token has come."""
        stream, future = self.ask(path, **more)
        assert stream.begun.wait(20), "no token came"
        return stream, future

    def full(self):
        """As many streaming questions as the gate lets in."""
        asked = [self.ask() for _ in range(self.gate()["concurrent"])]
        for stream, _ in asked:
            assert stream.begun.wait(20), "no token came"
        return [future for _, future in asked]

    def queued(self):
        """A question that waits at the gate."""
        _, future = self.ask(stream=False)
        until = time.monotonic() + 10
        while not self.gate()["queued"]:
            assert time.monotonic() < until, f"nobody waits: {self.gate()}"
            time.sleep(0.02)
        return future

    def gate(self):
        """What /status says of the gate."""
        status = httpx2.get(f"{self.program.url}/status", timeout=5, trust_env=False)
        return status.json()["gate"]


@pytest.fixture
def stage(tmp_path):
    """Starts an orchestrator that serves three questions at a time and has the handbook."""
    with serving(FakeEngine()) as engine, ThreadPoolExecutor(16) as pool:
        with orchestrator(
            tmp_path / "data",
            engine.url,
            max_concurrent_requests="3",
            max_queued_requests="4",
            drain_timeout_s="4",
            engine_poll_s="0.2",
        ) as running:
            httpx2.post(
                f"{running.url}/upload",
                params={"wait": "true"},
                files={"file": ("handbook.pdf", pdfs.handbook(), "application/pdf")},
                timeout=60,
                trust_env=False,
            ).raise_for_status()
            yield Stage(running, engine, pool)
        engine.play()  # lets go of whoever still streams


def stop(stage, number=signal.SIGTERM):
    """Signal it; the processes that it consists of."""
    family = stage.program.descendants()
    stage.program.process.send_signal(number)
    return family


def assert_gone(family):
    """Nothing of it is left a moment later."""
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_what_runs_finishes_and_nobody_else_is_served(stage):
    """Running: to the end. Queued: 503 at once, with a time. New: refused or 503. Exit code 0."""
    stage.engine.play(tokens=TOKENS, token_s=0.3)
    running = stage.full()
    waiting = stage.queued()
    family = stop(stage)
    began = time.monotonic()
    queued = waiting.result(3)
    assert time.monotonic() - began < 1.0
    assert queued.status == 503
    assert queued.events[0][1]["error"]["code"] == "not_ready"
    assert int(queued.headers["retry-after"]) >= 1
    time.sleep(0.3)
    late = Stream()
    try:
        late.run(stage.program.url)
    except httpx2.ConnectError:
        pass
    else:
        assert late.status == 503
    for answer in (future.result(10).last() for future in running):
        assert answer[0] == "done"
        assert answer[1]["answer"].endswith("[1].")
    assert stage.program.process.wait(15) == 0
    assert_gone(family)


def test_what_does_not_finish_in_time_is_told(stage):
    """Streams end with an error event, a whole answer is 503; the engine's requests are gone."""
    stage.engine.play(tokens=["word "] * 1000, token_s=0.1)
    asked = {"model": "fake-model", "messages": [{"role": "user", "content": QUESTION}]}
    _, ours = stage.streaming()
    _, openai = stage.streaming("/v1/chat/completions", **asked)
    _, whole = stage.ask(stream=False)
    until = time.monotonic() + 10
    while stage.engine.running < 3 and time.monotonic() < until:
        time.sleep(0.02)
    began = time.monotonic()
    family = stop(stage)
    ends = [ours.result(10).last(), openai.result(10).last(), whole.result(10).last()]
    assert 3.5 < time.monotonic() - began < 6
    assert [name for name, _ in ends] == ["error", "", ""]
    assert {payload["error"]["code"] for _, payload in ends} == {"not_ready"}
    assert [whole.result().status, whole.result().headers["retry-after"]] == [503, "5"]
    assert stage.program.process.wait(10) == 0
    assert_gone(family)
    assert stage.engine.running == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(stage, second):
    """Long before the timeout, told to the stream, still with exit code 0 and no child left."""
    stage.engine.play(tokens=["word "] * 1000, token_s=0.1)
    _, done = stage.streaming()
    family = stop(stage)
    time.sleep(0.5)
    assert stage.program.process.poll() is None
    began = time.monotonic()
    stage.program.process.send_signal(second)
    assert stage.program.process.wait(5) == 0
    assert time.monotonic() - began < 2.0
    name, payload = done.result(5).last()
    assert (name, payload["error"]["code"]) == ("error", "not_ready")
    assert payload["error"]["retry_after_s"] > 0, "headers went out long before"
    assert_gone(family)


def test_a_thread_that_hangs_does_not_hold_up_the_end():
    """When everything is closed nobody waits for a resolver or a disk that says nothing."""
    command = [sys.executable, "-c", LEAVES_A_THREAD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        began = time.monotonic()
        process.terminate()
        assert process.wait(60) == 0
        assert time.monotonic() - began < 5
