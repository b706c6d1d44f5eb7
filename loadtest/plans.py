"""
The planner's promise, on cards that need not be here: what fits of well-known models, and what would.

    make plans

Plans SmolLM2 and six public models, from half a billion parameters to 72, on cards of 8, 24 and 80 GB.
Each part of a plan is added up a second time, beside the planner, and held against what the card may
give. Nothing is started and nothing allocated. The exit code is 1 if a plan is over its budget.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from model_server.checkpoint import ModelShape
from model_server.devices import Device
from model_server.engines.base import Serving
from model_server.engines.vllm import VllmEngine
from model_server.errors import DoesNotFit
from model_server.memory import human, weights_bytes
from model_server.planner import Goals, Plan, make_plan
from tests.public_models import CARDS_GB, PUBLIC_MODELS, card, taken_bytes

GOALS = Goals(enforce_eager=False)
"""What model_server asks for on a GPU when nobody says otherwise."""

SHOWN_FLAGS = (
    "--max-model-len",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--kv-cache-memory-bytes",
    "--gpu-memory-utilization",
    "--dtype",
)
_ADVICE = "What would fit: "


class Planner(Protocol):
    """`planner.make_plan`, or what stands in for it in tests."""

    def __call__(self, *, device: Device, shape: ModelShape, goals: Goals) -> Plan:
        """The plan, or DoesNotFit."""
        ...


@dataclass(frozen=True, slots=True)
class Trial:
    """
    One model on one card.

    Attributes:
        plan: None where it does not fit.
        advice: What would fit instead; "" where it does.
    """

    model: str
    shape: ModelShape
    device: Device
    plan: Plan | None
    advice: str = ""

    @property
    def budget_bytes(self) -> int:
        """What the card may give: what is free but for the plan's reserve, and its share of the whole."""
        reserve = self.plan.sums.reserve if self.plan else 0
        share = int(self.device.total_bytes * GOALS.gpu_memory_utilization)
        return min(self.device.free_bytes - reserve, share)

    @property
    def is_over_budget(self) -> bool:
        """Whether the plan takes more than it may."""
        return self.plan is not None and taken_bytes(self.plan) > self.budget_bytes

    @property
    def row(self) -> str:
        """One line of the table."""
        first = f"| {self.model} | {self.device.name} | {human(weights_bytes(self.shape))} |"
        if self.plan is None:
            return f"{first} does not fit | | | | | {self.advice} |"
        plan, share = self.plan, taken_bytes(self.plan) / self.budget_bytes
        return (
            f"{first} {human(plan.kv_cache_bytes)}, {plan.kv_tokens:,} tokens | "
            f"{plan.max_num_seqs} | {plan.max_model_len:,} | {human(taken_bytes(plan))} | "
            f"{share:.2%}{' OVER' if self.is_over_budget else ''} | `{_flags(plan)}` |"
        )


def trials(planner: Planner = make_plan) -> list[Trial]:
    """Every model on every card."""
    return [
        _trial(planner, model, shape, card(gigabytes))
        for model, shape in PUBLIC_MODELS.items()
        for gigabytes in CARDS_GB
    ]


def _trial(planner: Planner, model: str, shape: ModelShape, device: Device) -> Trial:
    try:
        return Trial(model, shape, device, planner(device=device, shape=shape, goals=GOALS))
    except DoesNotFit as exc:
        _, found, advice = exc.message.partition(_ADVICE)
        return Trial(model, shape, device, None, advice.rstrip(".") if found else "nothing would")


def _flags(plan: Plan) -> str:
    """The flags that the plan decides, as vLLM is started with them."""
    serving = Serving(model=Path("model"), name="model", host="127.0.0.1", port=8000, drain_s=10)
    flags = VllmEngine(python=Path("python"), plan=plan, serving=serving).flags
    return " ".join(f"{name} {value}" for name, value in pairwise(flags) if name in SHOWN_FLAGS)


def table(found: Sequence[Trial]) -> str:
    """The trials in Markdown, one row each."""
    head = (
        "| model | card | weights | KV cache | sequences | context | total | of its budget | "
        "vLLM's flags, or what would fit |"
    )
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *(t.row for t in found)])


def main(planner: Planner = make_plan) -> int:
    """Print the table; gives the exit code."""
    found = trials(planner)
    over = [f"{t.model} on the {t.device.name}" for t in found if t.is_over_budget]
    fitting = sum(t.plan is not None for t in found)
    print(table(found))
    print(
        f"\n{fitting} of {len(found)} fit; "
        + (f"OVER BUDGET: {', '.join(over)}" if over else "no plan is over its budget")
    )
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
