"""What there is to run on: NVIDIA GPUs or the CPU, with the memory that is free."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from model_server.errors import NoDevice

_UNLIMITED_BYTES = 1 << 60
"""Above this a cgroup limit means none: v1 writes the largest page-aligned 63-bit number."""

_BFLOAT16_CAPABILITY = (8, 0)
"""First compute capability (Ampere) whose tensor cores multiply bfloat16."""


@dataclass(frozen=True, slots=True)
class Device:
    """
    One place to run an engine on.

    Attributes:
        name: For people.
        total_bytes: Memory of the device, or the container's limit where that is lower.
        free_bytes: What a new process can take now.
        cores: CPU cores that this process may use; 0 for a GPU.
        bfloat16: Whether the hardware multiplies bfloat16 itself.
        uuid: NVML's name of a GPU, "" for a CPU.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    total_bytes: int
    free_bytes: int
    cores: int = 0
    bfloat16: bool = True
    uuid: str = ""


def find_device(
    wanted: str, *, environ: Mapping[str, str], nvml: Any | None = None, root: Path = Path("/")
) -> Device:
    """
    The device to plan for: the GPU with the most free memory, or the CPU.

    Args:
        wanted: `auto`, `cpu` or `cuda`.
        environ: Read for CUDA_VISIBLE_DEVICES, which hides GPUs from the engine.
        nvml: The `pynvml` module or its like; None means no GPU can be seen.
        root: Where `/proc` and `/sys` are; other than `/` in tests.

    Raises:
        NoDevice: If a GPU is wanted and none is there.
    """
    gpus = [] if wanted == "cpu" or nvml is None else find_gpus(nvml, environ=environ)
    if gpus:
        return max(gpus, key=lambda gpu: gpu.free_bytes)
    if wanted == "cuda":
        reason = "pynvml is not installed" if nvml is None else "NVML reports no usable NVIDIA GPU"
        raise NoDevice(
            f"MODEL_SERVER_DEVICE=cuda, but {reason}. Install the driver and nvidia-ml-py, check "
            "CUDA_VISIBLE_DEVICES, or run on the CPU with MODEL_SERVER_DEVICE=cpu."
        )
    return find_cpu(root=root)


def import_nvml() -> Any | None:
    """The `pynvml` module, or None where it is not installed."""
    try:
        import pynvml  # noqa: PLC0415 - only GPU machines have it
    except ImportError:
        return None
    return pynvml  # pragma: no cover - needs a GPU environment


def find_gpus(nvml: Any, *, environ: Mapping[str, str]) -> list[Device]:
    """Every NVIDIA GPU that the engine may use; none where the driver is missing."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        visible = environ.get("CUDA_VISIBLE_DEVICES")
        gpus = (_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        return [gpu for index, gpu in enumerate(gpus) if _is_visible(gpu, index, visible)]
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(
        kind="cuda",
        name=_text(nvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        bfloat16=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)) >= _BFLOAT16_CAPABILITY,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
    )


def _text(value: str | bytes) -> str:
    """Older releases of pynvml answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _is_visible(gpu: Device, index: int, visible: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES lets the engine see this GPU; it names indexes or uuids."""
    if visible is None:
        return True
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return any(name == str(index) or gpu.uuid.startswith(name) for name in names)


def find_cpu(*, root: Path = Path("/")) -> Device:
    """This machine's CPU, with the memory that the system, the container and the node leave."""
    flags, name = _cpu_info(root)
    total, free = _system_memory(root)
    for limit, used in (_cgroup_memory(root), _node_memory(root)):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return Device(
        kind="cpu",
        name=name,
        total_bytes=total,
        free_bytes=free,
        cores=_cores(),
        bfloat16=bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}),
    )


def oom_kills(*, root: Path = Path("/")) -> int:
    """Processes that this system's kernel has killed for want of memory since it started."""
    return int(_fields(root / "proc/vmstat", separator=" ").get("oom_kill", "0"))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_info(root: Path) -> tuple[set[str], str]:
    """The CPU's instruction-set flags, and its name."""
    fields = _fields(root / "proc/cpuinfo")
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return flags, fields.get("model name", "CPU")


def _system_memory(root: Path) -> tuple[int, int]:
    """Total and available bytes of the system."""
    fields = _fields(root / "proc/meminfo")
    if "MemTotal" in fields and "MemAvailable" in fields:
        return _kib(fields["MemTotal"]), _kib(fields["MemAvailable"])
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _cgroup_memory(root: Path) -> tuple[int, int]:
    """
    Limit of this process's control group and what is used of it, in bytes, v2 or v1.

    The tightest ancestor counts. Page cache that can be dropped is not used.
    """
    tightest = (_UNLIMITED_BYTES, 0)
    for folder, limit_name, used_name, cache_name in _cgroup_folders(root):
        limit = _number(folder / limit_name)
        if limit is None or limit >= _UNLIMITED_BYTES:
            continue
        stat = _fields(folder / "memory.stat", separator=" ")
        used = (_number(folder / used_name) or 0) - int(stat.get(cache_name, 0))
        if limit - used < tightest[0] - tightest[1]:
            tightest = (limit, max(0, used))
    return tightest


def _cgroup_folders(root: Path) -> list[tuple[Path, str, str, str]]:
    """Folders to look for a limit in, from the process's own group up to the mount."""
    v2 = ("memory.max", "memory.current", "inactive_file")
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    found: list[tuple[Path, str, str, str]] = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", v2
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", v1
        else:
            continue
        # Inside a container the path may be the host's: then only the mount itself exists.
        own = mount / path.lstrip("/")
        folders = [own, *own.parents]
        found += [(folder, *names) for folder in folders[: folders.index(mount) + 1]]
    return found


def _node_memory(root: Path) -> tuple[int, int]:
    """
    Total and used bytes of the memory node that vLLM binds its worker to, the first core's.

    vLLM refuses a KV cache larger than what is free there, and allocations are bound to the node,
    so a machine with two nodes has only half of its memory for one engine.

    Source:
        vLLM 0.32, `utils/cpu_resource_utils.py`, `get_memory_node_info`.
    """
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    nodes = sorted((root / f"sys/devices/system/cpu/cpu{core}").glob("node[0-9]*"))
    if not nodes:
        return _UNLIMITED_BYTES, 0
    lines = _lines(root / "sys/devices/system/node" / nodes[0].name / "meminfo")
    fields = {line.split()[2].rstrip(":"): line.split()[3] for line in lines if line.strip()}
    if "MemTotal" not in fields:
        return _UNLIMITED_BYTES, 0
    free = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
    total = _kib(fields["MemTotal"])
    return total, max(0, total - sum(_kib(fields.get(name, "0")) for name in free))


def _kib(value: str) -> int:
    """Bytes of `1024 kB`, as the kernel writes sizes."""
    return int(value.split(maxsplit=1)[0]) * 1024


def _number(path: Path) -> int | None:
    """The number in a one-line file; None where there is no file, or it says `max`."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _fields(path: Path, *, separator: str = ":") -> dict[str, str]:
    """`name: value` lines; the first of a name counts."""
    found: dict[str, str] = {}
    for line in _lines(path):
        name, _, value = line.partition(separator)
        found.setdefault(name.strip(), value.strip())
    return found


def _lines(path: Path) -> list[str]:
    """Lines of a file of the kernel; none where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
