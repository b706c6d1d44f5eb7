"""Locust's people on the real orchestrator, with the simulator as its engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest import logbook

ROOT = Path(__file__).parents[2]


def python_m(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.timeout(180)
def test_a_load_test_starts_what_it_needs_and_judges_it(tmp_path):
    """One command: a service, people of every kind, a table and a page; then a limit that is missed."""
    ran = python_m(
        "loadtest.people_run",
        *("--engine", "simulator", "--shape", "attack", "--minutes", "0.25", "--users", "60"),
        *("--think-s", "3", "--out", str(tmp_path)),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = tmp_path.glob("*/logbook.jsonl")
    book = logbook.read(path)
    assert {e.kind for e in book.entries} >= {"stream", "ask", "openai", "leave", "attack"}
    assert all(e.outcome in {"whole", "degraded", "told", "left"} for e in book.entries)
    assert sum(e.outcome == "whole" for e in book.entries) > 30
    assert book.samples[-1].running == book.samples[-1].open == 0
    assert (path.parent / "index.html").exists()
    again = python_m("loadtest.page", str(path), "--objective", "first_token_s=0.0001")
    assert again.returncode == 1
    assert "MISSED" in again.stdout


def test_a_trace_is_played_when_it_was(engine, shared_orchestrator, handbook, tmp_path):
    """Ten times as fast, and as far as the run is long; nobody else asks meanwhile."""
    assert engine.url
    assert handbook
    rows = [
        {"at_s": at_s, "output_tokens": 8, "session": session, "passages": [1]}
        for at_s, session in ((0, "a"), (10, "b"), (12, "a"), (20, "c"), (500, "late"))
    ]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(map(json.dumps, rows)))
    ran = python_m(
        *("locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary"),
        *("--host", shared_orchestrator.url, "--users", "5", "--run-time", "4s"),
        *("--trace", str(trace), "--speed", "10", "--logbook", str(tmp_path / "book.jsonl")),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    book = logbook.read(tmp_path / "book.jsonl")
    assert [round(entry.at_s, 1) for entry in book.entries] == [0.0, 1.0, 1.2, 2.0]
    assert {entry.outcome for entry in book.entries} == {"whole"}
