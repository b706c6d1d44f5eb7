"""
One look at memory: what is free, and who holds the rest.

What is free is found exactly as the planner finds it (`devices`). What the engine holds of it is the
sum of its processes: on a CPU from the kernel, on a GPU from the driver. What cannot be told is None,
never 0.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from model_server.devices import Device, find_cpu, find_gpus

_FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""
The machine's own; every container has another one, unless it was started with the machine's.

Source:
    Linux, `include/linux/proc_ns.h`, PROC_PID_INIT_INO = 0xEFFFFFFC.
"""

Owner = Literal["engine", "other", "unknown"]


@dataclass(frozen=True, slots=True)
class CardProcess:
    """
    One process that computes on a GPU.

    Attributes:
        card: The GPU's uuid.
        pid: As the driver knows it: the machine's number, in a container too.
        used_bytes: Of the GPU's memory; None where the driver does not say (WSL, some MIG set-ups).
        owner: `unknown` in a container, whose own numbers are others.
    """

    card: str
    pid: int
    used_bytes: int | None
    owner: Owner


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """
    One look at memory, in bytes. The host's is the machine's RAM, or what the container may have of it.

    Attributes:
        total_bytes: Of the device that the engine is planned on; None while it cannot be seen.
        free_bytes: What a new process could take of it.
        engine_bytes: What the engine holds of it; 0 while there is none.
        others_bytes: What everybody else holds of a GPU, its driver included; None on a CPU.
        host_total_bytes: On a CPU the device's own.
        host_free_bytes: Likewise.
        engine_host_bytes: What the engine holds of the host's memory.
        cards: Every GPU that the engine may use.
        processes: Every process that computes on one of them.
    """

    total_bytes: int | None
    free_bytes: int | None
    engine_bytes: int | None
    others_bytes: int | None
    host_total_bytes: int
    host_free_bytes: int
    engine_host_bytes: int | None
    cards: tuple[Device, ...] = ()
    processes: tuple[CardProcess, ...] = ()


