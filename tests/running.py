"""The real programs, started as a user would start them, and stopped without a trace."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from loadtest.programs import are_up

START_S = 90.0
STOP_S = 30.0


@dataclass
class Program:
    """
    A running program.

    Attributes:
        url: Where it listens.
        log: Everything that it wrote.
    """

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def descendants(self) -> list[psutil.Process]:
        """The program's own process and all below it."""
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree."""
        return sum(p.memory_info().rss for p in self.descendants())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code, after a signal; killed if it does not obey."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            for process in self.descendants():
                process.kill()
            self.process.wait()
            raise AssertionError(f"did not stop within {STOP_S} s:\n{self.tail()}") from None

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def receive_until(raw: socket.socket, expected: bytes) -> bytes:
    """All that came until `expected` came; an AssertionError shows what came instead of it."""
    received = b""
    while expected not in received:
        try:
            part = raw.recv(65536)
        except TimeoutError:
            raise AssertionError(f"nothing came any more after {received!r}") from None
        assert part, f"closed after {received!r}"
        received += part
    return received


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(
    module: str,
    *,
    settings: dict[str, str],
    url: str,
    ready_path: str,
    log: Path,
    start_s: float,
    inside: Callable[[list[str]], list[str]] = lambda command: command,
) -> Iterator[Program]:
    """`python -m module serve`, perhaps `inside` of another command, from ready until the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            inside([sys.executable, "-m", module, "serve"]),
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    running = Program(process, url, log)
    try:
        _wait_ready(running, ready_path, start_s)
        yield running
    finally:
        running.stop()


@contextmanager
def orchestrator(
    data_dir: Path, engine_url: str, *, wait_for: Sequence[str] = ("embedder",), **settings: str
) -> Iterator[Program]:
    """
    A real orchestrator on a port of its own.

    Args:
        data_dir: Its data folder; made if there is none.
        engine_url: Where its engine listens.
        wait_for: Parts that have to be up, by their names in `/readyz`.
        settings: ORCHESTRATOR_* without the prefix.
    """
    port = free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        "ORCHESTRATOR_PORT": str(port),
        "ORCHESTRATOR_DATA_DIR": str(data_dir),
        "ORCHESTRATOR_ENGINE_URL": engine_url,
        **{f"ORCHESTRATOR_{name.upper()}": value for name, value in settings.items()},
    }
    with program(
        "orchestrator",
        settings=environment,
        url=f"http://127.0.0.1:{port}",
        ready_path="/healthz",
        log=data_dir / "orchestrator.log",
        start_s=START_S,
    ) as running:
        if wait_for:
            with httpx2.Client(base_url=running.url, trust_env=False) as http:
                _wait_for(running, http, wait_for)
        yield running


def _wait_for(running: Program, http: httpx2.Client, names: Sequence[str]) -> None:
    """Wait until these parts are up: the service itself does not."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if are_up(http, *names):
            return
        time.sleep(0.05)
    raise AssertionError(f"{names} not up within {START_S} s:\n{running.tail()}")


def model_server_settings(folder: Path, **changes: str) -> dict[str, str]:
    """Settings of a model_server on ports of its own, by their whole names; logs go to the folder."""
    return {
        "MODEL_SERVER_ENGINE_PORT": str(free_port()),
        "MODEL_SERVER_CONTROL_PORT": str(free_port()),
        "MODEL_SERVER_LOG_DIR": str(folder),
    } | changes


@contextmanager
def model_server(folder: Path, *, start_s: float, **changes: str) -> Iterator[Program]:
    """A real model_server with these settings, from when its engine is ready until the block ends."""
    settings = model_server_settings(folder, **changes)
    with program(
        "model_server",
        settings=settings,
        url=f"http://127.0.0.1:{settings['MODEL_SERVER_CONTROL_PORT']}",
        ready_path="/readyz",
        log=folder / "model_server.log",
        start_s=start_s,
    ) as running:
        yield running


def _wait_ready(running: Program, path: str, start_s: float) -> None:
    until = time.monotonic() + start_s
    while time.monotonic() < until:
        if running.process.poll() is not None:
            raise AssertionError(f"exited with {running.process.returncode}:\n{running.tail()}")
        try:
            if httpx2.get(running.url + path, timeout=2, trust_env=False).is_success:
                return
        except httpx2.HTTPError:
            time.sleep(0.1)
    raise AssertionError(f"not ready within {start_s} s:\n{running.tail()}")
