"""
An engine under as much load as it can bear is not mistaken for one that hangs.

    make false-kills [MINUTES=30] [PREFILLS=10]

Starts real vLLM and the orchestrator. Offers five times what the engine can do, half of the time through
the orchestrator and half straight at the engine, where nothing holds the flood back; then sends prompts as
long as the window allows, one after the other. Meanwhile model_server looks for hangs, as always. The exit
code is 1 if it killed or restarted the engine, or if one of the long prompts got no answer.
MODEL_SERVER_HANG_TIMEOUT_S in the environment makes it less patient.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx2

from loadtest import report
from loadtest.bench import Bench
from loadtest.client_rules import ClientRules
from loadtest.overload import CPU_CLIENTS, CPU_MIX, SEED
from loadtest.programs import commit, machine
from loadtest.stack import Stack, stack
from loadtest.systems import SystemName

LOAD_X = 5.0
RUN_S = 150.0
CAPACITY_S = 60.0
PREFILL_S = 300.0
SYSTEMS: tuple[SystemName, ...] = ("tidegate", "engine")


def main() -> int:
    """Load, read long prompts, and print what model_server did; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--minutes", type=float, default=30.0, help="under five times the load")
    parser.add_argument("--prefills", type=int, default=10, help="of the longest prompt, in a row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stack("vllm", Path(folder)) as running:
        before = running.keeper()
        loaded_s = _load(running, options.minutes * 60)
        took_s = [_prefill(running, number) for number in range(options.prefills)]
        after = running.keeper()
        log = running.engine_process.tail()
    print(f"\n{machine()}, commit {commit()}\n\n| what | figure |\n|---|---|")
    print(f"| at {LOAD_X:g} times its capacity | {loaded_s / 60:.1f} min |")
    print(f"| prompts of the whole window in a row | {len(took_s)}, {_range(took_s)} |")
    kills = {name: after[name] - before[name] for name in ("hangs", "restarts")}
    print(f"| taken for hung | {kills['hangs']} |\n| restarted | {kills['restarts']} |")
    if any(kills.values()):
        print(f"\n{after['last_error']}\n{log}")
    return int(any(kills.values()) or None in took_s)


def _load(running: Stack, seconds: float) -> float:
    """Offer the load until that much time has passed; how much did."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as generator:
        bench = Bench(
            stack=running,
            generator=generator,
            rules=ClientRules(),
            mix=CPU_MIX,
            seconds=CAPACITY_S,
            seed=SEED,
            on_result=lambda result: print(report.progress(result), file=sys.stderr, flush=True),
        )
        capacity = bench.closed("capacity", "engine", clients=CPU_CLIENTS).figures.answers_rps
        if not capacity:
            raise SystemExit("the engine answered nothing")
        bench = replace(bench, capacity_rps=capacity)
        began_s, run = time.monotonic(), 0
        while (left_s := began_s + seconds - time.monotonic()) > 1:
            bench = replace(bench, seconds=min(RUN_S, left_s), seed=SEED + run)
            bench.open(
                "five times", SYSTEMS[run % len(SYSTEMS)], [bench.flow(LOAD_X)], load_x=LOAD_X
            )
            run += 1
        return time.monotonic() - began_s


def _prefill(running: Stack, number: int) -> float | None:
    """Seconds that a prompt of all but a few tokens of the window took; None without an answer."""
    window = running.status()["engine"]["max_model_len"]
    # Another word in front, so that no prefix cache knows it; a token a word is what "tide" takes.
    prompt = f"{number} " + "tide " * (window - 64)
    body = {"model": running.target.model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    began_s = time.monotonic()
    try:
        answer = running.engine.post("/v1/completions", json=body, timeout=PREFILL_S)
    except httpx2.HTTPError as exc:
        print(f"prefill {number}: {exc!r}", file=sys.stderr)
        return None
    if answer.is_error:
        print(f"prefill {number}: {answer.status_code} {answer.text[:300]}", file=sys.stderr)
        return None
    return time.monotonic() - began_s


def _range(took_s: list[float | None]) -> str:
    known = sorted(took for took in took_s if took is not None)
    return f"{known[0]:.1f} to {known[-1]:.1f} s each" if known else "none answered"


if __name__ == "__main__":
    sys.exit(main())
