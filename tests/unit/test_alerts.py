"""The alarms speak of series that exist, and each has its line in the runbook."""

import re
from pathlib import Path

import pytest
import yaml

from model_server.lifecycle import State
from tests.unit.model_server.figures import FIGURES, PREFIX, samples

ROOT = Path(__file__).parents[2]
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()


def test_there_is_an_alarm_for_what_an_operator_has_to_do():
    """Memory, an engine that ends, is down, or given up, and a plan that does not hold."""
    assert {rule["alert"] for rule in RULES} == set(
        re.findall(r"^\| `(Tidegate\w+)`", RUNBOOK, re.MULTILINE)
    )
    assert len(RULES) >= 5


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alarm_watches_series_that_exist(rule):
    """A renamed series would never raise it again, and nobody would be told."""
    named = set(re.findall(rf"{PREFIX}(\w+)", rule["expr"]))
    assert named
    assert named <= {key[0] for key in samples(FIGURES)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alarm_says_where_to_look(rule):
    """A summary with the instance, a severity, and a heading that is there."""
    assert "$labels.instance" in rule["annotations"]["summary"]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    path, _, heading = rule["annotations"]["runbook"].partition("#")
    assert f"# {heading}\n" in (ROOT / path).read_text().lower()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_engine_that_sleeps_is_no_alarm(rule):
    """Nor one that is stopped on demand; and a state that an alarm names is one."""
    for matched in re.findall(r'state=~?"([^"]+)"', rule["expr"]):
        states = set(matched.split("|"))
        assert states <= set(State) - {"sleeping", "stopped", "stopping", "ready"}
