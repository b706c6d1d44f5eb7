"""
One memory limit over any number of processes: a control group of the kernel, v1 or v2.

What is started inside of `around_children` is born in the group and stays there with all that it
starts; the kernel then counts, limits and kills them together, as it does in a container.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator.telemetry.processor_time import process_cpu_s

EMPTY_WITHIN_S = 20.0
LOOK_EVERY_S = 0.1


class NoMemoryGroup(Exception):
    """No limit can be set over several processes here; the message says what it takes."""


@dataclass(frozen=True, slots=True)
class Version:
    """
    The kernel's names in one version of control groups.

    Attributes:
        mount: Where the hierarchy lies.
        limit: File of the limit, in bytes.
        with_swap: File of the limit with swap in it; v2 limits the swap alone.
        peak: File of the most that was used; writing to it begins anew, where the kernel lets us.
        events: File that counts the kills.
        kept: Fields of memory.stat that cannot be dropped, as page cache can.
    """

    name: str
    mount: str
    limit: str
    with_swap: str
    peak: str
    events: str
    kept: tuple[str, ...]


V1 = Version(
    name="control group v1",
    mount="sys/fs/cgroup/memory",
    limit="memory.limit_in_bytes",
    with_swap="memory.memsw.limit_in_bytes",
    peak="memory.max_usage_in_bytes",
    events="memory.oom_control",
    kept=("total_rss", "total_shmem"),
)
V2 = Version(
    name="control group v2",
    mount="sys/fs/cgroup",
    limit="memory.max",
    with_swap="memory.swap.max",
    peak="memory.peak",
    events="memory.events",
    kept=("anon", "shmem"),
)


class MemoryGroup:
    """
    A control group that has a limit.

    Args:
        folder: The group's own.
        home: The group that this process is in.
    """

    def __init__(self, version: Version, *, folder: Path, home: Path, peak: BinaryIO) -> None:
        self.version = version
        self._folder, self._home, self._peak = folder, home, peak

    @contextmanager
    def around_children(self) -> Iterator[None]:
        """
        Be in the group for as long as the block lasts: children are born where their parent is.

        The little that this process itself takes in the block is counted too.
        """
        _write(self._folder / "cgroup.procs", os.getpid())
        try:
            yield
        finally:
            _write(self._home / "cgroup.procs", os.getpid())

    def kept_bytes(self) -> int:
        """Memory in use now that the kernel cannot drop: anonymous and shared."""
        stat = fields(self._folder / "memory.stat")
        return sum(stat.get(name, 0) for name in self.version.kept)

    def peak_bytes(self) -> int:
        """The most that was in use since `begin_peak`, page cache included; never above the limit."""
        self._peak.seek(0)
        return int(self._peak.read())

    def begin_peak(self) -> bool:
        """Forget the peak so far; False if this kernel does not, and it counts from the group's start."""
        try:
            self._peak.seek(0)
            self._peak.write(b"0")
        except OSError:
            return False
        return True

    def kills(self) -> int:
        """Processes of the group that the kernel has killed for want of memory."""
        return fields(self._folder / self.version.events).get("oom_kill", 0)

    def pids(self) -> list[int]:
        """Every process in the group."""
        return [int(pid) for pid in (self._folder / "cgroup.procs").read_text().split()]

    def cpu_s(self) -> float:
        """Processor seconds of all that live in it."""
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                total += process_cpu_s(pid)
        return total

    def remove(self) -> None:
        """
        Kill what is left in it, and take it away.

        Raises:
            OSError: If something does not die.
        """
        self._peak.close()
        until_s = time.monotonic() + EMPTY_WITHIN_S
        while True:
            for pid in set(self.pids()) - {os.getpid()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self._folder.rmdir()
                return
            except OSError:
                if time.monotonic() >= until_s:
                    raise
            time.sleep(LOOK_EVERY_S)


@contextmanager
def memory_group(limit_bytes: int, *, root: Path = Path("/")) -> Iterator[MemoryGroup]:
    """
    A group with a limit, until the block ends; nothing of what ran in it is left then.

    Args:
        limit_bytes: For all of its processes together; swap does not come on top.
        root: Where `/proc` and `/sys` are; other than `/` in tests.

    Raises:
        NoMemoryGroup: If none can be made.
    """
    group = _made(limit_bytes, root)
    try:
        yield group
    finally:
        group.remove()


def fields(path: Path) -> dict[str, int]:
    """The `name number` lines of a file of the kernel; none where it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004 - a pair


def _made(limit_bytes: int, root: Path) -> MemoryGroup:
    reasons: list[str] = []
    for version, parent, home in places(root):
        folder = parent / f"before-after-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as exc:
            reasons.append(f"{parent}: {exc.strerror}")
            continue
        try:
            _limit(version, folder, limit_bytes)
            peak = _open_peak(folder / version.peak)
        except OSError as exc:
            folder.rmdir()
            reasons.append(f"{folder}: {exc.strerror}")
            continue
        return MemoryGroup(version, folder=folder, home=home, peak=peak)
    raise NoMemoryGroup(
        "no control group with a memory limit can be made here "
        f"({'; '.join(reasons) or 'the memory controller is nowhere to be found'}); "
        "run it as root, or in a container whose /sys/fs/cgroup can be written to"
    )


def places(root: Path) -> Iterator[tuple[Version, Path, Path]]:
    """Where a group can be tried, from the top down to our own, and the group that is our own."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = V1 if controllers else V2
        mount = root / version.mount
        own = mount / path.lstrip("/")
        if not own.is_dir():  # inside a container the path may be the host's
            own = mount
        for parent in reversed([own, *own.parents][: len(own.relative_to(mount).parts) + 1]):
            if version is V1 or "memory" in _words(parent / "cgroup.subtree_control"):
                yield version, parent, own


def _limit(version: Version, folder: Path, limit_bytes: int) -> None:
    _write(folder / version.limit, limit_bytes)
    with contextlib.suppress(OSError):  # a kernel without swap has no such file
        _write(folder / version.with_swap, limit_bytes if version is V1 else 0)


def _open_peak(path: Path) -> BinaryIO:
    """Open for as long as the group lives: v2 forgets the peak for the one who asked it to alone."""
    try:
        return path.open("r+b", buffering=0)
    except PermissionError:
        return path.open("rb", buffering=0)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _write(path: Path, value: int) -> None:
    path.write_text(str(value))
