"""
A load test from nothing: starts a service, sends people to it with locust, makes the report.

    make loadtest [SHAPE=constant] [USERS=12] [MINUTES=10] [ENGINE=vllm] [TARGET=http://…]
    make loadtest TRACE=<file> SPEED=20      # the arrivals of a real service in the place of people

With TARGET the service runs already, and nothing is started. The exit code is 1 if an objective is missed.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

from loadtest import objectives, page
from loadtest.logbook import Logbook
from loadtest.programs import ROOT, end_in_order
from loadtest.shapes import SHAPES
from loadtest.stack import H100_LIKE, Stack, stack

USERS = {"vllm": 12, "simulator": 200}
"""What each engine takes with ease on two cores, at one act in half a minute each."""
LATE_S = 900.0
"""Longest time from the end of the shape until locust has waited for all that was open."""


def main() -> int:
    """Run it; gives the exit code."""
    options = _options()
    end_in_order()
    try:  # before anything is started
        limits = objectives.limits(options.objective)
        objectives.verdicts(Logbook(), limits)
    except ValueError as exc:
        print(exc, file=sys.stderr)
        return 2
    out: Path = options.out / time.strftime("%Y%m%d-%H%M%S")
    out.mkdir(parents=True)
    with _target(options, out) as (url, pid):
        code = _locust(options, out, url, pid)
    if not (out / "logbook.jsonl").exists():
        print(f"locust ended with {code} and wrote nothing down", file=sys.stderr)
        return code or 2
    found = page.written(out / "logbook.jsonl", limits)
    return 0 if all(verdict.held for verdict in found) else 1


@contextmanager
def _target(options: argparse.Namespace, out: Path) -> Iterator[tuple[str, int | None]]:
    """The service's URL and process: the one that was named, or one that is started here."""
    if options.target:
        yield options.target, None
        return
    with contextlib.ExitStack() as on:
        folder = Path(on.enter_context(tempfile.TemporaryDirectory()))
        started = on.enter_context(stack(options.engine, folder, simulator_options=H100_LIKE))
        print(f"{options.engine} and tidegate are up; the report comes to {out}", flush=True)
        with _killing(started, every_s=options.kill_engine_s):
            yield started.orchestrator.url, started.orchestrator.process.pid


@contextmanager
def _killing(started: Stack, *, every_s: float) -> Iterator[None]:
    """Kill the engine's processes every so often until the block ends; never, if that is 0."""
    over = threading.Event()
    killed = []

    def kill() -> None:
        while not over.wait(every_s):
            with contextlib.suppress(psutil.NoSuchProcess, httpx2.HTTPError):
                started.kill_engine()
                killed.append(time.monotonic())

    thread = threading.Thread(target=kill)
    if every_s:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if every_s:
            thread.join()
            restarts = started.keeper()["restarts"]
            print(f"the engine was killed {len(killed)} times and restarted {restarts} times")


def _locust(options: argparse.Namespace, out: Path, url: str, pid: int | None) -> int:
    seconds = round(options.minutes * 60)
    command = [
        *(sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"),
        *("--host", url, "--users", str(options.users or USERS[options.engine])),
        *("--run-time", f"{seconds}s", "--shape", options.shape, "--only-summary"),
        *("--logbook", str(out / "logbook.jsonl"), "--html", str(out / "locust.html")),
        *("--trace", options.trace or "", "--speed", str(options.speed)),
        *("--questions", options.questions, "--pdfs", options.pdfs, "--pid", str(pid or "")),
        *("--answer-tokens", str(options.answer_tokens), "--think-s", str(options.think_s)),
        *(part for limit in options.objective for part in ("--objective", limit)),
    ]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=seconds + LATE_S).returncode


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="constant")
    add("--engine", choices=sorted(USERS), default="vllm")
    add("--target", default="", help="URL of a service that runs already")
    add("--users", type=int, default=0, help="people at 1x")
    add("--minutes", type=float, default=10.0, help="length of the shape")
    add("--think-s", type=float, default=30.0, help="mean seconds between two acts of a person")
    add("--answer-tokens", type=int, default=48, help="mean of the longest answers, in tokens")
    add("--trace", type=_file, help="JSON lines: at_s, output_tokens, session, passages")
    add("--speed", type=float, default=1.0, help="how much faster the trace is played than it was")
    add("--questions", default="", help="file with pdf and question in each line")
    add("--pdfs", default="", help="folder of PDFs to upload")
    add("--kill-engine-s", type=float, default=0.0, help="kill the engine every so many seconds")
    add("--objective", action="append", default=[], metavar="NAME=VALUE", help="another limit")
    add("--out", type=Path, default=ROOT / "reports" / "loadtest")
    options = parser.parse_args()
    if options.kill_engine_s and (options.target or options.engine != "vllm"):
        parser.error("the engine is killed only where model_server was started here: ENGINE=vllm")
    return options


def _file(text: str) -> str:
    """
    The path of a file, in full: locust runs elsewhere.

    Raises:
        ValueError: If there is none.
    """
    if not Path(text).is_file():
        raise ValueError(text)
    return str(Path(text).resolve())


if __name__ == "__main__":
    sys.exit(main())
