"""
Pulls plugs on a service under load, and holds what comes against what is promised.

    make chaos [ENGINE=simulator] [PLUGS="engine killed,storm"] [OUT=reports/chaos.json]

Starts model_server, its engine and the orchestrator on free loopback ports, and a Prometheus if there is
one. For each plug: people ask at half of what it can do, the plug is pulled, put back, and they go on
asking. Nobody may hang or get half an answer, whoever is not answered is told, the alarms that are meant
for it are raised, within ten seconds everybody is served again, and nothing is left behind. Only
processes that were started here are touched. The exit code is 1 if a promise was broken.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploy import grafana_dashboard
from loadtest.arrivals import Flow, Mix, schedule
from loadtest.chaos_plugs import PLUGS, Plug
from loadtest.chaos_stage import UP_WITHIN_S, WITHOUT, Gone, Stage, stage
from loadtest.client_rules import ClientRules
from loadtest.figures import (
    REFUSALS,
    Window,
    answered_share,
    outcome,
    percentile,
    recovery_s,
    served_share,
)
from loadtest.generator import Record, Run, open_loop
from loadtest.programs import commit, end_in_order, machine
from loadtest.prometheus import HOW_TO_GET, Prometheus
from loadtest.report import markdown

CALM_S, AFTER_S = 5.0, 20.0
AGAIN_S = 10.0
REFUSAL_MS = 10.0
START_S = {"simulator": 0.0, "vllm": UP_WITHIN_S}
"""For each start of the engine: people go on asking for so much longer."""
RATE_PER_S = {"simulator": 8.0, "vllm": 0.4}
MIXES = {"simulator": Mix(), "vllm": Mix(mean_tokens=32, cap_tokens=64, sigma=0.1)}
UNTOLD = {"reset", "refused", "incomplete", "gave_up", "internal_error"}
CONNECTION = {"reset", "refused", "incomplete"}
SEED = 20260701


@dataclass(frozen=True, slots=True)
class Seen:
    """
    What came of one plug.

    Attributes:
        outcomes: Of those who asked while it was pulled, and until the end.
        again_s: From its being back until nine tenths were served; None if they never were.
        raised: Alarms that were seen raised from its being pulled until the end.
        broken: Promises that did not hold, in words.
        gone: Whether something did not come back, so that no other plug can be pulled.
    """

    plug: str
    promise: str
    outcomes: dict[str, int]
    again_s: float | None
    raised: tuple[str, ...]
    broken: tuple[str, ...]
    gone: bool = False


def pulled(
    on: Stage, generator: ProcessPoolExecutor, plug: Plug, options: argparse.Namespace
) -> Seen:
    """Load, the plug, and what came of both."""
    if plug.crowd and options.engine == "vllm":
        plug = replace(plug, served=0.0, answered=0.0, alarms=())
    rules = ClientRules()
    before = on.stack.snapshot()
    run, end_s = _run(on, plug, options, rules)
    broken: list[str] = []
    began_s = time.monotonic()
    future = generator.submit(open_loop, on.stack.target, run)
    time.sleep(CALM_S)
    pulled_s = time.monotonic() - began_s
    out_s, gone = pulled_s, False
    try:
        with plug.pull(on, broken):
            time.sleep(max(pulled_s + plug.out_s - (time.monotonic() - began_s), 0))
            out_s = time.monotonic() - began_s
    except Gone as exc:
        broken.append(str(exc))
        gone = True
    back_s = time.monotonic() - began_s
    records = future.result().records
    plug.afterwards(on, broken)
    if not (plug.connections or gone):
        broken += [f"left behind: {leak}" for leak in on.stack.leaks(before)]
    again_s = recovery_s(records, rules, burst_end_s=back_s, end_s=end_s)
    broken += judged(records, rules, plug, Window(pulled_s, out_s), again_s)
    raised = frozenset[str]()
    if on.prometheus is not None:
        raised = on.prometheus.raised(within_s=time.monotonic() - began_s - pulled_s)
        broken += [f"{alarm} was not raised" for alarm in plug.alarms if alarm not in raised]
    since = [r for r in records if r.at_s >= pulled_s]
    counts = Counter(outcome(record, rules) for record in since)
    return Seen(
        plug.name, plug.promise, dict(counts), again_s, tuple(sorted(raised)), tuple(broken), gone
    )


def judged(
    records: Sequence[Record],
    rules: ClientRules,
    plug: Plug,
    out: Window,
    again_s: float | None,
) -> list[str]:
    """
    What was not as it is promised to everybody, in words.

    Args:
        records: Of the whole run.
        rules: The clients'.
        plug: Which one it was.
        out: While it was pulled.
        again_s: Seconds until it served again.
    """
    found = []
    allowed = CONNECTION if plug.connections else set()
    untold = Counter(
        word
        for word in (outcome(record, rules) for record in records)
        if word in UNTOLD - allowed or word.isdecimal()
    )
    found += [f"{n} ended in {word}" for word, n in sorted(untold.items())]
    if again_s is None or again_s > AGAIN_S:
        when = "not again by the end" if again_s is None else f"after {again_s:.1f} s"
        found.append(f"served again {when}, not within {AGAIN_S:g} s")
    share = served_share([r for r in records if out.holds(r.at_s)], rules)
    if plug.served and (share is None or share < plug.served):
        found.append(f"{share or 0:.0%} served meanwhile, not {plug.served:.0%}")
    share = answered_share([r for r in records if out.holds(r.at_s)], rules)
    if plug.answered and (share is None or share < plug.answered):
        found.append(f"{share or 0:.0%} answered meanwhile, not {plug.answered:.0%}")
    if plug.storm_x:
        tries = [attempt for record in records for attempt in record.attempts]
        took_ms = [a.server_ms for a in tries if a.status in REFUSALS and a.server_ms is not None]
        refused_ms = percentile(took_ms, 0.99)
        if refused_ms is None or refused_ms > REFUSAL_MS:
            found.append(f"a refusal took {refused_ms} ms at p99, not {REFUSAL_MS:g}")
    return found


def _run(
    on: Stage, plug: Plug, options: argparse.Namespace, rules: ClientRules
) -> tuple[Run, float]:
    rate = RATE_PER_S[options.engine]
    end_s = CALM_S + plug.out_s + plug.starts * START_S[options.engine] + AFTER_S
    flows = [Flow(rate_per_s=rate, end_s=end_s, degrade=True)]
    if plug.storm_x:
        storm = Flow(
            rate_per_s=rate * plug.storm_x, begin_s=CALM_S, end_s=CALM_S + plug.out_s,
            tenant="storm", degrade=False,
        )  # fmt: skip
        flows.append(storm)
    sizes = [prompt.size for prompt in on.stack.target.pool]
    asks = schedule(flows, pool=sizes, mix=MIXES[options.engine], seed=SEED, salt=plug.name)
    tail_s = rules.patience_s + rules.grace_s + rules.first_token_slo_s
    run = Run(
        system="tidegate",
        asks=asks,
        rules=rules,
        stop_retries_s=end_s + rules.first_token_slo_s,
        cut_s=end_s + tail_s + 1,
        seed=SEED,
    )
    return run, end_s


def _table(seen: Sequence[Seen]) -> str:
    rows = []
    for one in seen:
        counts = ", ".join(f"{n} {word}" for word, n in sorted(one.outcomes.items()))
        again = "never" if one.again_s is None else f"{one.again_s:.1f} s"
        verdict = "held" if not one.broken else "BROKEN: " + "; ".join(one.broken)
        alarms = ", ".join(one.raised)
        rows.append([one.plug, one.promise, counts, again, alarms, verdict])
    return markdown(["plug", "promise", "what came", "served again", "alarms", ""], rows)


def _drawn(watching: Prometheus | None) -> list[str]:
    """Queries of the dashboard that found nothing, in words."""
    if watching is None:
        return []
    panels = [panel for row in grafana_dashboard.ROWS.values() for panel in row]
    return [
        f"the panel {panel.title!r} finds nothing by {query}"
        for panel in panels
        for query in panel.queries.values()
        if not watching.query(query)
    ]


def _lacks(plug: Plug, on: Stage) -> str | None:
    """Why a plug cannot be pulled here; None if it can."""
    here = {
        "": True,
        "disk": on.disk is not None,
        "group": on.group is not None,
        "simulator": on.engine == "simulator",
    }
    reasons = {
        "disk": "only root may mount a disk of its own",
        "group": "only root may set a memory limit",
        "simulator": "the simulator alone takes another size of its cache",
    }
    return None if here[plug.needs] else reasons[plug.needs]


def main() -> int:
    """Pull every plug; gives the exit code."""
    options = _options()
    end_in_order()
    spawn = multiprocessing.get_context("spawn")
    seen = []
    with (
        tempfile.TemporaryDirectory() as folder,
        stage(options.engine, Path(folder), without=options.without) as on,
        ProcessPoolExecutor(1, mp_context=spawn) as generator,
    ):
        if on.prometheus is None:
            print(f"alarms are not looked at: {HOW_TO_GET}", flush=True)
        for plug in options.plugs:
            if lack := _lacks(plug, on):
                print(f"{plug.name}: skipped, {lack}", flush=True)
                continue
            seen.append(pulled(on, generator, plug, options))
            print(seen[-1], file=sys.stderr, flush=True)
            if seen[-1].gone:
                break
        empty = _drawn(on.prometheus)
    print(f"\n{machine()}, commit {commit()}, {options.engine}\n\n{_table(seen)}")
    print("\n".join(empty))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine(),
        "commit": commit(),
        "without": options.without,
        "watched": on.prometheus is not None,
        "plugs": [asdict(one) for one in seen],
        "panels without data": empty,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    # A series that counts something begins with the first of it: only all plugs give all of them.
    lacking = empty and len(seen) == len(PLUGS)
    return int(bool(lacking) or any(one.broken for one in seen))


def _options() -> argparse.Namespace:
    names = {plug.name: plug for plug in PLUGS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--engine", choices=sorted(RATE_PER_S), default="simulator")
    parser.add_argument("--plugs", default=",".join(names), help=f"of: {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=Path("reports/chaos.json"))
    parser.add_argument(
        "--without", choices=sorted(WITHOUT), default="", help="a safeguard to be taken out"
    )
    options = parser.parse_args()
    wanted = [name.strip() for name in options.plugs.split(",")]
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"no such plug: {', '.join(unknown)}; there are {', '.join(names)}")
    options.plugs = [names[name] for name in wanted]
    return options


if __name__ == "__main__":
    sys.exit(main())
