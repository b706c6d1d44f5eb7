"""The alarms and the dashboard speak of series that exist, and each alarm has its line in the runbook."""

import re
from pathlib import Path

import pytest
import yaml

from deploy import grafana_dashboard
from loadtest.chaos_plugs import PLUGS
from loadtest.prometheus import hurried
from model_server.lifecycle import State
from orchestrator import errors
from orchestrator.telemetry.metrics import Metrics
from tests.unit.model_server.figures import FIGURES, PREFIX, samples

ROOT = Path(__file__).parents[2]
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())[
        "groups"
    ]
    for rule in group["rules"]
]
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()


def test_there_is_an_alarm_for_what_an_operator_has_to_do():
    """Memory, an engine that ends, is down, or given up, and a plan that does not hold."""
    assert {rule["alert"] for rule in RULES} == set(
        re.findall(r"^\| `(Tidegate\w+)`", RUNBOOK, re.MULTILINE)
    )
    assert len(RULES) >= 5


def exposed():
    """Every series that the two programs show, by its whole name."""
    families = Metrics().registry.collect()
    ours = {sample for family in families for sample in _samples(family)}
    gauges = set(
        re.findall(r'gauge\(\s*"(\w+)"', (ROOT / "orchestrator" / "status.py").read_text())
    )
    return (
        ours | gauges | {"tidegate_breaker_state"} | {PREFIX + key[0] for key in samples(FIGURES)}
    )


def _samples(family):
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return [family.name + ending for ending in endings.get(family.type, [""])]


def named(query):
    """The series that a query reads."""
    return set(re.findall(r"\btidegate_\w+", query))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alarm_watches_series_that_exist(rule):
    """A renamed series would never raise it again, and nobody would be told."""
    assert named(rule["expr"])
    assert named(rule["expr"]) <= exposed()


def test_the_dashboard_is_what_the_code_makes():
    """The file that people import is the one that is tested."""
    assert grafana_dashboard.DASHBOARD.read_text() == grafana_dashboard.page(), "run `make docs`"


PANELS = [panel for row in grafana_dashboard.ROWS.values() for panel in row]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_draws_series_that_exist(panel):
    """A renamed series would leave it empty; a histogram is drawn from its buckets, a counter by its rate."""
    for query in panel.queries.values():
        assert named(query)
        assert named(query) <= exposed()
        counters = re.findall(r"tidegate_\w+_(?:total|bucket)", query)
        assert len(re.findall(r"(?:rate|increase)\(tidegate", query)) == len(counters)


def test_nothing_lies_over_anything_on_the_dashboard():
    """Each panel has a place and a number of its own."""
    panels = grafana_dashboard.dashboard()["panels"]
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels]
    assert len(set(places)) == len(panels) == len({p["id"] for p in panels})


def test_codes_that_alarms_name_are_codes():
    """An alarm on an error that nobody raises any more would be silent for ever."""
    codes = {error.code for error in errors.leaves()}
    for rule in RULES:
        for matched in re.findall(r'code=~?"([^"]+)"', rule["expr"]):
            assert set(matched.split("|")) <= codes


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


FIRING = yaml.safe_load((ROOT / "tests" / "alerts" / "firing.yaml").read_text())["tests"]


def test_each_alarm_is_raised_by_what_promtool_plays():
    """In `tests/alerts/firing.yaml`: for somebody, not for nobody."""
    raised = {
        case["alertname"]
        for group in FIRING
        for case in group["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert raised == {rule["alert"] for rule in RULES}


def test_each_alarm_has_a_plug_that_raises_it():
    """In `make chaos`; but for bugs: that one is raised in `make chaos-red`, where errors of the disk escape."""
    raised = {alarm for plug in PLUGS for alarm in plug.alarms}
    assert raised == {rule["alert"] for rule in RULES} - {"TidegateBug"}


@pytest.mark.parametrize(
    ("promql", "short"),
    [
        ("increase(a_total[30m]) > 2.5", "increase(a_total[30s]) > 2.5"),
        ("max_over_time(b[1h]) unless b offset 15m", "max_over_time(b[60s]) unless b offset 15s"),
        ("20m", "20s"),
        ('c{le="5"} > 2', 'c{le="5"} > 2'),
    ],
)
def test_a_hurried_alarm_has_seconds_for_minutes(promql, short):
    """And nothing else of it is changed."""
    assert hurried(promql) == short
