"""
A real GPU: what was planned for it and what came, how fast it answers, how its memory comes back.

    make bench-gpu [MODEL=<folder>] [OUT=reports/bench-gpu.json]

Starts model_server and vLLM's CUDA build on the card with the most free memory, watches the card by
NVML all the while, asks with 1, 8, 32 and 64 clients at a time, and stops it again.
Nobody else should use the card meanwhile: what they take counts as ours.
The exit code is 1 if the engine took more than its budget, if its KV cache is not within 5 % of the
plan, or if its memory did not come back; 3 where there is no GPU to do it on.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from loadtest.figures import percentile
from loadtest.programs import commit, machine
from model_server.devices import import_nvml
from model_server.memory import GIB, human
from tests.gpus import (
    BACK_S,
    KV_TOLERANCE,
    MODEL_FOLDER,
    Card,
    cuda_model_server,
    watching,
    why_no_cuda_engine,
    why_no_gpu,
)

NO_GPU = 3
CONCURRENT = (1, 8, 32, 64)
ANSWERS_EACH = 4
ANSWER_TOKENS = 128
PATIENCE_S = 300.0
FILLER = "The gate is closed when the water in the harbour stands above the mark on the wall. "
PROMPT = FILLER * 20

_LOADED = re.compile(r"engine ready after ([0-9.]+) s")
WEIGHTS = re.compile(r"Model loading took ([0-9.]+) GiB")
GRAPHS = re.compile(r"Graph capturing finished in .*, took ([0-9.-]+) GiB")


@dataclass(frozen=True, slots=True)
class Level:
    """What so many clients at a time got, each of them asking again as soon as it had its answer."""

    concurrent: int
    answers: int
    tokens: int
    seconds: float
    median_answer_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated a second, for all of them together."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Run:
    """
    One engine's life.

    Attributes:
        plan: model_server's own, as JSON.
        driver: Of the card.
        vllm: Version.
        start_s: Until the engine was ready, by model_server's account.
        kv_tokens: What the engine reports of its KV cache.
        weights_bytes: What vLLM says that loading took; None if it does not.
        graphs_bytes: The same of captured CUDA graphs.
        peak_bytes: The most that was taken of the card, beyond what was taken before.
        held_bytes: What was taken right before the engine was stopped.
        back_s: From its end until the card was as before; None if it was not in time.
    """

    plan: Mapping[str, Any]
    driver: str
    vllm: str
    start_s: float
    kv_tokens: int
    weights_bytes: int | None
    graphs_bytes: int | None
    peak_bytes: int
    held_bytes: int
    back_s: float | None
    levels: Sequence[Level]

    @property
    def budget_bytes(self) -> int:
        """What it might take."""
        return int(self.plan["bytes"]["budget"])

    @property
    def missed(self) -> list[str]:
        """What was not as promised, in words."""
        planned = int(self.plan["kv_tokens"])
        promises = {
            f"{human(self.peak_bytes)} taken of a budget of {human(self.budget_bytes)}": (
                self.peak_bytes <= self.budget_bytes
            ),
            f"{self.kv_tokens} tokens of KV cache where {planned} were planned": (
                abs(planned - self.kv_tokens) < KV_TOLERANCE * self.kv_tokens
            ),
            f"memory not back {BACK_S:g} s after the end": self.back_s is not None,
        }
        return [what for what, held in promises.items() if not held]


def measure(card: Card, model: Path, folder: Path) -> Run:
    """Start the engine, ask it, stop it."""
    with watching(card) as usage:
        with cuda_model_server(card, folder, model=model) as server:
            with httpx2.Client(base_url=server.url, timeout=60, trust_env=False) as control:
                state = control.get("/state").raise_for_status().json()
                plan = control.get("/plan").raise_for_status().json()
            url, name = str(state["engine_url"]), str(state["model"])
            version = httpx2.get(f"{url}/version", trust_env=False).json()["version"]
            levels = [ask(url, name, concurrent) for concurrent in CONCURRENT]
            held = usage.now
            said = server.log.read_text(errors="replace")
        back_s = usage.back_after_s(held)
        peak = usage.peak()
    log = (folder / "engine.log").read_text(errors="replace")
    return Run(
        plan=plan,
        driver=card.driver,
        vllm=str(version),
        start_s=float(_LOADED.findall(said)[-1]),
        kv_tokens=int(state["kv_tokens_reported"] or 0),
        weights_bytes=told_bytes(WEIGHTS, log),
        graphs_bytes=told_bytes(GRAPHS, log),
        peak_bytes=peak,
        held_bytes=held,
        back_s=back_s,
        levels=levels,
    )


def ask(url: str, model: str, concurrent: int) -> Level:
    """Answers of equal length, so many at a time; a warm-up round goes before and does not count."""
    limits = httpx2.Limits(max_connections=concurrent)
    with (
        httpx2.Client(base_url=url, timeout=PATIENCE_S, trust_env=False, limits=limits) as http,
        ThreadPoolExecutor(concurrent) as pool,
    ):

        def answer(number: int) -> tuple[int, float]:
            began_s = time.monotonic()
            body = {
                "model": model,
                # A number of its own, early: what comes after it is in nobody's prefix cache.
                "messages": [{"role": "user", "content": f"{concurrent}-{number}. {PROMPT}"}],
                "max_tokens": ANSWER_TOKENS,
                "ignore_eos": True,
                "temperature": 0,
            }
            response = http.post("/v1/chat/completions", json=body).raise_for_status()
            took_s = time.monotonic() - began_s
            return int(response.json()["usage"]["completion_tokens"]), took_s

        list(pool.map(answer, range(concurrent)))
        began_s = time.monotonic()
        numbers = range(concurrent, concurrent * (1 + ANSWERS_EACH))
        answers = list(pool.map(answer, numbers))
        seconds = time.monotonic() - began_s
    return Level(
        concurrent=concurrent,
        answers=len(answers),
        tokens=sum(tokens for tokens, _ in answers),
        seconds=seconds,
        median_answer_s=percentile([took_s for _, took_s in answers], 0.5) or 0.0,
    )


def told_bytes(pattern: re.Pattern[str], log: str) -> int | None:
    """The last figure that the engine's log gives in GiB, in bytes; None if it gives none."""
    found = pattern.findall(log)
    return int(float(found[-1]) * GIB) if found else None


