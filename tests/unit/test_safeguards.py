"""`make safeguards` and the page for operators speak of the same ten."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.safeguards import ROOT, SAFEGUARDS
from tests.without import OF_CHAOS, OF_MODEL_SERVER, PATCHES


def table() -> dict[str, str]:
    """Safeguard -> test, as docs/operations.md has it."""
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.partition("\n## Safeguards\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()]
    return {row[0]: row[-1].strip("`") for row in rows if len(row) == 4 and "`" in row[-1]}


def test_the_page_lists_the_ten():
    """Each safeguard is documented with the test that proves it."""
    shown = {}
    for safeguard in SAFEGUARDS:
        path, *_, test = safeguard.test.split("::")
        shown[safeguard.name] = f"{Path(path).name}::{test.partition('[')[0]}"
    assert len(shown) == 10
    assert table() == shown


def test_each_can_be_taken_out():
    """There is a patch for every name, and none that nobody uses."""
    assert set(PATCHES) == {s.name for s in SAFEGUARDS}


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda s: s.name)
def test_its_test_exists(safeguard):
    """The named test is there, in the named class, and says what it is expected to say."""
    path, *names = safeguard.test.split("::")
    text = (ROOT / path).read_text()
    for name in names:
        assert re.search(rf"(class|def) {re.escape(name.partition('[')[0])}\b", text), name


def test_what_takes_a_safeguard_out_is_called_as_what_was_there():
    """Else its test would fail for another reason, or an error of ours would hide that nobody noticed."""
    assert PATCHES.items() <= OF_CHAOS.items()
    assert OF_MODEL_SERVER
    take_all_out = (
        "from tests.without import OF_CHAOS, OF_MODEL_SERVER\n"
        "for take_out in (*OF_CHAOS.values(), *OF_MODEL_SERVER.values()): take_out()"
    )
    environment = {**os.environ, "ORCHESTRATOR_DATA_DIR": "nowhere"}
    subprocess.run([sys.executable, "-c", take_all_out], cwd=ROOT, env=environment, check=True)
