"""
`docs/performance.md` and its pictures, from what `make overload` wrote.

    make report FROM="reports/vllm.json reports/simulator.json"

Nothing is typed by hand: each figure is the median of the repeats of a run, each row is in the table.
What the page has of other engines and scenarios stays, and a curve of which a run has only a part: that
part is beside it then, without a picture of its own.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest import pictures
from loadtest.pictures import Line
from loadtest.programs import ROOT
from loadtest.report import markdown

PAGE = ROOT / "docs" / "performance.md"
NAMES = {
    "tidegate": "Tidegate",
    "engine": "the engine, nothing between",
    "semaphore": "the engine behind a semaphore of 64",
    "naive": "the service that people write first",
}
HEADINGS = (
    "load",
    "system",
    "offered/s",
    "goodput tok/s",
    "of its own best",
    "served small / medium / large",
    "TTFT p50 s",
    "TTFT p99 s",
    "refusal p99 ms",
    "clients at once, most",
    "hung",
)
HEAD = """# Performance under load

Written by `make report` from the JSON of `make overload`; do not edit.
What is counted, and how: [loadtest/README.md](../loadtest/README.md). In short: arrivals are open-loop, clients give up after 30 s and try again twice, and goodput is completion tokens a second of whole answers in time, as they reached the clients.
"""


def main() -> int:
    """Write the page anew, with these runs in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("runs", nargs="+", type=Path, help="JSON files of `make overload`")
    options = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in options.runs]
    staying = kept(PAGE.read_text() if PAGE.exists() else "", runs)
    drawn = [run for run in runs if _loads(run) and not _is_pictured(run, staying)]
    PAGE.write_text("\n".join([HEAD, *(section(r, pictured=r in drawn) for r in runs), *staying]))
    for run in drawn:
        picture = PAGE.parent / _picture(run)
        picture.parent.mkdir(exist_ok=True)
        picture.write_text(curve(run) + "\n")
    print(PAGE.relative_to(ROOT))
    return 0