def process_tree(pid: int) -> list[int]:
    """`pid` and all that it has started, directly or not; empty if it has ended."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
    return [pid, *(child.pid for child in children)]


class MemoryWatch:
    """
    Looks at memory. Every method blocks for some milliseconds, and none fails.

    Args:
        device: What the engine is planned on now.
        environ: Read for CUDA_VISIBLE_DEVICES, as by the planner.
        nvml: The `pynvml` module or its like; None means no GPU can be seen.
        root: Where `/proc` and `/sys` are; other than `/` in tests.
        tree: The processes at and below one.
    """

    def __init__(
        self,
        *,
        device: Callable[[], Device],
        environ: Mapping[str, str],
        nvml: Any | None,
        root: Path = Path("/"),
        tree: Callable[[int], Iterable[int]] = process_tree,
    ) -> None:
        self._device = device
        self._environ = environ
        self._nvml = nvml
        self._root = root
        self._tree = tree

    def free_bytes(self) -> int:
        """What a new process could take of the device; nothing while it cannot be seen."""
        device = self._device()
        if device.kind == "cpu":
            return find_cpu(root=self._root).free_bytes
        card = _find(self._cards(), device.uuid)
        return 0 if card is None else card.free_bytes

    def engine_bytes(self, pid: int) -> int | None:
        """What the engine below `pid` holds of the device; None if that cannot be told."""
        device, pids = self._device(), set(self._tree(pid))
        if device.kind == "cpu":
            return self._resident_bytes(pids)
        return self._engine_on_card(self._processes(device.uuid, pids), pids)

    def returnable_bytes(self, pid: int) -> int | None:
        """
        What the device would have free if the engine below `pid` ended; None if that cannot be told.

        On a CPU without the files that its processes map: the kernel counts those as free already.
        """
        if self._device().kind == "cuda":
            return self.engine_bytes(pid)
        parts = [self._one_returnable(pid) for pid in self._tree(pid)]
        known = [num for num in parts if num is not None]
        return sum(known) if known else None

    def look(self, pid: int | None) -> MemoryReading:
        """Everything at once, of the engine below `pid`; None while there is none."""
        device, cards = self._device(), self._cards()
        pids = set() if pid is None else set(self._tree(pid))
        by_card = {card.uuid: self._processes(card.uuid, pids) for card in cards}
        now: Device | None
        now = host = find_cpu(root=self._root)
        engine = resident = self._resident_bytes(pids)
        if device.kind == "cuda":
            now = _find(cards, device.uuid)
            engine = self._engine_on_card(by_card.get(device.uuid), pids)
        return MemoryReading(
            total_bytes=None if now is None else now.total_bytes,
            free_bytes=None if now is None else now.free_bytes,
            engine_bytes=engine,
            others_bytes=_others(now, engine),
            host_total_bytes=host.total_bytes,
            host_free_bytes=host.free_bytes,
            engine_host_bytes=resident,
            cards=tuple(cards),
            processes=tuple(one for found in by_card.values() for one in found or ()),
        )

    def _cards(self) -> list[Device]:
        if self._nvml is None:
            return []
        try:
            return find_gpus(self._nvml, environ=self._environ)
        except self._nvml.NVMLError:
            return []  # a GPU that fell off the bus takes the whole answer with it

    def _processes(self, uuid: str, engine: set[int]) -> list[CardProcess] | None:
        """Who computes on a GPU; None if the driver does not say."""
        nvml = self._nvml
        if nvml is None:
            return None
        used: dict[int, int | None] = {}
        try:
            nvml.nvmlInit()
            try:
                handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
                for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    # With MIG a process is listed once for each instance that it uses.
                    used[process.pid] = _sum([used.get(process.pid, 0), process.usedGpuMemory])
            finally:
                nvml.nvmlShutdown()
        except nvml.NVMLError:
            return None
        ours = self._sees_the_drivers_pids()
        return [
            CardProcess(uuid, pid, num, _owner(pid, engine) if ours else "unknown")
            for pid, num in sorted(used.items())
        ]

    def _engine_on_card(
        self, processes: Iterable[CardProcess] | None, engine: set[int]
    ) -> int | None:
        """What the engine's processes hold of a GPU; None if it cannot be told which are its."""
        if not engine:
            return 0
        # In a container some drivers list nobody at all: that is not nothing.
        if processes is None or not self._sees_the_drivers_pids():
            return None
        return _sum([one.used_bytes for one in processes if one.owner == "engine"])

    def _sees_the_drivers_pids(self) -> bool:
        """
        Whether a process id of ours is the driver's, too.

        The driver knows no pid namespaces and tells the machine's numbers: in a container the same
        number is another process.
        """
        try:
            namespace = (self._root / "proc/self/ns/pid").readlink()
        except OSError:
            return False
        return os.fspath(namespace) == _FIRST_PID_NAMESPACE

    def _resident_bytes(self, pids: Iterable[int]) -> int | None:
        """
        What the processes hold of the host's memory; None if that can be told of none of them.

        Their proportional set size, the measure of the plan too: vLLM's processes share libraries,
        forked pages and shared memory, which the sum of resident set sizes would count three times.
        Where the kernel does not tell that one, the resident set size: too much rather than too little.
        """
        found = [self._one_resident(pid) for pid in pids]
        known = [num for num in found if num is not None]
        # One that ended meanwhile has nothing any more; if none can be read, there is no /proc.
        return sum(known) if known or not found else None

    def _one_returnable(self, pid: int) -> int | None:
        rollup = self._root / f"proc/{pid}/smaps_rollup"
        own, shared = _kib_of(rollup, "Pss_Anon"), _kib_of(rollup, "Pss_Shmem")
        # Kernels before 5.3 do not tell them apart.
        return self._one_resident(pid) if own is None or shared is None else own + shared

    def _one_resident(self, pid: int) -> int | None:
        folder = self._root / f"proc/{pid}"
        share = _kib_of(folder / "smaps_rollup", "Pss")
        return _kib_of(folder / "status", "VmRSS") if share is None else share


def _owner(pid: int, engine: set[int]) -> Owner:
    return "engine" if pid in engine else "other"


def _find(cards: Iterable[Device], uuid: str) -> Device | None:
    """The planned GPU as it is now; never another in its place."""
    return next((card for card in cards if card.uuid == uuid), None)


def _others(now: Device | None, engine: int | None) -> int | None:
    if now is None or now.kind == "cpu" or engine is None:
        return None
    return max(0, now.total_bytes - now.free_bytes - engine)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """The sum; None if one of them is."""
    known = list(numbers)
    return None if None in known else sum(num for num in known if num is not None)


def _kib_of(path: Path, name: str) -> int | None:
    """Bytes of a `name:  1024 kB` line; None if there is no such line or file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        field, _, value = line.partition(":")
        if field == name:
            return int(value.split(maxsplit=1)[0]) * 1024
    return None
