"""What there is to run on, with the kernel's files and NVML made by hand."""

import os
from types import SimpleNamespace

import pytest

from model_server.devices import find_cpu, find_device, oom_kills
from model_server.errors import NoDevice

GIB = 1024**3


class FakeNvml:
    """Two GPUs, the second with more free memory."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, driver=True, capability=(9, 0)):
        self.driver = driver
        self.capability = capability
        self.open = 0

    def nvmlInit(self):  # noqa: N802 - NVML's name
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802 - NVML's name
        self.open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802 - NVML's name
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802 - NVML's name
        return index

    def nvmlDeviceGetMemoryInfo(self, index):  # noqa: N802 - NVML's name
        return SimpleNamespace(total=80 * GIB, free=(10 + 60 * index) * GIB)

    def nvmlDeviceGetName(self, index):  # noqa: N802 - NVML's name
        return f"GPU {index}".encode() if index else "GPU 0"

    def nvmlDeviceGetUUID(self, index):  # noqa: N802 - NVML's name
        return f"GPU-{index}{index}"

    def nvmlDeviceGetCudaComputeCapability(self, _index):  # noqa: N802 - NVML's name
        return self.capability


def kernel_files(root, *, cgroup=None, node=None, flags="avx2 avx512_bf16"):
    """A /proc and /sys with 16 GiB, 12 of them available."""
    files = {
        "proc/cpuinfo": f"processor : 0\nmodel name : Test CPU\nflags : {flags}\n",
        "proc/meminfo": f"MemTotal: {16 * 1024**2} kB\nMemAvailable: {12 * 1024**2} kB\n",
        **(cgroup or {}),
    }
    if node is not None:
        core = min(os.sched_getaffinity(0))
        (root / f"sys/devices/system/cpu/cpu{core}/node0").mkdir(parents=True)
        files["sys/devices/system/node/node0/meminfo"] = node
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_cpu_without_limits(tmp_path):
    """Without a container, total and free are the system's."""
    cpu = find_cpu(root=kernel_files(tmp_path))
    assert (cpu.kind, cpu.name, cpu.bfloat16) == ("cpu", "Test CPU", True)
    assert (cpu.total_bytes, cpu.free_bytes) == (16 * GIB, 12 * GIB)
    assert cpu.cores >= 1


def test_a_cpu_without_bfloat16(tmp_path):
    """The flags of the CPU tell whether it multiplies bfloat16."""
    assert not find_cpu(root=kernel_files(tmp_path, flags="avx2")).bfloat16


def test_cgroup_v2_limits_count(tmp_path):
    """A container's limit is the total; page cache that can be dropped is free."""
    group = "sys/fs/cgroup/box"
    files = {
        "proc/self/cgroup": "0::/box/\n",
        f"{group}/memory.max": str(4 * GIB),
        f"{group}/memory.current": str(3 * GIB),
        f"{group}/memory.stat": f"anon 5\ninactive_file {1 * GIB}\n",
    }
    cpu = find_cpu(root=kernel_files(tmp_path, cgroup=files))
    assert (cpu.total_bytes, cpu.free_bytes) == (4 * GIB, 2 * GIB)


def test_cgroup_v1_limits_count_from_the_mount(tmp_path):
    """In a container of v1 the group's path is the host's: the mount itself has the limit."""
    files = {
        "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(1 * GIB),
    }
    cpu = find_cpu(root=kernel_files(tmp_path, cgroup=files))
    assert (cpu.total_bytes, cpu.free_bytes) == (2 * GIB, 1 * GIB)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_no_cgroup_limit_is_no_limit(tmp_path, limit):
    """v2 writes `max` and v1 a number near 2**63 where there is no limit."""
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": limit}
    assert find_cpu(root=kernel_files(tmp_path, cgroup=files)).total_bytes == 16 * GIB


def test_the_memory_node_counts(tmp_path):
    """The engine binds itself to one memory node: no more than that node has can be planned."""
    kib = 1024**2
    node = (
        f"Node 0 MemTotal: {8 * kib} kB\nNode 0 MemFree: {3 * kib} kB\n"
        f"Node 0 Active(file): {1 * kib} kB\nNode 0 Inactive(file): {1 * kib} kB\n"
        "Node 0 SReclaimable: 0 kB\n"
    )
    cpu = find_cpu(root=kernel_files(tmp_path, node=node))
    assert (cpu.total_bytes, cpu.free_bytes) == (8 * GIB, 5 * GIB)


def test_this_machine_is_read():
    """On the machine that runs the tests the figures make sense."""
    cpu = find_cpu()
    assert 0 < cpu.free_bytes <= cpu.total_bytes


def test_the_gpu_with_the_most_free_memory_is_taken():
    """Of several GPUs the emptiest is planned for, and NVML is closed again."""
    nvml = FakeNvml()
    gpu = find_device("auto", environ={}, nvml=nvml)
    assert (gpu.kind, gpu.name, gpu.uuid, gpu.free_bytes) == ("cuda", "GPU 1", "GPU-11", 70 * GIB)
    assert gpu.bfloat16
    assert nvml.open == 0


@pytest.mark.parametrize("visible", ["0", "GPU-00"])
def test_hidden_gpus_are_not_taken(visible):
    """CUDA_VISIBLE_DEVICES counts, by index or by uuid."""
    gpu = find_device("auto", environ={"CUDA_VISIBLE_DEVICES": visible}, nvml=FakeNvml())
    assert gpu.uuid == "GPU-00"


def test_old_gpus_have_no_bfloat16():
    """A compute capability below 8.0 has no bfloat16."""
    assert not find_device("cuda", environ={}, nvml=FakeNvml(capability=(7, 5))).bfloat16


@pytest.mark.parametrize(
    ("nvml", "environ"),
    [
        (None, {}),
        (FakeNvml(driver=False), {}),
        (FakeNvml(), {"CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error(tmp_path, nvml, environ):
    """No pynvml, no driver or all GPUs hidden: auto falls to the CPU, cuda says what is missing."""
    root = kernel_files(tmp_path)
    assert find_device("auto", environ=environ, nvml=nvml, root=root).kind == "cpu"
    with pytest.raises(NoDevice, match="MODEL_SERVER_DEVICE=cuda"):
        find_device("cuda", environ=environ, nvml=nvml, root=root)


def test_the_cpu_can_be_chosen_beside_a_gpu(tmp_path):
    """MODEL_SERVER_DEVICE=cpu wins over a GPU that is there."""
    root = kernel_files(tmp_path)
    assert find_device("cpu", environ={}, nvml=FakeNvml(), root=root).kind == "cpu"


def test_the_kernel_counts_whom_it_killed_for_memory(tmp_path):
    """From /proc/vmstat; a kernel that does not count has killed nobody that we know of."""
    assert oom_kills(root=tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 5\noom_kill 7\nnuma_hit 3\n")
    assert oom_kills(root=tmp_path) == 7
