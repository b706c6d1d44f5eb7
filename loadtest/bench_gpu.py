"""
A real GPU: what was planned for it and what came, how fast it answers, how its memory comes back.

    make bench-gpu [MODEL=<folder>] [OUT=reports/bench-gpu.json]

Starts model_server and vLLM's CUDA build on the card with the most free memory, watches the card by
NVML all the while, asks with 1, 8, 32 and 64 clients at a time, puts it to sleep, wakes it, and stops it.
Then the embedder runs on the card, under its cap, with batches that do not fit.
Nobody else should use the card meanwhile: what they take counts as ours.
The exit code is 1 if engine or embedder took more than they may, if the KV cache is not within 5 % of
the plan, or if memory did not come back, asleep or at the end; 3 where there is no GPU to do it on.
"""

import argparse
import asyncio
import json
import os
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
from model_server.memory import GIB, MIB, human
from orchestrator.retrieval.embedder import Embedder
from orchestrator.retrieval.embedder_model import bundled_embedder
from tests.gpus import (
    BACK_S,
    CONTEXT_BYTES,
    KV_TOLERANCE,
    MODEL_FOLDER,
    START_S,
    Card,
    Usage,
    cuda_model_server,
    state_once,
    watching,
    why_no_cuda_engine,
    why_no_gpu,
)

NO_GPU = 3
CONCURRENT = (1, 8, 32, 64)
ANSWERS_EACH = 4
ANSWER_TOKENS = 128
PATIENCE_S = 300.0
SLEEP_S = 60.0
"""What may run gets to end first."""
CAP_BYTES = 256 * MIB
CHUNKS = 1024
"""Passages in one batch: they take several times the embedder's cap."""
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
        back_s: From SIGTERM until the card was as before; None if it was not, in time after its end.
        sleep_back_s: The same of an order to sleep.
        wake_s: From an order to wake until the engine was ready again.
        embedder_peak_bytes: The most that the embedder took of the card, its CUDA context included.
        chunks_per_s: Passages that it embedded a second.
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
    sleep_back_s: float | None
    wake_s: float
    embedder_peak_bytes: int
    chunks_per_s: float
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
            f"memory not back {SLEEP_S:g} s after the order to sleep": self.sleep_back_s
            is not None,
            f"{human(self.embedder_peak_bytes)} taken by an embedder of {human(CAP_BYTES)}": (
                self.embedder_peak_bytes <= CAP_BYTES + CONTEXT_BYTES
            ),
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
            sleep_back_s, wake_s = sleep_and_wake(server.url, usage)
            said = server.log.read_text(errors="replace")
            stopped_s = time.monotonic()
            server.stop()
        back_s = usage.back_after_s(held)
        ended_s = None if back_s is None else time.monotonic() - stopped_s
        peak = usage.peak()
    embedder_peak, chunks_per_s = asyncio.run(embed(card))
    log = (folder / "engine.log").read_text(errors="replace")
    return Run(
        plan=plan,
        driver=card.driver,
        vllm=str(version),
        start_s=float(_LOADED.findall(said)[0]),
        kv_tokens=int(state["kv_tokens_reported"] or 0),
        weights_bytes=told_bytes(WEIGHTS, log),
        graphs_bytes=told_bytes(GRAPHS, log),
        peak_bytes=peak,
        held_bytes=held,
        back_s=ended_s,
        sleep_back_s=sleep_back_s,
        wake_s=wake_s,
        embedder_peak_bytes=embedder_peak,
        chunks_per_s=chunks_per_s,
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


def sleep_and_wake(url: str, usage: Usage) -> tuple[float | None, float]:
    """Seconds until a sleeping engine's memory was back (None: not in time), and until it was awake."""
    held = usage.now
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as control:
        control.post("/sleep", json={}).raise_for_status()
        back_s = usage.back_after_s(held, within_s=SLEEP_S)
        control.post("/wake", json={}).raise_for_status()
        began_s = time.monotonic()
        state_once(url, lambda now: now["state"] == "ready", within_s=START_S)
        return back_s, time.monotonic() - began_s


async def embed(card: Card) -> tuple[int, float]:
    """What the embedder takes of the card under its cap, in bytes, and passages a second."""
    texts = [f"{number} {PROMPT}" for number in range(CHUNKS)]
    # Its process sees the card that is watched, and no other.
    os.environ["CUDA_VISIBLE_DEVICES"] = card.device.uuid
    with watching(card) as usage:
        embedder = Embedder(
            model=bundled_embedder(),
            threads=1,
            max_batch=CHUNKS,
            device="cuda",
            gpu_memory_bytes=CAP_BYTES,
        )
        await embedder.start()
        try:
            began_s = time.monotonic()
            await embedder.embed_passages(texts)
            seconds = time.monotonic() - began_s
        finally:
            await embedder.aclose()
        return usage.peak(), CHUNKS / seconds


def told_bytes(pattern: re.Pattern[str], log: str) -> int | None:
    """The last figure that the engine's log gives in GiB, in bytes; None if it gives none."""
    found = pattern.findall(log)
    return int(float(found[-1]) * GIB) if found else None


def table(run: Run) -> str:
    """The run in Markdown."""
    plan, planned = run.plan, run.plan["bytes"]
    embedder = f"{human(run.embedder_peak_bytes)} at the most, {run.chunks_per_s:.0f} passages/s"
    graphs = "unknown" if run.graphs_bytes is None else human(run.graphs_bytes)
    weights = "unknown" if run.weights_bytes is None else human(run.weights_bytes)
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
        f"| memory back after SIGTERM | {human(run.held_bytes)} held | {in_time(run.back_s)} |",
        f"| memory back asleep | {human(run.held_bytes)} held | {in_time(run.sleep_back_s)} |",
        f"| awake again | | {run.wake_s:.0f} s |",
        f"| embedder | {human(CAP_BYTES)} and its context | {embedder} |",
        "",
        "| at a time | tokens/s | median answer |",
        "|---|---|---|",
    ]
    rows += [
        f"| {level.concurrent} | {level.tokens_per_s:.0f} | {level.median_answer_s:.2f} s |"
        for level in run.levels
    ]
    return "\n".join(rows)


def in_time(seconds: float | None) -> str:
    """A time in words; None is one that was over before it came."""
    return "not in time" if seconds is None else f"{seconds:.1f} s"


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
