"""
Stays between the model server and its engine, so that neither leaves anything behind.

Run as a script: `python engine_guard.py FD COMMAND…`. It starts COMMAND below itself and ends with
its exit code. Whatever happens, nothing that COMMAND started outlives the guard:

1. COMMAND exits, or is killed: what it left running is killed. vLLM's EngineCore and workers
   otherwise live on and keep the memory when the API server dies.
2. FD, a pipe whose other end only the model server holds, is closed: by order, or because the
   model server was killed with -9. Everything is killed at once.
3. The guard itself is killed: the kernel kills COMMAND (parent-death signal).

What is killed cannot remove its shared memory, hundreds of MiB of vLLM's: that is removed as well,
except in the third case.

SIGTERM and SIGINT are passed on to COMMAND alone, which tells its own children.

Standard library only: imports nothing of ours, and knows nothing of engines.
"""

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

_SEGMENT = re.compile(r" (/dev/shm/psm_[^/\s]+)$", re.MULTILINE)
"""A segment among a process' maps; Python names it psm_ and a random number."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_WITHIN_S = 10.0
_CANNOT_RUN = 127


def main(argv: list[str]) -> int:
    """The exit code of the command; 128 + n where signal n ended it, 127 where it cannot run."""
    lifeline, command = int(argv[1]), argv[2:]
    os.set_inheritable(lifeline, False)  # noqa: FBT003 - the standard library's own signature
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake = _wake_on_signals()
    stop_signals = _catch_stop_signals()
    guard = os.getpid()
    try:
        child = subprocess.Popen(  # noqa: S603 - running the command it is given is its purpose
            command,
            process_group=0,
            preexec_fn=lambda: _die_with(guard),  # noqa: PLW1509 - the guard has one thread
        )
    except OSError as exc:
        sys.stderr.write(f"cannot run {command[0]}: {exc.strerror}\n")
        return _CANNOT_RUN
    status = _watch(child.pid, lifeline, wake, stop_signals)
    left = _kill_below(child.pid)
    child.returncode = status if status is not None else -signal.SIGKILL
    if left:
        sys.stderr.write(f"engine guard: could not kill {left}\n")
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _watch(child: int, lifeline: int, wake: int, stop_signals: list[int]) -> int | None:
    """The child's exit status once it has ended; None once the lifeline was cut."""
    while True:
        readable, _, _ = select.select([lifeline, wake], [], [])
        if lifeline in readable and not os.read(lifeline, 1):
            return None
        if wake in readable:
            os.read(wake, 512)
        ended = _reap()
        if child in ended:
            return ended[child]
        while stop_signals:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, stop_signals.pop())


def _reap() -> dict[int, int]:
    """Exit statuses of the children that have ended, as `subprocess` counts them."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


def _kill_below(child: int) -> list[int]:
    """
    Kill everything below this process until nothing is left; what could not be killed.

    Being a subreaper, this process becomes the parent of every orphan below it: when it has no
    children, it has no descendants.
    """
    give_up_at = time.monotonic() + _KILL_WITHIN_S
    shared = shared_memory(_descendants())
    while time.monotonic() < give_up_at:
        below = _descendants()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        _reap()
        if not _descendants():
            remove(shared)
            return []
        time.sleep(0.01)
    return _descendants()


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """
    Segments that these processes have mapped.

    Blocks while the kernel shows the maps of a process that allocates or ends.
    """
    found: set[Path] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            found.update(Path(path) for path in _SEGMENT.findall(maps))
    return found


def remove(segments: Iterable[Path]) -> None:
    """Remove those that are still there."""
    for path in segments:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _descendants() -> list[int]:
    """Ids of all processes below this one, ended but unreaped ones included."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in brackets, may itself hold blanks and brackets.
            parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(folder.name))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _wake_on_signals() -> int:
    """A descriptor that becomes readable with each signal, so that none is slept through."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    return read_end


def _catch_stop_signals() -> list[int]:
    """The list that caught SIGTERM and SIGINT are put on, to be passed on."""
    caught: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if number in {signal.SIGTERM, signal.SIGINT}:
            caught.append(number)

    # Handlers, not SIG_IGN: that would be inherited by the command.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, remember)
    return caught


def _die_with(parent: int) -> None:
    """In the child: be killed when the guard is, also if that happened just now."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_CANNOT_RUN)


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process; does nothing where the kernel is not Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
