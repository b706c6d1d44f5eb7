"""A real Prometheus takes the alarms, and raises each for what it is meant for."""

import subprocess
from pathlib import Path

import pytest

from loadtest.prometheus import HOW_TO_GET, RULES, hurried_rules, program

FIRING = Path(__file__).parents[1] / "alerts" / "firing.yaml"


def promtool(*arguments):
    """Its exit code, and what it said."""
    binary = program("promtool")
    if binary is None:
        pytest.skip(HOW_TO_GET)
    ran = subprocess.run(
        [str(binary), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_it_takes_the_rules():
    """As a Prometheus does when it starts."""
    code, said = promtool("check", "rules", RULES)
    assert code == 0, said
    assert "14 rules found" in said


def test_it_takes_them_hurried(tmp_path):
    """Minutes that were made seconds are still a file of rules."""
    (tmp_path / "alerts.yaml").write_text(hurried_rules())
    code, said = promtool("check", "rules", tmp_path / "alerts.yaml")
    assert code == 0, said


def test_each_is_raised_for_what_it_is_meant_for_and_not_before():
    """By its own clock: after the minutes that it wants, for those it is meant for alone."""
    code, said = promtool("test", "rules", FIRING)
    assert code == 0, said


def test_a_rule_that_would_never_be_raised_is_noticed(tmp_path):
    """The same with an expression that asks for too much."""
    (tmp_path / "alerts.yaml").write_text(
        RULES.read_text().replace("tidegate_breaker_state == 2", "tidegate_breaker_state == 3")
    )
    text = FIRING.read_text().replace("../../deploy/prometheus/alerts.yaml", "alerts.yaml")
    (tmp_path / "firing.yaml").write_text(text)
    code, said = promtool("test", "rules", tmp_path / "firing.yaml")
    assert code == 1
    assert "TidegateBreakerOpen" in said