def kept(page: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The page's sections with something that none of the runs measured anew on the same engine."""
    sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    return [
        text.rstrip("\n") + "\n"
        for text in sections
        if not any(_replaces(run, text) for run in runs)
    ]


def _replaces(run: Mapping[str, Any], text: str) -> bool:
    heading = text.partition("\n")[0].removeprefix("## ")
    engine, _, scenarios = heading.rpartition(": ")
    same = _picture(run) == _picture({"engine": engine})
    measured = {(f"{x:g}x", NAMES.get(s, s)) for x in _loads(run) for s in _systems(run)}
    shown = set(re.findall(r"^\| ([\d.]+x) \| ([^|]+) \|", text, flags=re.MULTILINE))
    return same and set(scenarios.split(", ")) <= set(_scenarios(run)) and shown <= measured


def _is_pictured(run: Mapping[str, Any], staying: Sequence[str]) -> bool:
    return any(f"]({_picture(run)})" in text for text in staying)


def section(run: Mapping[str, Any], *, pictured: bool = True) -> str:
    """What one run of `make overload` showed, in Markdown; the curve only if it was measured."""
    about = {k: v for k, v in run.items() if k not in {"runs", "checks"} and v not in ([], "")}
    lines = [
        f"## {run['engine']}: {', '.join(_scenarios(run))}",
        "",
        *(f"- {name}: {_said(value)}" for name, value in about.items()),
        "",
    ]
    if _loads(run):
        rows = [_row(run, system, load_x) for load_x in _loads(run) for system in _systems(run)]
        if pictured:
            lines += [f"![goodput against offered load]({_picture(run)})", ""]
        lines += [markdown(HEADINGS, rows), ""]
    checks = markdown(["what", "median", "least to greatest", "objective", ""], _checks(run))
    return "\n".join([*lines, checks, ""])


def curve(run: Mapping[str, Any]) -> str:
    """The picture: goodput against offered load, each system in parts of the best of all."""
    loads = _loads(run)
    best = max(_goodput(run, s, x)[0] for s in _systems(run) for x in loads)
    found = [
        Line(
            NAMES.get(system, system),
            loads,
            [_goodput(run, system, x)[0] / best for x in loads],
            spread=[
                (low / best, high / best)
                for _, low, high in (_goodput(run, system, x) for x in loads)
            ],
        )
        for system in _systems(run)
    ]
    ideal = Line("ideal", loads, [min(x, 1.0) for x in loads], quiet=True)
    return pictures.lines(
        f"Goodput under load: {run['engine']}",
        [ideal, *found],
        x="offered, in multiples of what the engine can do",
        y="goodput, of the best",
        log_x=True,
    )


def _of(run: Mapping[str, Any], system: str, load_x: float) -> list[Mapping[str, Any]]:
    return [
        r["figures"]
        for r in run["runs"]
        if (r["scenario"], r["system"], r["load_x"]) == ("curve", system, load_x)
    ]


def _systems(run: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(r["system"] for r in run["runs"] if r["scenario"] == "curve"))


def _loads(run: Mapping[str, Any]) -> list[float]:
    return sorted({r["load_x"] for r in run["runs"] if r["scenario"] == "curve"})


def _goodput(run: Mapping[str, Any], system: str, load_x: float) -> tuple[float, float, float]:
    values = [seen["goodput_tok_s"] for seen in _of(run, system, load_x)]
    return statistics.median(values), min(values), max(values)


def _row(run: Mapping[str, Any], system: str, load_x: float) -> list[str]:
    seen = _of(run, system, load_x)
    middle, low, high = _goodput(run, system, load_x)
    own_best = max(_goodput(run, system, x)[0] for x in _loads(run))
    return [
        f"{load_x:g}x",
        NAMES.get(system, system),
        _median([one["offered_rps"] for one in seen]),
        f"{middle:.0f} ({low:.0f} to {high:.0f})",
        f"{middle / own_best:.0%}" if own_best else "",
        " / ".join(_served([one["success"][size] for one in seen]) for size in seen[0]["success"]),
        _median([one["ttft_p50_s"] for one in seen]),
        _median([one["ttft_p99_s"] for one in seen]),
        _median([one["refusal_p99_ms"] for one in seen]),
        _median([one.get("clients_peak") for one in seen]),
        f"{sum(one['hung'] for one in seen)}",
    ]


def _checks(run: Mapping[str, Any]) -> list[list[str]]:
    words = {True: "held", False: "**missed**", None: ""}
    rows = []
    for verdict in run["checks"]:
        check, values = verdict["check"], verdict["values"]
        if values is None:
            continue
        bounds = [
            f"{sign} {check[name]:g}"
            for name, sign in (("least", ">="), ("most", "<="))
            if check[name] is not None
        ]
        middle, low, high = values
        rows.append([
            f"{check['scenario']}: {check['what']}",
            f"{middle:.3g} {check['unit']}".strip(),
            f"{low:.3g} to {high:.3g}",
            " and ".join(bounds),
            words[verdict["held"]],
        ])
    return rows


def _served(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.0%}" if known else "n/a"


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3g}" if known else ""


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _scenarios(run: Mapping[str, Any]) -> list[str]:
    found = dict.fromkeys(verdict["check"]["scenario"] for verdict in run["checks"])
    return [name for name in found if name != "every run"]


def _picture(run: Mapping[str, Any]) -> str:
    """Its path from the page: by engine, and by its GPU where that is a real one."""
    engine = str(run["engine"])
    gpu = re.search(r" on NVIDIA (\w+)", engine)
    return f"pictures/curve-{engine.split(' ', 1)[0]}{'-' + gpu[1].lower() if gpu else ''}.svg"


if __name__ == "__main__":
    sys.exit(main())
