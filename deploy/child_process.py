"""
One program that `make run` keeps up: started in a session of its own, stopped with everything below it.

A program never outlives us: the kernel kills it when we are killed, and each program sees to what
it has started itself.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h
MAX_LOG_BYTES = 10 << 20
KILL_TAKES_S = 5.0


@dataclass(frozen=True, slots=True)
class Program:
    """
    What is to be run.

    Attributes:
        environment: The whole environment of the program.
        log: Where its output is appended.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


class ChildProcess:
    """A running program. It leads a session of its own, so Ctrl-C reaches us alone."""

    def __init__(self, program: Program) -> None:
        self._log = program.log
        program.log.parent.mkdir(parents=True, exist_ok=True)
        if program.log.exists() and program.log.stat().st_size > MAX_LOG_BYTES:
            program.log.replace(program.log.with_suffix(".log.1"))
        die_with_parent = dying_with(os.getpid())
        with program.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                program.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(program.environment),
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # we have one thread; nothing else sets PDEATHSIG
            )

    @property
    def pid(self) -> int:
        """The program's process id, and that of its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that killed it."""
        return self._process.poll()

    def last_lines(self, count: int) -> list[str]:
        """The end of what this process wrote."""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(self._log_start)
            return [line.decode(errors="replace").rstrip() for line in deque(log, maxlen=count)]
        return []

    def ask_to_stop(self) -> None:
        """Sends SIGTERM to the program and its group."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the program, its group and all that came of it, at once."""
        below = descendants(self.pid) if self.exit_code() is None else []
        self._signal_group(signal.SIGKILL)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()
        deadline = time.monotonic() + KILL_TAKES_S
        while any(is_running(process) for process in below) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def dying_with(parent: int) -> Callable[[], None]:
    """A function for the moment before exec, after which the kernel kills us with our parent."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return prepare


def is_running(process: psutil.Process) -> bool:
    """Whether a process still runs; one that has ended and waits to be collected does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def descendants(pid: int) -> list[psutil.Process]:
    """Every process below one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def stop_all(
    children: Sequence[ChildProcess],
    *,
    grace_s: float,
    hurry: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """
    Asks all to stop, waits, and kills what is left: nothing runs afterwards.

    Args:
        children: May hold some that have ended already; what they left in their group goes too.
        grace_s: Longest wait for them to end by themselves.
        hurry: Asked again and again; True ends the wait.
        clock: Seconds that only grow.
    """
    deadline = clock() + grace_s
    for child in children:
        child.ask_to_stop()
    while any(child.exit_code() is None for child in children):
        if clock() >= deadline or hurry():
            break
        time.sleep(0.05)
    for child in children:
        child.kill()
