"""
The report of a load test: a table, JSON, and a page of pictures, all from its logbook.

    python -m loadtest.page reports/loadtest/logbook.jsonl

Writes `report.json` and `index.html` beside the logbook.
"""

import argparse
import html
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest import logbook, objectives, pictures
from loadtest.figures import percentile
from loadtest.logbook import OUTCOMES, Entry, Logbook, Sample
from loadtest.objectives import Verdict, answered
from loadtest.pictures import Line
from loadtest.shapes import SHAPES

BINS = 60
GIB = 2.0**30
COLOURS = {
    "whole": "#1a7f37",
    "degraded": "#94d3a2",
    "told": "#bf8700",
    "left": "#8c959f",
    "failed": "#d1242f",
    "cut": "#a40e26",
    "hung": "#24292f",
}
"""Green is an answer, yellow was told, red should not be."""


def main() -> int:
    """Write the page of a logbook; 1 if an objective was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("logbook", type=Path)
    parser.add_argument("--objective", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    found = written(options.logbook, objectives.limits(options.objective))
    return 0 if all(verdict.held for verdict in found) else 1


def written(path: Path, changed: Mapping[str, float]) -> list[Verdict]:
    """
    Table, JSON and page of a logbook, beside it; gives the verdicts.

    Args:
        path: The logbook.
        changed: Other limits of objectives, by name.
    """
    book = logbook.read(path)
    found = objectives.verdicts(book, changed)
    rows = phase_rows(book)
    (path.parent / "report.json").write_text(
        json.dumps(_report(book, rows, found), indent=1) + "\n"
    )
    (path.parent / "index.html").write_text(_page(book, rows, found), encoding="utf-8")
    print(_text_table(rows))
    print()
    print(_text_table(verdict_rows(found)))
    print(f"\npage: {path.parent / 'index.html'}")
    return found


def phase_rows(book: Logbook) -> list[dict[str, Any]]:
    """What came of each phase; uploads and those who hung up have columns of their own."""
    seconds = float(book.about["seconds"])
    rows = []
    for phase in SHAPES[str(book.about["shape"])]:
        inside = [e for e in book.entries if e.phase == phase.name]
        asked = [e for e in inside if e.kind in objectives.ASKED]
        good = answered(asked)
        first_s = [e.first_token_s for e in good if e.first_token_s is not None]
        length_s = phase.share * seconds
        outcomes = Counter(e.outcome for e in inside)
        row: dict[str, Any] = {
            "phase": phase.name,
            "load": f"{phase.load_x:g}x",
            "asked a second": round(len(asked) / length_s, 2),
            "answered a second": round(len(good) / length_s, 2),
            "first token p50 s": _rounded(percentile(first_s, 0.5)),
            "first token p99 s": _rounded(percentile(first_s, 0.99)),
            "passages only": sum(e.degraded == "L3" for e in asked),
            "tries an ask": _rounded(_mean([float(len(e.tries)) for e in asked])),
            **{name: outcomes.get(name, 0) for name in OUTCOMES},
        }
        rows.append(row)
    return rows


def verdict_rows(found: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The objectives as rows of a table."""
    return [
        {
            "objective": v.objective.name,
            "what": v.objective.what,
            "value": "nothing to judge" if v.value is None else f"{v.value:.3g}",
            "limit": _limit(v),
            "": "held" if v.held else "MISSED",
        }
        for v in found
    ]


def _limit(verdict: Verdict) -> str:
    most, least = verdict.objective.most, verdict.objective.least
    return f"<= {most:g}" if least is None else f">= {least:g}"


def _report(
    book: Logbook, rows: Sequence[Mapping[str, Any]], found: Sequence[Verdict]
) -> dict[str, Any]:
    return {
        **book.about,
        "phases": list(rows),
        "objectives": [
            {"name": v.objective.name, "limit": _limit(v), "value": v.value, "held": v.held}
            for v in found
        ],
        "lost_documents": book.lost_documents,
        "samples": [asdict(sample) for sample in book.samples],
    }


def _page(book: Logbook, rows: Sequence[Mapping[str, Any]], found: Sequence[Verdict]) -> str:
    about = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in book.about.items()
    )
    drawn = "\n".join(f"<figure>{picture}</figure>" for picture in _pictures(book, rows))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Load test: {html.escape(str(book.about["shape"]))}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-size: 13px; margin: 1rem 0; }}
