"""
How each plug of `make chaos` is pulled and put back.

A pull is a generator-based context: pulled on entering, put back on leaving. What it sees in between that
breaks its own promise it appends to `broken`; what holds for all of them is judged in `chaos.py`.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import psutil

from loadtest.chaos_stage import Stage
from tests.disks import fill
from tests.pdfs import text_pdf

Broken = list[str]
Pull = Callable[[Stage, Broken], AbstractContextManager[None]]
Look = Callable[[Stage, Broken], None]

READY_S = 5.0
"""A restarted orchestrator; as in docs/operations.md."""
STALE_WITHIN_S = 10.0
ENDS_S = 10.0
LOOK_S = 0.2
QUICK_LOOK_S = 0.02
KILLS = 3
STOPPED_SHARE = 0.7
"""Of each second in which a program gets no processor time."""
DOCUMENTS, LONG_PAGES = 4, 200
"""More than are read and embedded before the disk is full."""
LESS_KV_TOKENS = "8192"
FINISHES_S = 60.0
MEAL_BYTES, MEAL_S, MEALS = 32 * 1024 * 1024, 0.5, 200
"""Slower than model_server looks, or the memory would be gone between two looks."""
HIGH_FOR_S = 13.0
"""A minute of an alarm is a second here (`prometheus.hurried`), and one wants ten minutes."""
EATER = "import sys\nheld = [bytearray(b'x') * int(line) for line in sys.stdin]"
INSUFFICIENT_STORAGE = 507


@contextmanager
def engine_killed(stage: Stage, broken: Broken) -> Iterator[None]:
    """EngineCore, or whatever the engine's own process is, ends at once."""
    restarts = stage.stack.keeper()["restarts"]
    stage.stack.kill_engine()
    yield
    # It is called ready until its end was noticed.
    if not _until(lambda: stage.stack.keeper()["restarts"] > restarts):
        broken.append("model_server counted no restart of the engine")
    stage.engine_ready()


@contextmanager
def engine_killed_again(stage: Stage, broken: Broken) -> Iterator[None]:
    """As soon as it is back it is killed once more."""
    for _ in range(KILLS):
        with engine_killed(stage, broken):
            pass
    yield


@contextmanager
def engine_stopped(stage: Stage, broken: Broken) -> Iterator[None]:
    """All its processes stand still, connections open, until model_server finds that it hangs."""
    hangs = stage.stack.keeper()["hangs"]
    processes = stage.stack.engine_family()
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        _resume(processes)
    if not _until(lambda: stage.stack.keeper()["hangs"] > hangs):
        broken.append("model_server did not find that the engine hung")
    stage.engine_ready()


@contextmanager
def engine_never_starts(stage: Stage, broken: Broken) -> Iterator[None]:
    """Killed, and whatever is started in its place stands still before it is ready."""
    before = stage.stack.engine_family()
    held: list[psutil.Process] = []

    def hold() -> None:
        with suppress(psutil.NoSuchProcess):  # gone between two looks
            for process in set(stage.stack.engine_family()).difference(before, held):
                process.suspend()
                held.append(process)

    stage.stack.kill_engine()
    try:
        with _again_and_again(hold, pause_s=QUICK_LOOK_S):
            yield
    finally:
        _resume(held)
    if not held:
        broken.append("model_server started no other engine")
    stage.engine_ready()


@contextmanager
def keeper_killed(stage: Stage, broken: Broken) -> Iterator[None]:
    """model_server itself: its engine must not outlive it, or two would share the memory."""
    family = stage.stack.engine_family()
    stage.keeper.process.kill()
    stage.keeper.process.wait()
    _, alive = psutil.wait_procs(family, timeout=ENDS_S)
    broken += [f"process {process.pid} of the engine outlived model_server" for process in alive]
    yield
    stage.keeper_again()


@contextmanager
def engine_smaller(stage: Stage, broken: Broken) -> Iterator[None]:
    """It has a smaller cache than was planned: told, and nothing more is let in than it holds."""
    del broken
    options = stage.changes["MODEL_SERVER_ENGINE_ARGS"]
    stage.keeper.stop()
    smaller = f"{options} --kv-cache-tokens {LESS_KV_TOKENS}"
    stage.keeper_again(MODEL_SERVER_ENGINE_ARGS=smaller)
    yield
    stage.keeper.stop()
    stage.keeper_again()


