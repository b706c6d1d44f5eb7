"""
The plugs of `make chaos`: how each is pulled and put back, and what has to be seen meanwhile.

A plug is a generator-based context: pulled on entering, put back on leaving. What it sees in between that
breaks its own promise it appends to `broken`; what holds for all of them is judged in `chaos.py`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psutil

from loadtest.chaos_stage import Stage
from tests.disks import fill
from tests.pdfs import text_pdf

READY_S = 5.0
"""A restarted orchestrator; as in docs/operations.md."""
STALE_WITHIN_S = 10.0
LOOK_S = 0.2
INSUFFICIENT_STORAGE = 507

Broken = list[str]
Pull = Callable[[Stage, Broken], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Plug:
    """
    Something that goes wrong.

    Attributes:
        promise: What callers are promised, in words.
        pull: Takes the stage, and the list for broken promises.
        out_s: How long it stays pulled.
        connections: Whether broken connections are part of it.
        served: Share of the arrivals that get a whole answer while it is pulled, at least.
        storm_x: Further load while it is pulled, in multiples of the ordinary one.
    """

    name: str
    promise: str
    pull: Pull
    out_s: float = 10.0
    connections: bool = False
    served: float = 0.0
    storm_x: float = 0.0


@contextmanager
def engine_killed(stage: Stage, broken: Broken) -> Iterator[None]:
    """EngineCore, or whatever the engine's own process is, ends at once."""
    restarts = stage.stack.keeper()["restarts"]
    for process in stage.stack.engine_family():
        process.send_signal(signal.SIGKILL)
    yield
    stage.engine_ready()
    if stage.stack.keeper()["restarts"] <= restarts:
        broken.append("model_server counted no restart of the engine")


@contextmanager
def engine_stopped(stage: Stage, broken: Broken) -> Iterator[None]:
    """All its processes stand still, connections open."""
    del broken
    processes = stage.stack.engine_family()
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def by_proxy(**faults: object) -> Pull:
    """The proxy does this to the questions, for as long as it is pulled."""

    @contextmanager
    def pull(stage: Stage, broken: Broken) -> Iterator[None]:
        del broken
        stage.proxy.play(only=b"POST /v1/chat", **faults)
        try:
            yield
        finally:
            stage.proxy.play()

    return pull


@contextmanager
def metrics_dead(stage: Stage, broken: Broken) -> Iterator[None]:
    """The engine's metrics are never answered: an alarm, and never taken for idle."""
    stage.proxy.play(only=b"GET /metrics", silent=True)
    try:
        time.sleep(STALE_WITHIN_S)
        if not stage.stack.status()["gate"]["engine_metrics_stale"]:
            broken.append(f"engine_metrics_stale is not told after {STALE_WITHIN_S:g} s")
        yield
    finally:
        stage.proxy.play()
    if not _until(lambda: not stage.stack.status()["gate"]["engine_metrics_stale"]):
        broken.append("engine_metrics_stale stays, with metrics back")


@contextmanager
def orchestrator_killed(stage: Stage, broken: Broken) -> Iterator[None]:
    """Killed with -9, and started again at once, as `make run` does."""
    before = stage.documents()
    os.kill(stage.stack.orchestrator.process.pid, signal.SIGKILL)
    stage.stack.orchestrator.process.wait()
    took_s = stage.start_again()
    if took_s > READY_S:
        broken.append(f"ready after {took_s:.1f} s, not within {READY_S:g}")
    if stage.documents() != before:
        broken.append("its documents are not what they were")
    yield


@contextmanager
def disk_full(stage: Stage, broken: Broken) -> Iterator[None]:
    """No byte is left: uploads are told so, questions go on; with space all is as before."""
    if stage.disk is None:
        raise ValueError("there is no disk of its own to fill")
    filler = fill(stage.disk)
    try:
        answer = stage.upload("full.pdf", text_pdf(["There is no room for this page."]))
        if answer.status_code != INSUFFICIENT_STORAGE:
            broken.append(f"an upload was answered {answer.status_code}, not 507")
        yield
    finally:
        filler.unlink()
    answer = stage.upload("after.pdf", text_pdf(["There is room for this page again."]))
    if not answer.is_success:
        broken.append(f"with space again an upload was answered {answer.status_code}")


@contextmanager
def embedder_killed(stage: Stage, broken: Broken) -> Iterator[None]:
    """Searches go by words and say so, until another one is up."""
    children = psutil.Process(stage.stack.orchestrator.process.pid).children(recursive=True)
    victims = [p for p in children if "embedder_process" in " ".join(p.cmdline())]
    if not victims:
        broken.append("there was no embedder to kill")
    for victim in victims:
        victim.kill()
    yield


@contextmanager
def nothing(stage: Stage, broken: Broken) -> Iterator[None]:
    """Nothing breaks; more people come."""
    del stage, broken
    yield


TOLD = "an answer, the passages, or a refusal that says when to come back"
PLUGS = (
    Plug("engine killed", f"{TOLD}; whole answers once it is back", engine_killed, out_s=5),
    Plug("engine stopped", f"{TOLD}; nobody waits beyond the deadline", engine_stopped),
    Plug("engine refuses", TOLD, by_proxy(refuse=True)),
    Plug("engine slow", TOLD, by_proxy(drip_bytes_per_s=400.0)),
    Plug("engine lies", f"{TOLD}; never half an answer", by_proxy(garble_frame=2)),
    Plug("engine cuts", f"{TOLD}; never half an answer", by_proxy(cut_after_bytes=600)),
    Plug(
        "metrics dead",
        "told in /status, and answers as always",
        metrics_dead,
        out_s=STALE_WITHIN_S + 5,
        served=0.9,
    ),
    Plug(
        "orchestrator killed",
        f"ready within {READY_S:g} s with all its documents",
        orchestrator_killed,
        out_s=2,
        connections=True,
    ),
    Plug(
        "embedder killed",
        "answers as always, searched by words meanwhile",
        embedder_killed,
        served=0.9,
    ),
    Plug("disk full", "uploads get 507, questions are answered", disk_full, served=0.9),
    Plug("storm", "refused in milliseconds, the others answered", nothing, storm_x=20.0),
)


def _until(holds: Callable[[], bool], *, within_s: float = STALE_WITHIN_S) -> bool:
    until_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until_s:
            return False
        time.sleep(LOOK_S)
    return True
