"""A short `make chaos`: one plug, on the simulator, with a Prometheus beside it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
def test_a_plug_is_pulled_and_every_promise_held(tmp_path):
    """The engine is killed under load: whoever is not answered is told, and it serves again."""
    command = [sys.executable, "-m", "loadtest.chaos", "--plugs", "engine killed"]
    ran = subprocess.run(
        [*command, "--out", str(tmp_path / "chaos.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "chaos.json").read_text())
    (seen,) = report["plugs"]
    assert seen["broken"] == []
    assert seen["outcomes"]["good"] > 50
    if report["watched"]:
        # What counts something begins with the first of it.
        empty = " ".join(report["panels without data"])
        assert not set(re.findall(r"tidegate_\w+", empty)) - {
            "tidegate_engine_retries_total",
            "tidegate_degraded_answers_total",
        }


def test_a_plug_that_there_is_not_is_named():
    """A misspelt plug is no green run."""
    ran = subprocess.run(
        [sys.executable, "-m", "loadtest.chaos", "--plugs", "enigne killed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "no such plug: enigne killed; there are engine killed" in ran.stderr