@contextmanager
def memory_eaten(stage: Stage, broken: Broken) -> Iterator[None]:
    """Somebody else takes the memory that the plan has left over, first some of it, then nearly all."""
    if stage.group is None:
        raise ValueError("there is no memory limit to come near to")
    with stage.group.around_children():
        eater = subprocess.Popen([sys.executable, "-c", EATER], stdin=subprocess.PIPE, text=True)
    try:
        for level, hold_s in (("high", HIGH_FOR_S), ("critical", 0.0)):
            if not _eats_until(eater, stage, level):
                broken.append(f"memory pressure does not become {level}")
            time.sleep(hold_s)
        yield
    finally:
        eater.kill()
        eater.wait()


def no_pressure(stage: Stage, broken: Broken) -> None:
    """With the memory back there is room again."""
    if not _until(lambda: _pressure(stage) == "none"):
        broken.append("memory pressure stays, with the memory back")


def _eats_until(eater: subprocess.Popen[str], stage: Stage, level: str) -> bool:
    """Whether it came to this pressure, a meal at a time."""
    for _ in range(MEALS):
        if _pressure(stage) == level:
            return True
        if eater.stdin is None or eater.poll() is not None:
            break
        eater.stdin.write(f"{MEAL_BYTES}\n")
        eater.stdin.flush()
        time.sleep(MEAL_S)
    return False


def _pressure(stage: Stage) -> str:
    return str(stage.stack.keeper()["pressure"])


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
    stage.stack.orchestrator.process.kill()
    stage.stack.orchestrator.process.wait()
    took_s = stage.start_again()
    if took_s > READY_S:
        broken.append(f"ready after {took_s:.1f} s, not within {READY_S:g}")
    if stage.documents() != before:
        broken.append("its documents are not what they were")
    yield


@contextmanager
def disk_full(stage: Stage, broken: Broken) -> Iterator[None]:
    """No byte is left: uploads are told so, work on documents waits, questions go on; then all as before."""
    if stage.disk is None:
        raise ValueError("there is no disk of its own to fill")
    for number in range(DOCUMENTS):
        pages = [f"Page {n} of {number} is read while the disk fills." for n in range(LONG_PAGES)]
        waits = stage.upload(f"waits-{number}.pdf", text_pdf(pages))
        if not waits.is_success:
            broken.append(f"with space an upload was answered {waits.status_code}")
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


def all_ready(stage: Stage, broken: Broken) -> None:
    """What waited for space is worked on in the end."""
    if not _until(lambda: set(stage.documents().values()) == {"ready"}, within_s=FINISHES_S):
        broken.append(f"with space again documents are {sorted(set(stage.documents().values()))}")


@contextmanager
def embedder_killed(stage: Stage, broken: Broken) -> Iterator[None]:
    """As often as it comes back: searches go by words and say so, until it may stay."""
    orchestrator = psutil.Process(stage.stack.orchestrator.process.pid)
    killed: set[int] = set()

    def kill() -> None:
        for child in orchestrator.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # gone between two looks
                if "embedder_process" in " ".join(child.cmdline()):
                    child.kill()
                    killed.add(child.pid)

    # Once would be too little: with its files in memory it is back before a client's second try.
    with _again_and_again(kill, pause_s=LOOK_S):
        yield
    if len(killed) < KILLS:
        broken.append(f"only {len(killed)} embedders came to be killed")


@contextmanager
def orchestrator_starved(stage: Stage, broken: Broken) -> Iterator[None]:
    """It gets no processor time for most of each second."""
    del broken
    process = psutil.Process(stage.stack.orchestrator.process.pid)

    def starve() -> None:
        process.suspend()
        time.sleep(STOPPED_SHARE)
        process.resume()

    with _again_and_again(starve, pause_s=1 - STOPPED_SHARE):
        yield


def no_look(stage: Stage, broken: Broken) -> None:
    """Nothing more has to hold than what holds for all."""


@contextmanager
def nothing(stage: Stage, broken: Broken) -> Iterator[None]:
    """Nothing breaks; more people come."""
    del stage, broken
    yield


def _resume(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@contextmanager
def _again_and_again(act: Callable[[], None], *, pause_s: float) -> Iterator[None]:
    """Do something beside the block for as long as it lasts, with a pause after each time."""
    over = threading.Event()

    def acting() -> None:
        while not over.wait(pause_s):
            act()

    thread = threading.Thread(target=acting)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _until(holds: Callable[[], bool], *, within_s: float = STALE_WITHIN_S) -> bool:
    until_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until_s:
            return False
        time.sleep(LOOK_S)
    return True
