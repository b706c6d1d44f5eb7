"""Programs under test: started on free loopback ports, watched, and stopped without a trace."""

import contextlib
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psutil

from orchestrator.telemetry.processor_time import process_cpu_s

ROOT = Path(__file__).parent.parent
STOP_S = 60.0
LOOK_EVERY_S = 0.2
LISTENING = re.compile(r"listening on (http://[0-9.]+:\d+)")


class NotStarted(Exception):
    """A program did not come up; the message has the end of what it wrote."""


@dataclass(slots=True)
class Program:
    """
    A running program.

    Attributes:
        url: Where it listens.
        log: File of everything that it wrote.
    """

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    http: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.http = _client(self.url)

    def found_at(self, url: str) -> None:
        """Note where it listens, now that it has said so."""
        self.http.close()
        self.url, self.http = url, _client(url)

    @property
    def address(self) -> tuple[str, int]:
        """(host, port)."""
        url = httpx2.URL(self.url)
        return url.host, url.port or 80

    def own_cpu_s(self) -> float:
        """CPU seconds of its own process, children left out."""
        return process_cpu_s(self.process.pid)

    def tree_cpu_s(self) -> float:
        """CPU seconds of the process and of all that run below it."""
        total = 0.0
        root = psutil.Process(self.process.pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                total += process_cpu_s(process.pid)
        return total

    def stop(self) -> None:
        """Ask it to end, and wait; what does not obey is killed with its children."""
        self.http.close()
        tree = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for left in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def running(
    arguments: Sequence[str],
    *,
    log: Path,
    start_s: float,
    url: str | None = None,
    ready_path: str = "/healthz",
    environment: Mapping[str, str] | None = None,
) -> AbstractContextManager[Program]:
    """
    `python -m arguments`, from the moment it is ready until the block ends.

    Args:
        arguments: What follows `python -m`.
        log: File for what it writes.
        start_s: Seconds that it may take until it is ready.
        url: Where it will listen; None if it says so itself (`listening on …`).
        ready_path: Answers 200 once it is ready.
        environment: Beside our own.

    Raises:
        NotStarted: If it ends, or is not ready in time.
    """
    command = [sys.executable, "-m", *arguments]
    return started(
        command, log=log, start_s=start_s, url=url, ready_path=ready_path, environment=environment
    )


@contextmanager
def started(
    command: Sequence[str],
    *,
    log: Path,
    start_s: float,
    url: str | None = None,
    ready_path: str = "/healthz",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Program]:
    """
    Any program, as `running`; its options are the same.

    Raises:
        NotStarted: If it ends, or is not ready in time.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    program = Program(process, url or "http://127.0.0.1", log)
    try:
        _wait_ready(program, named=url is not None, path=ready_path, start_s=start_s)
        yield program
    finally:
        if process.poll() is None:
            program.stop()


def wait_until_up(program: Program, *names: str, within_s: float) -> None:
    """
    Wait for parts that the service itself waits for no more.

    Args:
        program: A ready orchestrator.
        names: Of the parts, as in `/readyz`.
        within_s: Seconds that they have.

    Raises:
        NotStarted: If one is not up by then.
    """
    until_s = time.monotonic() + within_s
    while not are_up(program.http, *names):
        if time.monotonic() > until_s or program.process.poll() is not None:
            raise NotStarted(f"{names} not up within {within_s:g} s:\n{program.tail()}")
        time.sleep(LOOK_EVERY_S)


def are_up(http: httpx2.Client, *names: str) -> bool:
    """Whether these parts of an orchestrator are up, by their names in `/readyz`."""
    parts = http.get("/readyz").json()["dependencies"]
    return all(parts[name]["status"] == "ok" for name in names)


def end_in_order() -> None:
    """
    From now on SIGTERM ends this process as an exception does: what it has started is stopped.

    Otherwise programs, mounts and memory groups would outlive it.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def machine() -> str:
    """The processor, in words."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} cores of {names[0] if names else platform.machine()}"


def machine_cpu_s() -> float:
    """CPU seconds that all cores have worked, for whomever."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def commit() -> str:
    """The checkout's commit, and whether it was changed since; "unknown" where git cannot say."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _client(url: str) -> httpx2.Client:
    return httpx2.Client(base_url=url, timeout=60, trust_env=False)


def _wait_ready(program: Program, *, named: bool, path: str, start_s: float) -> None:
    until = time.monotonic() + start_s
    while time.monotonic() < until:
        if program.process.poll() is not None:
            raise NotStarted(f"exited with {program.process.returncode}:\n{program.tail()}")
        if not named and (said := LISTENING.search(program.log.read_text(errors="replace"))):
            named = True
            program.found_at(said.group(1))
        with contextlib.suppress(httpx2.HTTPError):
            if named and program.http.get(path, timeout=2).is_success:
                return
        time.sleep(LOOK_EVERY_S)
    raise NotStarted(f"not ready within {start_s:g} s:\n{program.tail()}")
