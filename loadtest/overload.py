"""
What happens when more is asked than the engine can answer: one table, from one run of the real parts.

    make overload ENGINE=simulator|vllm [SCENARIO=all] [REPEATS=3] [SECONDS=60] [OUT=reports/overload.json]
                  [ALONE=1] [NAIVE=1] [BESIDE="name=http://…"] [MODEL=<folder>] [CLIENTS=160]

Starts the engine and the orchestrator on free loopback ports, measures what the engine does by itself,
then offers multiples of that: open-loop Poisson arrivals from fixed seeds, clients that time out and
retry twice. See loadtest/README.md for what is counted and how. The exit code is 1 if an objective is
missed.
"""

import argparse
import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

from loadtest import report
from loadtest.arrivals import Mix
from loadtest.bench import LOADS_X, Bench, Result
from loadtest.client_rules import ClientRules
from loadtest.generator import Other
from loadtest.programs import commit, end_in_order, machine
from loadtest.scenarios import IN_ALL, SCENARIOS, TENANTS, Check, goodput, health
from loadtest.stack import H100_LIKE, Stack, stack
from loadtest.systems import NAIVE, SYSTEMS

SEED = 20260701
LARGE_CLIENTS = 160
CPU_CLIENTS = 40
"""Enough that more would not make the simulator, or vLLM on a CPU, faster by more than 2 %."""
CPU_MIX = Mix(mean_tokens=48, cap_tokens=128, sigma=0.1)
"""
Narrower than on a GPU, real or modelled: a run on a CPU has about a hundred answers, and with lengths
as uneven as there their sum alone differs by 5 % from run to run.
"""
STALE_S = 600.0
"""A machine that others share is not as fast ten minutes later: then the capacity is measured anew."""
OPEN_FILES = 20_000


def main() -> int:
    """Run what was asked for and print the tables; gives the exit code."""
    options = _options()
    end_in_order()
    _raise_open_files()
    began_s = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        stack(
            options.engine,
            Path(folder),
            simulator_options=[*H100_LIKE, *options.simulator],
            settings=[tuple(text.split("=", 1)) for text in options.set],
            model_server=_of_model(options.model) if options.model else None,
            tenants=TENANTS,
        ) as alone,
        ProcessPoolExecutor(1, mp_context=spawn) as generator,
    ):
        large = alone.device.large
        if options.naive and large:
            raise SystemExit("the naive service computes on a CPU: leave --naive out on a GPU")
        others = tuple((name, _other(url)) for name, url in options.beside)
        running = replace(alone, target=replace(alone.target, others=others))
        bench = Bench(
            stack=running,
            generator=generator,
            rules=ClientRules(),
            mix=Mix() if large else CPU_MIX,
            seconds=options.seconds,
            seed=SEED,
            on_result=_say,
            loads_x=options.loads,
            systems=_systems(options),
            drifts=not large,
        )
        clients = options.clients or (LARGE_CLIENTS if large else CPU_CLIENTS)
        for repeats, (results, checks) in enumerate(_repeated(bench, options, clients), start=1):
            found = report.verdicts([*goodput(results), *checks, *health(results)])
            about = _about(options, running, results, repeats, time.monotonic() - began_s)
            # After each: a run of hours that is cut short was not for nothing.
            report.write_json(options.out, about, results, found)
    print("\n" + "\n".join(f"{name}: {value}" for name, value in about.items()))
    print(f"\n{report.runs_table(results)}\n\n{report.outcomes_table(results)}")
    print(f"\n{report.checks_table(found)}")
    return int(any(verdict.held is False for verdict in found))


def _systems(options: argparse.Namespace) -> tuple[str, ...]:
    """Those of the curve, in their order."""
    ours, *baselines = SYSTEMS
    named = [*([] if options.alone else baselines), *([NAIVE] if options.naive else [])]
    return (ours, *named, *dict(options.beside))


def _of_model(folder: str) -> dict[str, str]:
    """model_server's settings for another model than the bundled one, under its own name."""
    name = Path(folder).resolve().name.lower()
    return {"MODEL_SERVER_MODEL": folder, "MODEL_SERVER_SERVED_MODEL_NAME": name}


def _other(url: str) -> Other:
    """A server with OpenAI's wire that runs already."""
    address = httpx2.URL(url)
    answer = httpx2.get(f"{url.rstrip('/')}/v1/models", timeout=10, trust_env=False)
    model = answer.raise_for_status().json()["data"][0]["id"]
    return Other((address.host, address.port or 80), str(model))


def _capacity(bench: Bench, clients: int) -> Result:
    """What the engine does by itself with as many clients as keep it busiest."""
    result = bench.closed("capacity", "engine", clients=clients)
    if not result.figures.answers_rps:
        raise SystemExit(f"the engine answered nothing: {dict(result.figures.outcomes)}")
    return result


