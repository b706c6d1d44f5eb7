"""
TGI: from a plan to the command line and environment that start text-generation-launcher.

Names are those of TGI 3, the last one: upstream takes no new features any more. An adapter and no more:
what it says of itself is told to nobody, since its metrics are not vLLM's.
"""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_server.engines.base import Serving
from model_server.planner import Plan

_IN_FLIGHT_FACTOR = 1.5
"""
TGI's own limit of requests in flight, waiting or running, as a multiple of `max_num_seqs`.

Only a backstop, as vLLM's is: who comes first is decided before requests reach the engine.
"""

# First match wins: a line of the log, and what it means for somebody who waits.
_PHASES = (
    ("Starting check and download process", "looking at the weights"),
    ("Starting shard", "loading weights"),
    ("Waiting for shard to be ready", "loading weights"),
    ("Shard ready in", "weights loaded"),
    ("Starting Webserver", "starting the HTTP server"),
    ("Warming up model", "allocating KV cache"),
    ("Setting max batch total tokens", "engine's processes are up"),
)

_OVERRULING = (
    "CUDA_GRAPHS",
    "DTYPE",
    "KV_CACHE_DTYPE",
    "LORA_ADAPTERS",
    "MAX_INPUT_LENGTH",
    "QUANTIZE",
    "SHARDED",
    "SPECULATE",
)
"""Every flag of the launcher has a variable, too; these would change what was planned."""


@dataclass(frozen=True, slots=True)
class TgiEngine:
    """
    One TGI server, as an `Engine`.

    Attributes:
        launcher: The `text-generation-launcher` of its environment.
        extra_args: Appended last.
    """

    launcher: Path
    plan: Plan
    serving: Serving
    extra_args: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line, the launcher first."""
        return (str(self.launcher), *self.flags, *self.extra_args)

    @property
    def flags(self) -> tuple[str, ...]:
        """The arguments that follow from the plan."""
        plan, serving = self.plan, self.serving
        longest_prompt = plan.max_model_len - 1
        options: dict[str, object] = {
            "--model-id": serving.model,
            "--hostname": serving.host,
            "--port": serving.port,
            # Its processes meet here; the default is one place for all servers of a machine.
            "--shard-uds-path": Path(tempfile.gettempdir(), f"text-generation-{serving.port}"),
            "--num-shard": 1,
            "--max-input-tokens": longest_prompt,
            "--max-total-tokens": plan.max_model_len,
            # A prompt that is longer than one prefill is refused by models that cannot split it.
            "--max-batch-prefill-tokens": max(plan.max_num_batched_tokens, longest_prompt),
            "--max-batch-size": plan.max_num_seqs,
            "--max-concurrent-requests": math.ceil(plan.max_num_seqs * _IN_FLIGHT_FACTOR),
            # With flash attention TGI takes what the memory fraction leaves, and says so.
            "--max-batch-total-tokens": plan.kv_tokens,
            "--usage-stats": "off",
        }
        if plan.shape.quantization is None:
            options["--dtype"] = plan.dtype
        if plan.device.kind == "cuda":
            options["--cuda-memory-fraction"] = plan.gpu_memory_utilization
        if plan.enforce_eager:
            options["--cuda-graphs"] = 0
        return tuple(str(part) for option in options.items() for part in option)

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the process, made from the one inherited."""
        environment = {**inherited, **self.variables}
        # PYTHON*: they name modules of our environment, not of the engine's.
        for name in (*_OVERRULING, "PYTHONPATH", "PYTHONHOME"):
            environment.pop(name, None)
        return environment

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that follow from the plan."""
        variables = {"HF_HUB_OFFLINE": "1"}
        if self.plan.device.kind == "cuda":
            variables["CUDA_VISIBLE_DEVICES"] = self.plan.device.uuid
        return variables

    def phase(self, line: str) -> str | None:
        """What the engine is doing, if this line of its log says so; for people."""
        return next((phase for words, phase in _PHASES if words in line), None)

    def has_drained(self, line: str) -> bool:
        """Whether this line says that an engine told to stop has no request left."""
        return "webserver terminated" in line
