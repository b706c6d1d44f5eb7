"""
Writes deploy/grafana/tidegate.json, the dashboard of both programs: what `make docs` runs.

A test compares the file with what this makes, and holds every query against the series that exist.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).resolve().parent / "grafana" / "tidegate.json"
DATASOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS, WIDTH, HEIGHT = 2, 12, 8
ASKED = 'route=~"/ask|/v1/chat/completions"'


@dataclass(frozen=True, slots=True)
class Panel:
    """
    One picture.

    Attributes:
        what: Said under the title: what to think of it.
        queries: PromQL by legend.
        unit: Grafana's name of it.
        stacked: Whether the lines are summed.
    """

    title: str
    what: str
    queries: Mapping[str, str]
    unit: str = "short"
    stacked: bool = False


def _quantiles(series: str, *, by: str = "") -> dict[str, str]:
    """Median and 99th percentile of a histogram, over five minutes."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    return {
        f"p{share * 100:.0f}{legend}": f"histogram_quantile({share}, sum by ({labels}) (rate({series}_bucket[5m])))"
        for share in (0.5, 0.99)
    }


ROWS: Mapping[str, Sequence[Panel]] = {
    "What people get": (
        Panel(
            "Questions by outcome",
            "A second. `ok` is an answer; the other codes have a line each in docs/operations.md.",
            {"{{code}}": f"sum by (code) (rate(tidegate_requests_total{{{ASKED}}}[1m]))"},
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "First token",
            "From a question's arrival. Past ten seconds people leave.",
            _quantiles("tidegate_first_token_seconds"),
            unit="s",
        ),
        Panel(
            "Lesser answers by level",
            "A second. L1 fewer passages, or found by words; L2 another engine; L3 passages alone.",
            {"{{level}}": "sum by (level) (rate(tidegate_degraded_answers_total[1m]))"},
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Answers' tokens",
            "A second, of finished answers: what all this is for.",
            {"completion tokens": "sum(rate(tidegate_completion_tokens_total[1m]))"},
        ),
    ),
    "The gate": (
        Panel(
            "Questions with the engine, and waiting",
            "Waiting for long while few are with the engine: look at the limits below.",
            {
                "with the engine": "tidegate_requests_running",
                "may be there": "tidegate_capacity_requests",
                "waiting": "tidegate_requests_queued",
                "waiting for a sleeping engine": "tidegate_requests_waiting_for_wake",
            },
        ),
        Panel(
            "Wait at the gate",
            "Of those who were let in, and what is foretold to the next.",
            {
                **_quantiles("tidegate_queue_seconds"),
                "foretold": "tidegate_predicted_wait_seconds",
            },
            unit="s",
        ),
        Panel(
            "Tokens of the engine's cache",
            "Reserved, and what may be reserved.",
            {
                "reserved": "tidegate_reserved_kv_tokens",
                "may be": "tidegate_capacity_kv_tokens",
            },
        ),
        Panel(
            "Correction, brownout, blind",
            "Correction below 0.5 for minutes: the engine is smaller than its settings say, or shared. Blind: its metrics are missing or old.",
            {
                "correction": "tidegate_capacity_correction",
                "brownout": "tidegate_brownout",
                "blind": "tidegate_engine_metrics_stale",
            },
        ),
    ),
    "What it depends on": (
        Panel(
            "Breakers",
            "0 closed, 1 half open, 2 open.",
            {"{{name}}": "tidegate_breaker_state"},
        ),
        Panel(
            "Further attempts at the engine",
            "A second, by the failure that caused them.",
            {"{{code}}": "sum by (code) (rate(tidegate_engine_retries_total[1m]))"},
            unit="reqps",
        ),
        Panel(
            "The engine's state",
            "As model_server has it.",
            {"{{state}}": "tidegate_model_server_engine_state"},
            stacked=True,
        ),
        Panel(
            "Starts of the engine",
            "In an hour: ended unasked, hung, woken.",
            {
                "ended unasked": "increase(tidegate_model_server_engine_restarts_total[1h])",
                "hung": "increase(tidegate_model_server_engine_hangs_total[1h])",
                "woken": "increase(tidegate_model_server_engine_wakes_total[1h])",
            },
        ),
    ),
    "Memory": (
        Panel(
            "The engine's device",
            "What the engine holds, what is free, and what the plan leaves to others.",
            {
                "engine": "tidegate_model_server_engine_memory_bytes",
                "free": "tidegate_model_server_device_free_bytes",
                "reserve": "tidegate_model_server_planned_reserve_bytes",
            },
            unit="bytes",
        ),
        Panel(
            "Pressure",
            "0 none, 1 high, 2 critical: the next burst may kill the engine.",
            {"pressure": "tidegate_model_server_memory_pressure"},
        ),
        Panel(
            "Orchestrator, parsers and embedder",
            "Flat, but for documents being read.",
            {"resident": "tidegate_resident_memory_bytes"},
            unit="bytes",
        ),
        Panel(
            "KV cache against its plan",
            "Reported over planned, less 1.",
            {"deviation": "tidegate_model_server_kv_cache_deviation_ratio"},
            unit="percentunit",
        ),
    ),
    "Inside": (
        Panel(
            "Retrieval",
            "Of a question's passages.",
            _quantiles("tidegate_retrieve_seconds"),
            unit="s",
        ),
        Panel(
            "Waits for a bounded room",
            "Threads, lanes of the embedder, the reranker: p99 above a second is a queue.",
            _quantiles("tidegate_bulkhead_wait_seconds", by="bulkhead"),
            unit="s",
        ),
        Panel(
            "Event loop",
            "How late it wakes. Above 0.25 s something blocks it, and the log says what.",
            _quantiles("tidegate_event_loop_lag_seconds"),
            unit="s",
        ),
        Panel(
            "Documents",
            "Waiting now; and in an hour those that left ingestion, by outcome.",
            {
                "waiting": "tidegate_documents_waiting",
                "{{code}}": "sum by (code) (increase(tidegate_documents_ingested_total[1h]))",
            },
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({
            "type": "row", "title": title, "collapsed": False, "panels": [],
            "id": len(panels) + 1, "gridPos": {"h": 1, "w": COLUMNS * WIDTH, "x": 0, "y": y},
        })  # fmt: skip
        y += 1
        for n, panel in enumerate(row):
            place = {"h": HEIGHT, "w": WIDTH, "x": n % COLUMNS * WIDTH, "y": y}
            panels.append(_panel(panel, number=len(panels) + 1, place=place))
            if n % COLUMNS == COLUMNS - 1 or n == len(row) - 1:
                y += HEIGHT
    return {
        "title": "Tidegate",
        "uid": "tidegate",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "source",
                    "type": "datasource",
                    "query": "prometheus",
                    "label": "Prometheus",
                }
            ]
        },
        "panels": panels,
    }


def page() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _panel(panel: Panel, *, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 40} if panel.stacked else {}
    return {
        "type": "timeseries",
        "id": number,
        "title": panel.title,
        "description": panel.what,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "targets": [
            {"datasource": DATASOURCE, "refId": chr(ord("A") + n), "expr": expr, "legendFormat": name}
            for n, (name, expr) in enumerate(panel.queries.items())
        ],
    }  # fmt: skip


if __name__ == "__main__":
    DASHBOARD.parent.mkdir(exist_ok=True)
    DASHBOARD.write_text(page())
    print(DASHBOARD)
