"""What is tried, and what has to come of it."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadtest.bench import Bench, Result
from loadtest.figures import Window, percentile, recovery_s, served_share
from loadtest.generator import Sent
from loadtest.systems import SystemName

GOODPUT_KEPT = ((2.0, 0.95), (10.0, 0.90))
DEGRADING_LOADS_X = (2.0, 10.0)
CALM_X, BURST_X = 0.75, 3.0
CALM_S, BURST_S, AFTER_S = 8.0, 30.0, 20.0
MIN_RECOVERY_ASKS = 20
HOG_SHARE = 0.9
TENANTS = ("load", "hog", "light", "person", "flood")
"""Who asks; each has a key of its own."""
PAIRS = 120
IDLE_S = 5.0
BUSY_CLIENTS, BUSY_S = 8, 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """
    A figure, and what it has to be.

    Attributes:
        value: None if it could not be had: the program does not say.
        least: It must not be below.
        most: It must not be above.
    """

    scenario: str
    what: str
    value: float | None
    unit: str = ""
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """What a scenario came to."""

    results: tuple[Result, ...]
    checks: tuple[Check, ...]


def curve(bench: Bench, clients: int) -> Tried:
    """Every load on every system, full answers only; `goodput` says what has to come of it."""
    del clients
    # A system's loads are compared with each other: close together, on a machine that drifts.
    results = [
        bench.open("curve", system, [bench.flow(load_x)], load_x=load_x, turn=turn)
        for system in bench.systems
        for turn, loads_x in enumerate(_turns(system, bench))
        for load_x in loads_x
    ]
    forecast = (bench.stack.status().get("gate") or {}).get("forecast") or {}
    refusal = next(r for r in results if (r.system, r.load_x) == ("tidegate", 10.0)).figures
    server_ms = refusal.refusal_server_p99_ms
    checks = (
        Check("curve", "refusal at 10x, server's p99", server_ms, "ms", most=10),
        Check("curve", "refusal at 10x, client's p99", refusal.refusal_p99_ms, "ms"),
        Check(
            "curve",
            f"Retry-After: forecast wait / real wait, median of n={forecast.get('n', 0)}",
            forecast.get("median_ratio"),
            least=0.5,
            most=2.0,
        ),
    )
    return Tried(tuple(results), checks)


def _turns(system: SystemName, bench: Bench) -> list[Sequence[float]]:
    """
    Ours have something to hold: there and back, so that what drifts one way cancels out.

    Only where the engine is as fast as the machine is at that moment: the simulator's steps are not.
    """
    there = bench.loads_x
    return [there, there[::-1]] if system == "tidegate" and bench.drifts else [there]


def degrade(bench: Bench, clients: int) -> Tried:
    """The overloads of the curve, with lesser answers allowed."""
    del clients
    results = [
        bench.open("degrade", "tidegate", [bench.flow(x, degrade=True)], load_x=x)
        for x in DEGRADING_LOADS_X
    ]
    return Tried(tuple(results), ())


def recovery(bench: Bench, clients: int) -> Tried:
    """Calm, a burst, calm again: how soon the calm is served as calm."""
    del clients
    burst_end_s = CALM_S + BURST_S
    # A share of few is no share: a slow engine's window is long, and the last one has to fit, too.
    window_s = max(3.0, MIN_RECOVERY_ASKS / (CALM_X * bench.capacity_rps))
    end_s = burst_end_s + AFTER_S + window_s
    flows = [
        bench.flow(CALM_X, end_s=CALM_S),
        bench.flow(BURST_X, begin_s=CALM_S, end_s=burst_end_s),
        bench.flow(CALM_X, begin_s=burst_end_s, end_s=end_s),
    ]
    compared: tuple[SystemName, ...] = ("tidegate", "engine")
    results, checks = [], []
    for system in compared:
        result = bench.open(
            "recovery", system, flows, load_x=BURST_X, window=Window(burst_end_s, end_s)
        )
        took_s = recovery_s(
            result.records,
            bench.rules,
            burst_end_s=burst_end_s,
            end_s=end_s,
            window_s=window_s,
        )
        results.append(result)
        limit_s = 5.0 if system == "tidegate" else None
        never_s = AFTER_S if took_s is None else took_s
        more = f" (not within {AFTER_S:g} s)" if took_s is None else ""
        checks.append(
            Check("recovery", f"{system}: until 90 % are served{more}", never_s, "s", most=limit_s)
        )
    return Tried(tuple(results), tuple(checks))


def fairness(bench: Bench, clients: int) -> Tried:
    """A hog sends nine tenths of three times the capacity; the light tenant wants its tenth."""
    del clients
    flows = [
        bench.flow(3 * HOG_SHARE, tenant="hog"),
        bench.flow(3 * (1 - HOG_SHARE), tenant="light"),
    ]
    result = bench.open("fairness", "tidegate", flows, load_x=3.0)
    light, hog = result.arrived(tenant="light"), result.arrived(tenant="hog")
    return Tried(
        (result,),
        (
            Check("fairness", "light tenant served", served_share(light, bench.rules), least=0.9),
            Check("fairness", "hog served", served_share(hog, bench.rules)),
        ),
    )


def priority(bench: Bench, clients: int) -> Tried:
    """Interactive requests alone, then beside a flood of batch requests."""
    del clients
    person = bench.flow(0.3, band="interactive", tenant="person")
    flood = bench.flow(3.0, band="batch", tenant="flood")
    alone = bench.open("priority, alone", "tidegate", [person], load_x=0.3)
    beside = bench.open("priority, flooded", "tidegate", [person, flood], load_x=3.3)
    first_s = []
    for result in (alone, beside):
        asked = result.arrived(band="interactive")
        first_s.append(percentile([r.first_token_s for r in asked if r.first_token_s], 0.99))
    asked = beside.arrived(band="interactive")
    ratio = first_s[1] / first_s[0] if first_s[0] and first_s[1] else None
    return Tried(
        (alone, beside),
        (
            Check("priority", "interactive TTFT p99 alone", first_s[0], "s"),
            Check("priority", "the same beside a batch flood of 3x", first_s[1], "s"),
            Check("priority", "beside / alone", ratio, most=2.0),
            Check("priority", "interactive served", served_share(asked, bench.rules)),
        ),
    )


def flaky(bench: Bench, clients: int) -> Tried:
    """An engine that answers three of ten requests with 503: how often it is asked again."""
    del clients
    faults = bench.stack.engine
    fault = {"kind": "status", "status": 503, "probability": 0.3}
    if faults.post("/faults", json=fault).is_error:
        return Tried((), (Check("flaky", "attempts at the engine a request", None, most=1.1),))
    try:
        result = bench.open("flaky", "tidegate", [bench.flow(0.7)], load_x=0.7)
    finally:
        faults.delete("/faults")
    return Tried(
        (result,),
        (
            Check("flaky", "attempts at the engine a request", result.upstream, most=1.1),
            Check("flaky", "served", served_share(result.arrived(), bench.rules)),
        ),
    )


def latency(bench: Bench, clients: int) -> Tried:
    """One request at a time, through tidegate and without, retrieval left out; then what asks cost."""
    del clients
    process = bench.stack.orchestrator
    before_s = process.own_cpu_s()
    time.sleep(IDLE_S)
    idle_share = (process.own_cpu_s() - before_s) / IDLE_S
    sent, paused_ms = _cpu_ms(bench, idle_share, lambda: bench.pairs(PAIRS))
    _, busy_ms = _cpu_ms(
        bench, idle_share, lambda: bench.small(clients=BUSY_CLIENTS, seconds=BUSY_S)
    )
    ours, theirs = sent.records[::2], sent.records[1::2]
    if not all(r.whole for r in sent.records):
        return Tried((), (Check("latency", "added at c=1, p50", None, "ms", most=3),))
    added_ms = [
        (a.total_s - b.total_s) * 1000 - a.retrieve_ms for a, b in zip(ours, theirs, strict=True)
    ]
    alone_ms = statistics.median(r.total_s for r in theirs) * 1000
    return Tried(
        (),
        (
            Check("latency", "engine alone, p50", alone_ms, "ms"),
            Check("latency", "added at c=1, p50", percentile(added_ms, 0.5), "ms", most=3),
            Check("latency", "added at c=1, p99", percentile(added_ms, 0.99), "ms", most=10),
            Check("latency", "orchestrator's CPU a second when idle", idle_share * 1e3, "ms"),
            Check("latency", "beyond that, an ask with pauses", paused_ms, "ms"),
            Check("latency", f"an ask, {BUSY_CLIENTS} at a time", busy_ms, "ms", most=3),
        ),
    )


def _cpu_ms(bench: Bench, idle_share: float, send: Callable[[], Sent]) -> tuple[Sent, float | None]:
    """What was sent, and the milliseconds of the orchestrator's own processor time for each ask."""
    process = bench.stack.orchestrator
    before_s, began_s = process.own_cpu_s(), time.monotonic()
    sent = send()
    used_s = process.own_cpu_s() - before_s - idle_share * (time.monotonic() - began_s)
    asked = sum(record.whole and record.retrieve_ms > 0 for record in sent.records)
    return sent, used_s / asked * 1000 if asked else None