def _say(result: Result) -> None:
    print(report.progress(result), file=sys.stderr, flush=True)


def _repeated(
    bench: Bench, options: argparse.Namespace, clients: int
) -> Iterator[tuple[list[Result], list[Check]]]:
    """Everything so far, after each repeat."""
    results: list[Result] = []
    checks: list[Check] = []
    for repeat in range(options.repeats):
        # What drifts one way all the time must not always favour the same end of the curve.
        loads_x = options.loads[::-1] if repeat % 2 else options.loads
        bench = replace(bench, seed=SEED + repeat, loads_x=loads_x)
        measured_s = -math.inf
        for name in options.scenario:
            if time.monotonic() - measured_s > STALE_S:
                capacity = _capacity(bench, clients)
                results.append(capacity)
                bench = replace(bench, capacity_rps=capacity.figures.answers_rps)
                measured_s = time.monotonic()
            tried = SCENARIOS[name](bench, clients)
            results += tried.results
            checks += tried.checks
        yield results, checks


def _about(
    options: argparse.Namespace,
    running: Stack,
    results: Sequence[Result],
    repeats: int,
    took_s: float,
) -> dict[str, Any]:
    capacity = [r.figures for r in results if r.scenario == "capacity"]
    return {
        "commit": commit(),
        "machine": machine(),
        "engine": f"{options.engine} ({running.target.model}) on {running.device.name}",
        "repeats": repeats,
        "seconds of a run": options.seconds,
        "loads of the curve": ", ".join(f"{x:g}x" for x in options.loads),
        "seeds": f"{SEED} to {SEED + repeats - 1}",
        "capacity, requests a second": [round(seen.answers_rps, 2) for seen in capacity],
        "capacity, completion tokens a second": [round(s.goodput_tok_s, 1) for s in capacity],
        "orchestrator settings": options.set,
        "took, seconds": round(took_s),
    }


def _raise_open_files() -> None:
    """Unbounded baselines keep thousands of connections open; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--engine", choices=["simulator", "vllm"], default="simulator")
    parser.add_argument(
        "--scenario", default="all", help=f"comma separated: {', '.join(SCENARIOS)}, all"
    )
    parser.add_argument("--model", default="", help="folder of vLLM's model; its own by default")
    parser.add_argument(
        "--clients", type=int, default=0, help="who keep the engine busiest; by its device if 0"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--loads", type=_loads, default=LOADS_X, help="of the curve, such as 1,2,10; with 2 and 10"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/overload.json"))
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="ORCHESTRATOR_NAME"
    )
    parser.add_argument(
        "--simulator", action="append", default=[], help="further argument of the simulator"
    )
    parser.add_argument(
        "--alone", action="store_true", help="only tidegate is in the curve: time for longer rows"
    )
    parser.add_argument(
        "--naive", action="store_true", help="the service that people write first is in the curve"
    )
    parser.add_argument(
        "--beside", action="append", type=_beside, default=[], metavar="NAME=URL",
        help="a server with OpenAI's wire that is in the curve, such as another engine",
    )  # fmt: skip
    options = parser.parse_args()
    if options.naive and options.engine == "simulator":
        parser.error("the naive service has a real model: --naive goes with --engine vllm")
    if options.model and options.engine == "simulator":
        parser.error("the simulator has no model: --model goes with --engine vllm")
    if options.repeats < 1:
        parser.error("--repeats is at least 1")
    named = options.scenario.split(",")
    options.scenario = IN_ALL if "all" in named else named
    if unknown := set(options.scenario) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return options


def _beside(text: str) -> tuple[str, str]:
    """
    A name and a URL.

    Raises:
        ArgumentTypeError: If it is not both, or the name is taken.
    """
    name, _, url = text.partition("=")
    if not url.startswith("http://") or name in {*SYSTEMS, NAIVE, ""}:
        raise argparse.ArgumentTypeError("say NAME=http://host:port, with a name of its own")
    return name, url


def _loads(text: str) -> tuple[float, ...]:
    """
    Multiples of the capacity.

    Raises:
        ArgumentTypeError: If one is no number above 0, or those with an objective are missing.
    """
    with suppress(ValueError):
        loads_x = tuple(float(part) for part in text.split(","))
        if {2.0, 10.0} <= set(loads_x) and min(loads_x) > 0:
            return loads_x
    raise argparse.ArgumentTypeError(
        f"{text!r} must be multiples of the capacity, such as 0.5,1,2,10; 2 and 10 have objectives"
    )


if __name__ == "__main__":
    sys.exit(main())