td, th {{ border-bottom: 1px solid #d0d7de; padding: 0.2rem 0.6rem; text-align: left; }}
figure {{ margin: 1.5rem 0; }} svg {{ max-width: 100%; height: auto; }}
</style>
<h1>Load test: {html.escape(str(book.about["shape"]))}</h1>
<h2>Objectives</h2>{_html_table(verdict_rows(found))}
<h2>Phases</h2>{_html_table(rows)}
<h2>Pictures</h2>{drawn}
<h2>Run</h2><table>{about}</table>
</html>
"""


def _pictures(book: Logbook, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """In the order in which a run is understood: what was asked, what came of it, and what it cost."""
    seconds = float(book.about["seconds"])
    width_s = max(seconds / BINS, 1.0)
    at_s = [n * width_s for n in range(round(seconds / width_s))]
    asked = [e for e in book.entries if e.kind != "upload"]
    lost = [e for e in asked if e.outcome in {"told", "failed", "cut"}]
    offered = [row["asked a second"] for row in rows]
    served = [row["answered a second"] for row in rows]
    top = max(offered, default=0.0)
    ranked = sorted(zip(offered, served, strict=True))
    return [
        pictures.stacked(
            "What came of what was asked, by when it was due",
            at_s,
            _binned(asked, lambda e: e.outcome, at_s, width_s, order=OUTCOMES),
            x="seconds",
            y=f"acts in {width_s:.3g} s",
            colours=COLOURS,
        ),
        pictures.lines(
            "Answered against asked",
            [
                Line("ideal", [0, top], [0, top], quiet=True),
                Line("this run", [o for o, _ in ranked], [s for _, s in ranked]),
            ],
            x="asked a second",
            y="answered a second",
        ),
        pictures.lines(
            "First token, from when it was due",
            [
                Line(f"p{share * 100:.0f}", at_s, _first_token(asked, share, at_s, width_s))
                for share in (0.5, 0.99)
            ],
            x="seconds",
            y="seconds",
        ),
        pictures.stacked(
            "Refusals and failures, by code",
            at_s,
            _binned(lost, _code, at_s, width_s),
            x="seconds",
            y=f"in {width_s:.3g} s",
        ),
        *_service(book.samples),
    ]


def _service(samples: Sequence[Sample]) -> list[str]:
    """What the service said of itself; series that it does not have are left out."""

    def drawn(title: str, unit: str, **pick: Callable[[Sample], float | None]) -> list[str]:
        xs = [sample.at_s for sample in samples]
        found = [Line(name, xs, [one(s) for s in samples]) for name, one in pick.items()]
        known = [line for line in found if any(y is not None for y in line.ys)]
        return [pictures.lines(title, known, x="seconds", y=unit)] if known else []

    def gib(sample: Sample) -> float | None:
        return None if sample.rss_bytes is None else sample.rss_bytes / GIB

    return [
        *drawn("People", "people", people=lambda s: s.people, open=lambda s: s.open),
        *drawn(
            "The gate", "questions", running=lambda s: s.running, queued=lambda s: s.queued
        ),
        *drawn("The engine's cache in use", "share", kv=lambda s: s.kv_usage),
        *drawn("Memory of the orchestrator and its children", "GiB", rss=gib),
        *drawn(
            "Threads, files and tasks of the orchestrator",
            "count",
            threads=lambda s: s.threads,
            files=lambda s: s.open_files,
            tasks=lambda s: s.tasks,
        ),
    ]  # fmt: skip


def _binned(
    entries: Iterable[Entry],
    kind: Callable[[Entry], str],
    at_s: Sequence[float],
    width_s: float,
    *,
    order: Sequence[str] = (),
) -> dict[str, list[float]]:
    counts: dict[str, list[float]] = {name: [0.0] * len(at_s) for name in order}
    for entry in entries:
        place = min(int(entry.at_s / width_s), len(at_s) - 1)
        counts.setdefault(kind(entry), [0.0] * len(at_s))[place] += 1
    return {name: heights for name, heights in counts.items() if any(heights)}


def _first_token(
    entries: Iterable[Entry], share: float, at_s: Sequence[float], width_s: float
) -> list[float | None]:
    bins: list[list[float]] = [[] for _ in at_s]
    for entry in entries:
        if entry.first_token_s is not None:
            bins[min(int(entry.at_s / width_s), len(at_s) - 1)].append(entry.first_token_s)
    return [percentile(values, share) for values in bins]


def _code(entry: Entry) -> str:
    last = entry.tries[-1] if entry.tries else None
    return (last.code or str(last.status)) if last else entry.outcome


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 2)


def _text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    names = list(rows[0])
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(names))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


if __name__ == "__main__":
    sys.exit(main())
