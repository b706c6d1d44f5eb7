"""The GPUs of this machine, as model_server sees them and as NVIDIA's own tool does."""

import os
import subprocess
from dataclasses import dataclass

import pytest

from model_server.devices import find_device, find_gpus, import_nvml
from model_server.memory import MIB

pytestmark = pytest.mark.gpu

FIELDS = "uuid,name,memory.total,memory.free,compute_cap"
MEANWHILE_BYTES = 256 * MIB
"""What others may take or give between two looks."""


@dataclass
class Shown:
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, ...]


@pytest.fixture(scope="module")
def shown():
    """What nvidia-smi says, in the order of its indexes."""
    command = ["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    found = []
    for line in answer.stdout.splitlines():
        uuid, name, total, free, capability = (part.strip() for part in line.split(","))
        version = tuple(int(part) for part in capability.split("."))
        found.append(Shown(uuid, name, int(total) * MIB, int(free) * MIB, version))
    return found


def test_each_gpu_is_found_with_the_figures_of_nvidia_smi(shown):
    """Name, uuid, memory in all and free, and whether it multiplies bfloat16."""
    gpus = find_gpus(import_nvml(), environ={})
    assert [(gpu.uuid, gpu.name) for gpu in gpus] == [(one.uuid, one.name) for one in shown]
    for gpu, one in zip(gpus, shown, strict=True):
        assert gpu.kind == "cuda"
        assert abs(gpu.total_bytes - one.total_bytes) <= MIB
        assert abs(gpu.free_bytes - one.free_bytes) <= MEANWHILE_BYTES
        assert gpu.bfloat16 is (one.capability >= (8, 0))


def test_hidden_gpus_are_not_found(shown):
    """CUDA_VISIBLE_DEVICES counts, by uuid, by index, and empty."""
    nvml = import_nvml()
    for visible, expected in ((shown[-1].uuid, shown[-1].uuid), ("0", shown[0].uuid)):
        (gpu,) = find_gpus(nvml, environ={"CUDA_VISIBLE_DEVICES": visible})
        assert gpu.uuid == expected
    assert find_gpus(nvml, environ={"CUDA_VISIBLE_DEVICES": ""}) == []


def test_a_gpu_is_what_auto_takes():
    """Nobody has to say that there is one."""
    assert find_device("auto", environ=os.environ, nvml=import_nvml()).kind == "cuda"
