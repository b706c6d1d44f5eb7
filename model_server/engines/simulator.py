"""The simulator in the engine's place: no model, the plan's limits, ready in a second."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from model_server.engines.base import Serving
from model_server.planner import Plan


@dataclass(frozen=True, slots=True)
class SimulatorEngine:
    """
    One simulator, as an `Engine`: to try everything around an engine without one.

    Attributes:
        extra_args: Appended last, so that they win.
    """

    plan: Plan
    serving: Serving
    extra_args: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line, interpreter first."""
        plan, serving = self.plan, self.serving
        options: dict[str, object] = {
            "--host": serving.host,
            "--port": serving.port,
            "--model": serving.name,
            "--kv-cache-tokens": plan.kv_tokens,
            "--max-model-len": plan.max_model_len,
            "--max-num-seqs": plan.max_num_seqs,
            "--max-num-batched-tokens": plan.max_num_batched_tokens,
            "--shutdown-timeout": serving.drain_s,
        }
        flags = [str(part) for option in options.items() for part in option]
        return (sys.executable, "-m", "model_server.simulator", *flags, *self.extra_args)

    @property
    def variables(self) -> dict[str, str]:
        """It needs no environment variable of its own."""
        return {}

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the process, made from the one inherited."""
        return {**inherited, "PYTHONUNBUFFERED": "1"}

    def phase(self, line: str) -> str | None:
        """What the engine is doing, if this line of its log says so; for people."""
        return "listening" if line.startswith("listening on ") else None

    def has_drained(self, line: str) -> bool:  # noqa: ARG002 - it ends by itself, and soon
        """Whether this line says that an engine told to stop has no request left."""
        return False
