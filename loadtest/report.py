"""The tables that people read, and the JSON that programs do."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from loadtest.arrivals import SIZES
from loadtest.bench import Result
from loadtest.figures import spread
from loadtest.scenarios import Check

MISSING = "n/a"
CPU_COLUMNS = (
    "orchestrator_cpu_s",
    "children_cpu_s",
    "engine_cpu_s",
    "generator_cpu_s",
    "others_cpu_s",
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    A check over all repeats.

    Attributes:
        values: Median, least and greatest; None if a repeat has no value.
        held: Whether the median is within the limits; None if there is no limit or no value.
    """

    check: Check
    values: tuple[float, float, float] | None
    held: bool | None


def verdicts(checks: Sequence[Check]) -> list[Verdict]:
    """One verdict for each kind of check, in order of their first appearance."""
    kinds: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        kinds.setdefault((check.scenario, _kind(check.what)), []).append(check)
    return [_verdict(same) for same in kinds.values()]


def progress(result: Result) -> str:
    """One line for a run that has just ended."""
    seen = result.figures
    outcomes = ", ".join(f"{n} {what}" for what, n in sorted(seen.outcomes.items()))
    leaks = f"; LEFT BEHIND: {'; '.join(result.leaks)}" if result.leaks else ""
    return (
        f"{result.scenario} {_load(result)} {result.system}: {seen.goodput_tok_s:.0f} tok/s good, "
        f"{seen.offered_rps:.1f}/s offered ({outcomes}){leaks}"
    )


def runs_table(results: Sequence[Result]) -> str:
    """Markdown: one row a kind of run, medians of the repeats, and the spread of the goodput."""
    rows = [[text(same) for _, text in COLUMNS] for same in _repeats(results)]
    return markdown([name for name, _ in COLUMNS], rows)


def checks_table(found: Iterable[Verdict]) -> str:
    """Markdown: one row a check."""
    words = {True: "held", False: "MISSED", None: ""}
    rows = [
        [
            verdict.check.scenario,
            verdict.check.what,
            _with_spread(verdict.values, verdict.check.unit),
            _limit(verdict.check),
            words[verdict.held] if verdict.values else MISSING,
        ]
        for verdict in found
    ]
    return markdown(["scenario", "what", "median (spread)", "objective", ""], rows)


def outcomes_table(results: Sequence[Result]) -> str:
    """Markdown: how logical requests ended, summed over the repeats."""
    rows: list[list[str]] = []
    for runs in _repeats(results):
        total: Counter[str] = Counter()
        for run in runs:
            total.update(run.figures.outcomes)
        listed = ", ".join(f"{what} {n}" for what, n in sorted(total.items()))
        rows.append([runs[0].scenario, _load(runs[0]), runs[0].system, listed])
    return markdown(["scenario", "load", "system", "logical requests by outcome"], rows)


def write_json(
    path: Path, about: Mapping[str, Any], results: Sequence[Result], found: Sequence[Verdict]
) -> None:
    """Everything but the single records, for programs to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        **about,
        "runs": [_without_records(result) for result in results],
        "checks": [asdict(verdict) for verdict in found],
    }
    path.write_text(json.dumps(document, indent=1, default=list) + "\n")


def _repeats(results: Sequence[Result]) -> list[list[Result]]:
    """Runs of the same kind together, in order of the first of each kind."""
    kinds: dict[tuple[str, float | None, str], list[Result]] = {}
    for result in results:
        kinds.setdefault((result.scenario, result.load_x, result.system), []).append(result)
    return list(kinds.values())


def _without_records(result: Result) -> dict[str, Any]:
    kept = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "records"}
    return {**kept, "figures": asdict(result.figures), "window": asdict(result.window)}


def _verdict(same: Sequence[Check]) -> Verdict:
    check = same[0]
    values = spread([c.value for c in same])
    if values is None or (check.least is None and check.most is None):
        return Verdict(check, values, None)
    above = check.least is None or values[0] >= check.least
    below = check.most is None or values[0] <= check.most
    return Verdict(check, values, above and below)


def _kind(what: str) -> str:
    """What is said in brackets may differ between repeats."""
    return what.partition(" (")[0].partition(" of n=")[0]


def _limit(check: Check) -> str:
    parts = []
    if check.least is not None:
        parts.append(f">= {check.least:g}")
    if check.most is not None:
        parts.append(f"<= {check.most:g}")
    return " and ".join(parts)


def _with_spread(values: tuple[float, float, float] | None, unit: str) -> str:
    if values is None:
        return MISSING
    middle, least, greatest = values
    between = "" if least == greatest else f" ({_short(least)} to {_short(greatest)})"
    return f"{_short(middle)}{' ' if unit else ''}{unit}{between}"


def _load(result: Result) -> str:
    return "closed" if result.load_x is None else f"{result.load_x:g}x"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits


def _median(pick: Callable[[Result], float | None]) -> Callable[[Sequence[Result]], str]:
    def text(same: Sequence[Result]) -> str:
        values = spread([pick(result) for result in same])
        return MISSING if values is None else _short(values[0])

    return text


def _goodput(same: Sequence[Result]) -> str:
    return _with_spread(spread([r.figures.goodput_tok_s for r in same]), "")


def _success(same: Sequence[Result]) -> str:
    texts = []
    for size in SIZES:
        values = spread([r.figures.success[size] for r in same])
        texts.append(MISSING if values is None else f"{values[0]:.0%}")
    return " / ".join(texts)


def _cpu(same: Sequence[Result]) -> str:
    parts = []
    for name in CPU_COLUMNS:
        values = spread([getattr(r, name) / r.seconds for r in same])
        parts.append(MISSING if values is None else f"{values[0]:.0%}")
    return " / ".join(parts)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


COLUMNS: tuple[tuple[str, Callable[[Sequence[Result]], str]], ...] = (
    ("scenario", lambda same: same[0].scenario),
    ("load", lambda same: _load(same[0])),
    ("system", lambda same: same[0].system),
    ("offered/s", _median(lambda r: r.figures.offered_rps)),
    ("goodput tok/s", _goodput),
    ("with prompts tok/s", _median(lambda r: r.figures.work_tok_s)),
    ("answers/s", _median(lambda r: r.figures.answers_rps)),
    ("passages only/s", _median(lambda r: r.figures.retrieval_only_rps)),
    ("served small / medium / large", _success),
    ("TTFT p50 s", _median(lambda r: r.figures.ttft_p50_s)),
    ("TTFT p99 s", _median(lambda r: r.figures.ttft_p99_s)),
    ("refusal p50 ms", _median(lambda r: r.figures.refusal_p50_ms)),
    ("refusal p99 ms", _median(lambda r: r.figures.refusal_p99_ms)),
    ("of it server p99 ms", _median(lambda r: r.figures.refusal_server_p99_ms)),
    ("tries a request", _median(lambda r: r.figures.attempts)),
    ("engine attempts", _median(lambda r: r.upstream if r.system == "tidegate" else None)),
    ("preemptions", _median(lambda r: r.preemptions)),
    ("clients at once, most", _median(lambda r: r.figures.clients_peak)),
    ("hung", _median(lambda r: r.figures.hung)),
    ("CPU orchestrator / its children / engine / generator / others", _cpu),
    ("sent late p99 ms", _median(lambda r: r.figures.late_p99_ms)),
)
