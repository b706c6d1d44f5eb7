"""An engine that gives its memory back while nobody asks: the real programs, with the simulator in its place."""

import concurrent.futures
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from deploy.stack_probe import HttpProbe, Look
from tests.fake_engine import FakeEngine, serving
from tests.faults import upload, wait_until
from tests.running import free_port, model_server, orchestrator
from tests.unit.model_server.making import write_model

QUESTION = "When does the tide gate close?"
START_S, SLEEPS_S = 30.0, 15.0
KEY = "the-control-key"


@dataclass
class Stack:
    """An orchestrator, and the model_server whose engine may sleep."""

    http: httpx2.Client
    control: httpx2.Client

    def ask(self, **body) -> httpx2.Response:
        """One question, as a person would ask it."""
        asked = {"question": QUESTION, "max_tokens": 16, "degrade": False, **body}
        return self.http.post("/ask", json=asked)

    def engine(self) -> dict:
        """What model_server says of it."""
        return self.control.get("/state").json()

    def status(self) -> dict:
        """What the orchestrator says of it."""
        return self.http.get("/status").json()["engine"]

    def falls_asleep(self) -> None:
        """It is put to sleep, and the orchestrator has noticed."""
        self.control.post("/wake")
        assert wait_until(lambda: self.engine()["state"] == "ready", START_S)
        assert self.control.post("/sleep").status_code == 202
        assert wait_until(lambda: self.engine()["phase"].startswith("asleep"), SLEEPS_S)
        assert wait_until(lambda: self.status()["asleep"], SLEEPS_S)


@contextmanager
def running_stack(folder: Path, **settings: str) -> Iterator[Stack]:
    """Both programs with the handbook inside; `settings` are MODEL_SERVER_* by their whole names."""
    simulated = {
        "MODEL_SERVER_ENGINE": "simulator",
        "MODEL_SERVER_MODEL": str(write_model(folder / "model")),
        "MODEL_SERVER_DEVICE": "cpu",
        "MODEL_SERVER_CONTROL_KEY": KEY,
        "MODEL_SERVER_ENGINE_PORT": str(free_port()),
    }
    with (
        serving(FakeEngine()) as embedder,
        model_server(folder, start_s=START_S, **(simulated | settings)) as keeper,
        orchestrator(
            folder / "data",
            f"http://127.0.0.1:{simulated['MODEL_SERVER_ENGINE_PORT']}",
            control_url=keeper.url,
            control_key=KEY,
            engine_poll_s="0.2",
            embedder_url=embedder.url,
        ) as running,
        httpx2.Client(base_url=running.url, timeout=60, trust_env=False) as http,
        httpx2.Client(
            base_url=keeper.url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
        ) as control,
    ):
        upload(http)
        yield Stack(http, control)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An engine that sleeps on demand only."""
    with running_stack(tmp_path_factory.mktemp("sleeping")) as made:
        yield made


def test_fifty_questions_at_once_wake_it_once(stack):
    """All of them wait and are answered whole; the engine is started a single time."""
    stack.falls_asleep()
    before = stack.engine()["wakes"]
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: stack.ask(), range(50)))
    assert {a.status_code for a in answers} <= {200, 429}
    whole = [a for a in answers if a.status_code == 200]
    assert len(whole) >= 36
    assert all(a.json()["degraded"] is None for a in whole)
    engine = stack.engine()
    assert (engine["wakes"], engine["restarts"]) == (before + 1, 0)
    assert stack.status()["waiting_for_wake"] == 0


def test_who_waits_sees_how_long(stack):
    """A stream begins with its place and the time that the start takes."""
    stack.falls_asleep()
    asked = {"question": QUESTION, "max_tokens": 16, "stream": True}
    with stack.http.stream("POST", "/ask", json=asked) as response:
        events = [(e.event, e.json()) for e in httpx2.EventSource(response)]
    name, notice = events[0]
    assert (name, notice["position"]) == ("queued", 1)
    assert 0 <= notice["eta_s"] <= START_S
    assert events[-1][0] == "done"
    assert events[-1][1]["degraded"] is None


def test_a_sleeping_engine_is_no_trouble(stack):
    """Ready, its model listed, and every page says that it sleeps; looking wakes nobody."""
    stack.falls_asleep()
    ready = stack.http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["dependencies"]["engine"]["detail"].startswith("Asleep")
    assert stack.http.get("/v1/models").json()["data"][0]["id"] == "model"
    metrics = stack.http.get("/metrics").text
    assert "\ntidegate_engine_asleep 1.0\n" in metrics
    assert "\ntidegate_engine_metrics_stale 0.0\n" in metrics
    assert stack.control.get("/readyz").json()["state"] == "sleeping"
    probe = HttpProbe(
        orchestrator_url=str(stack.http.base_url).rstrip("/"),
        control_url=str(stack.control.base_url).rstrip("/"),
        engine_url="",
    )
    with closing(probe):
        assert probe.look() == Look(ready=True, phase="ready"), "what `make run` says of it"
    found = stack.http.post("/search", json={"question": QUESTION})
    assert found.json()["passages"]
    assert stack.engine()["state"] == "sleeping"
    unload = stack.engine()["last_unload"]
    assert unload["freed_bytes"] >= 0


def test_too_little_time_is_told_and_the_next_one_finds_it_awake(stack):
    """503 with the time that the start takes; the start goes on without anybody waiting."""
    stack.falls_asleep()
    told = stack.ask(timeout_s=0.2)
    assert told.status_code in {503, 504}
    assert int(told.headers["retry-after"]) >= 1
    assert wait_until(lambda: stack.engine()["state"] == "ready", START_S)
    assert stack.ask().status_code == 200


def test_no_question_is_lost_to_an_engine_that_falls_asleep(stack):
    """Asked all the time while it is put to sleep again and again: each answer comes, and is whole."""
    over = threading.Event()
    answers: list[httpx2.Response] = []

    def asks() -> None:
        while not over.is_set():
            answers.append(stack.ask())

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(asks)
        try:
            for _ in range(4):
                unloads, answered = stack.engine()["unloads"], len(answers)
                assert wait_until(lambda n=answered: len(answers) >= n + 6, START_S)
                assert wait_until(lambda: stack.control.post("/sleep").status_code == 202, START_S)
                assert wait_until(lambda n=unloads: stack.engine()["unloads"] > n, START_S)
        finally:
            over.set()
    assert {a.status_code for a in answers} == {200}
    assert {a.json()["degraded"] is None for a in answers} == {True}


def test_it_falls_asleep_by_itself(tmp_path):
    """After the time that is set, our own canaries notwithstanding; the next question wakes it."""
    with running_stack(
        tmp_path, MODEL_SERVER_IDLE_UNLOAD_S="3", MODEL_SERVER_HANG_TIMEOUT_S="6"
    ) as stack:
        assert stack.ask().status_code == 200
        assert wait_until(lambda: stack.engine()["state"] == "sleeping", SLEEPS_S)
        assert wait_until(lambda: stack.status()["asleep"], SLEEPS_S)
        wakes = stack.engine()["wakes"]
        assert stack.ask().status_code == 200
        assert stack.engine()["wakes"] == wakes + 1


def test_orders_need_the_key(stack):
    """Without it nothing is told and nothing is done."""
    url = str(stack.control.base_url)
    assert httpx2.post(f"{url}/drain", json={}, trust_env=False).status_code == 401
    assert httpx2.get(f"{url}/state", trust_env=False).status_code == 401
    assert stack.engine()["state"] in {"ready", "sleeping"}