def throughput(bench: Bench, clients: int) -> Tried:
    """As many clients as keep the engine busiest, with tidegate and without."""
    ours = bench.closed("throughput", "tidegate", clients=clients)
    theirs = bench.closed("throughput", "engine", clients=clients)
    kept = _share(ours, theirs.figures.goodput_tok_s)
    return Tried(
        (ours, theirs), (Check("throughput", "kept, of the engine's own", kept, least=0.98),)
    )


def refusal(bench: Bench, clients: int) -> Tried:
    """Ten times the capacity for a moment: what a refusal costs."""
    del clients
    result = bench.open("refusal", "tidegate", [bench.flow(10.0)], load_x=10.0)
    seen = result.figures
    cpu_ms = result.orchestrator_cpu_s * 1000 / max(sum(seen.codes.values()), 1)
    return Tried(
        (result,),
        (
            Check("refusal", "server's p50", seen.refusal_server_p50_ms, "ms"),
            Check("refusal", "server's p99", seen.refusal_server_p99_ms, "ms", most=10),
            Check("refusal", "client's p50", seen.refusal_p50_ms, "ms"),
            Check("refusal", "client's p99", seen.refusal_p99_ms, "ms"),
            Check("refusal", "orchestrator's CPU an attempt, answers included", cpu_ms, "ms"),
        ),
    )


