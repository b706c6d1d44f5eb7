"""What is documented exists, and what exists is documented."""

import re
from pathlib import Path

import pytest

from deploy.configuration_page import page
from deploy.licences_page import DUTIES, locked
from orchestrator import errors
from orchestrator.api.error_responses import STATUS
from orchestrator.telemetry.metrics import Metrics
from tests import pdfs
from tests.examples import PAGES, anchors, links

ROOT = Path(__file__).parents[2]
LEAVES = errors.leaves()


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_configuration_is_generated():
    """docs/configuration.md holds each setting exactly as the code defines it."""
    assert read("docs/configuration.md") == page(), "run `make docs`"


def test_the_licence_of_everything_that_is_locked_was_looked_at():
    """No lock names what the page does not, and no licence with duties goes by unseen."""
    lines = read("docs/licences.md").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line][2:]
    told = {name: (licence, duty) for name, licence, _, duty in rows}
    names = {name for lock in locked().values() for name in lock}
    assert names - told.keys() == set(), "run `make licences`"
    unseen = {n for n, (licence, duty) in told.items() if DUTIES.search(licence) and not duty}
    assert {name for name in unseen if not name.startswith("nvidia-")} == set()


@pytest.mark.parametrize("error", LEAVES, ids=lambda e: e.__name__)
def test_every_error_has_a_status_and_a_runbook_line(error):
    """No error leaves the service that an operator cannot look up."""
    status = int(STATUS[error][0])
    line = next(
        (ln for ln in read("docs/operations.md").splitlines() if f"`{error.code}`" in ln), ""
    )
    assert f" {status}" in line


@pytest.mark.parametrize("first", ["Tidegate", "internal_error"])
def test_every_runbook_line_says_what_to_do(first):
    """No cell of a row about an alarm or an error is empty."""
    table = next(t for t in read("docs/operations.md").split("\n\n") if f"\n| `{first}" in t)
    for row in table.splitlines()[2:]:
        assert all(cell.strip() for cell in row.strip("|").split(" | ")), row


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    """To a file of the checkout, and to a heading that is there; what others publish is not looked up."""
    for link in links(page):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


def test_error_codes_are_unique():
    """One code, one meaning."""
    codes = [error.code for error in LEAVES]
    assert len(codes) == len(set(codes))


def test_every_series_is_documented():
    """What /metrics shows is explained."""
    text = read("docs/operations.md")
    families = [family.name for family in Metrics().registry.collect()]
    gauges = re.findall(r'gauge\(\s*"(\w+)"', read("orchestrator/status.py"))
    assert gauges
    for name in (*families, *gauges):
        assert name in text, name


def test_every_module_is_on_the_map():
    """ARCHITECTURE.md names each module of both programs, and none that is gone."""
    text = read("ARCHITECTURE.md")
    assert len(text.splitlines()) <= 150
    for program in ("orchestrator", "model_server"):
        folder = ROOT / program
        modules = {
            str(p.relative_to(folder)) for p in folder.rglob("*.py") if p.name != "__init__.py"
        }
        for module in modules:
            assert f"`{module}`" in text, module
    mapped = set(re.findall(r"`([a-z_/]+\.py)`", text))
    existing = {
        str(p.relative_to(ROOT / program))
        for program in ("orchestrator", "model_server")
        for p in (ROOT / program).rglob("*.py")
    }
    assert mapped <= existing


def test_every_route_is_documented():
    """docs/api.md and docs/operations.md name every route."""
    text = read("docs/api.md") + read("docs/operations.md")
    sources = "".join(p.read_text() for p in (ROOT / "orchestrator" / "api").glob("*.py"))
    routes = set(re.findall(r'add_api_route\(\s*"([^"]+)"', sources)) - {"/"}
    assert len(routes) >= 8
    for route in routes:
        assert route.split("{")[0].rstrip("/") in text, route


def test_every_make_that_is_told_exists():
    """A message that names a command names one that there is."""
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = {
        word: str(source.relative_to(ROOT))
        for folder in ("orchestrator", "model_server", "deploy", "loadtest")
        for source in (ROOT / folder).rglob("*.py")
        for word in re.findall(r"`make ([a-z-]+)", source.read_text())
    }
    assert told
    assert {word: where for word, where in told.items() if word not in there} == {}


def test_every_dependency_has_a_reason():
    """README.md says why each direct dependency is there."""
    text = read("README.md")
    listed = re.search(r"dependencies = \[(.*?)\]", read("pyproject.toml"), re.DOTALL)
    assert listed is not None
    for name in re.findall(r'"([a-z0-9-]+)', listed.group(1)):
        assert name in text.lower(), name


def test_the_sample_is_what_the_code_makes():
    """The committed PDF is the generated one, byte for byte."""
    assert (ROOT / "docs" / "samples" / "handbook.pdf").read_bytes() == pdfs.handbook()