def table(run: Run) -> str:
    """The run in Markdown."""
    plan, planned = run.plan, run.plan["bytes"]
    graphs = "unknown" if run.graphs_bytes is None else human(run.graphs_bytes)
    weights = "unknown" if run.weights_bytes is None else human(run.weights_bytes)
    back = "not in time" if run.back_s is None else f"{run.back_s:.1f} s"
    device = plan["device"]
    total = f"{human(planned['total'])} of {human(planned['budget'])}"
    rows = [
        f"{device['name']}, driver {run.driver}, vLLM {run.vllm}, {machine()}, commit {commit()}",
        "",
        "| | planned | seen |",
        "|---|---|---|",
        f"| weights | {human(planned['weights'])} | {weights} |",
        f"| KV cache | {plan['kv_tokens']:,} tokens | {run.kv_tokens:,} tokens |",
        f"| engine's own, CUDA graphs | {human(planned['runtime'])} | graphs {graphs} |",
        f"| activations | {human(planned['activations'])} | in the total |",
        f"| total | {total} | {human(run.peak_bytes)} at the most |",
        f"| start | | {run.start_s:.0f} s |",
        f"| memory back after the end | {human(run.held_bytes)} held | {back} |",
        "",
        "| at a time | tokens/s | median answer |",
        "|---|---|---|",
    ]
    rows += [
        f"| {level.concurrent} | {level.tokens_per_s:.0f} | {level.median_answer_s:.2f} s |"
        for level in run.levels
    ]
    return "\n".join(rows)


def report(run: Run) -> dict[str, Any]:
    """The run for machines, with the device and the commit that it was made on."""
    levels = [{**asdict(one), "tokens_per_s": one.tokens_per_s} for one in run.levels]
    return {
        "commit": commit(),
        "machine": machine(),
        "device": run.plan["device"],
        **{name: value for name, value in asdict(run).items() if name != "levels"},
        "budget_bytes": run.budget_bytes,
        "levels": levels,
        "missed": run.missed,
    }


def main(argv: Sequence[str] | None = None, *, nvml: Any | None = None) -> int:
    """
    Measure and print; gives the exit code.

    Args:
        argv: Instead of the command line's arguments.
        nvml: Instead of the `pynvml` module of this environment.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER, help="folder of the model")
    parser.add_argument("--out", type=Path, default=Path("reports/bench-gpu.json"))
    options = parser.parse_args(argv)
    nvml = nvml or import_nvml()
    reason = why_no_gpu(nvml=nvml) or why_no_cuda_engine(model=options.model)
    if reason is not None:
        print(f"bench-gpu: nothing was measured: {reason}", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory() as folder, Card.emptiest(nvml) as card:
        run = measure(card, options.model, Path(folder))
    print(f"{table(run)}\n\n{'; '.join(run.missed) or 'every promise held'}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report(run), indent=1) + "\n")
    return int(bool(run.missed))


if __name__ == "__main__":
    sys.exit(main())