SCENARIOS: dict[str, Callable[[Bench, int], Tried]] = {
    "throughput": throughput,
    "latency": latency,
    "curve": curve,
    "degrade": degrade,
    "recovery": recovery,
    "fairness": fairness,
    "priority": priority,
    "flaky": flaky,
    "refusal": refusal,
}
IN_ALL = [name for name in SCENARIOS if name != "refusal"]
"""`curve` holds what `refusal` shows alone."""


def goodput(results: Sequence[Result]) -> tuple[Check, ...]:
    """
    How much of its own peak tidegate keeps under overload, and how much that is of the best of all.

    Each repeat counts in parts of its own mean, since a machine that others share is faster in one
    than in the next; the two turns of a repeat count as one. Peaks are the best medians: the best
    single run would be the luckiest of dozens. The best of all systems is only shown: where
    everything runs on the same cores, the embedder takes from the engine what those who bring their
    prompts along leave to it; `throughput` has what tidegate itself costs. Lesser answers are
    cheaper, so full ones are compared with full ones.
    """
    curves = [r for r in results if r.scenario == "curve"]
    ours = [r for r in curves if r.system == "tidegate"]
    means = {
        seed: statistics.fmean(r.figures.goodput_tok_s for r in ours if r.seed == seed)
        for seed in {r.seed for r in ours}
    }
    if not all(means.values()):
        return ()
    turns: dict[tuple[SystemName, float | None, int], list[float]] = {}
    for r in curves:
        part = r.figures.goodput_tok_s / means[r.seed]
        turns.setdefault((r.system, r.load_x, r.seed), []).append(part)
    runs: dict[tuple[SystemName, float | None], list[float]] = {}
    for (system, load_x, _), parts in turns.items():
        runs.setdefault((system, load_x), []).append(statistics.fmean(parts))
    medians = {key: statistics.median(parts) for key, parts in runs.items()}
    own = max((m for (system, _), m in medians.items() if system == "tidegate"), default=0.0)
    best = max(medians.values(), default=0.0)
    return tuple(
        Check("curve", f"goodput at {x:g}x, of {what}", part / peak, least=least)
        for x, kept in GOODPUT_KEPT
        for what, peak, least in (("its peak", own, kept), ("the best of all", best, None))
        for part in runs.get(("tidegate", x), ())
    )


def health(results: Sequence[Result]) -> tuple[Check, ...]:
    """What must hold in every run of tidegate."""
    ours = [r for r in results if r.system == "tidegate"]
    return (
        Check("every run", "hung clients", float(sum(r.figures.hung for r in ours)), most=0),
        Check("every run", "runs that left something behind", _leaking(ours), most=0),
    )


def _leaking(results: Sequence[Result]) -> float:
    return float(sum(bool(r.leaks) for r in results))


def _share(result: Result, whole: float) -> float | None:
    return result.figures.goodput_tok_s / whole if whole else None
