"""NVML as a machine with GPUs shows it: what each holds, and for whom; it can fail at any call."""

from types import SimpleNamespace

GIB = 1024**3


class FakeNvml:
    """
    GPUs of 80 GiB that are as free as is said, by uuid; processes as (pid, bytes or None), likewise.

    `broken` names the calls that fail.
    """

    class NVMLError(Exception):
        """What pynvml raises, whatever went wrong."""

    def __init__(self, free, processes=None, broken=()):
        self.free = dict(free)
        self.processes = processes or {}
        self.broken = set(broken)
        self.open = 0

    def _call(self, name):
        if name in self.broken:
            raise self.NVMLError(name)
        assert self.open or name == "init", f"{name} before nvmlInit"

    def nvmlInit(self):  # noqa: N802 - NVML's name
        self._call("init")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802 - NVML's name
        self.open -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802 - NVML's name
        return len(self.free)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802 - NVML's name
        return list(self.free)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802 - NVML's name
        self._call("handle")
        return uuid

    def nvmlDeviceGetMemoryInfo(self, uuid):  # noqa: N802 - NVML's name
        self._call("memory")
        return SimpleNamespace(total=80 * GIB, free=self.free[uuid])

    def nvmlDeviceGetName(self, uuid):  # noqa: N802 - NVML's name
        return "Test GPU"

    def nvmlDeviceGetUUID(self, uuid):  # noqa: N802 - NVML's name
        return uuid

    def nvmlDeviceGetCudaComputeCapability(self, uuid):  # noqa: N802 - NVML's name
        return (9, 0)

    def nvmlDeviceGetComputeRunningProcesses(self, uuid):  # noqa: N802 - NVML's name
        self._call("processes")
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=used)
            for pid, used in self.processes.get(uuid, ())
        ]
