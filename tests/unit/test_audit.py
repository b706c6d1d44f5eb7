"""What the audit makes of what its tools say, and the licence page of what packages say."""

import pytest

from deploy.audit import code_is_sound, locks_are_sound
from deploy.licences_page import UNSTATED, stated


@pytest.fixture
def tools(tmp_path):
    """A folder of tools that say and do what they are told."""

    def tool(name, *, says="", code=0):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {code}\n")
        path.chmod(0o755)
        return tmp_path

    return tool


@pytest.mark.parametrize(("code", "sound"), [(0, True), (1, False), (2, False)])
def test_what_bandit_finds_is_a_failure(tools, code, sound):
    """So is a bandit that could not look."""
    assert code_is_sound(tools("bandit", code=code)) is sound


@pytest.mark.parametrize(
    ("says", "code", "sound", "told"),
    [
        ("No known vulnerabilities found", 0, True, "looked up"),
        ("starlette 0.40.0 GHSA-2c2j-9gv5-cj73 0.47.2", 1, False, "GHSA-2c2j"),
        ("ConnectionError: Failed to resolve 'pypi.org'", 1, True, "cannot be reached"),
        ("x could not be audited\n" * 1000, 0, True, "cannot be reached"),
    ],
)
def test_advisories_that_cannot_be_reached_are_told_and_no_failure(
    tools, capsys, says, code, sound, told
):
    """But one that is there is; what could be asked is said, so that silence is no clean bill."""
    assert locks_are_sound(tools("pip-audit", says=says, code=code), "app.txt") is sound
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metadata", "classifiers", "words"),
    [
        ({"license_expression": "MIT", "license": "x"}, ["License :: OSI Approved :: BSD"], "MIT"),
        ({}, ["License :: OSI Approved :: BSD License", "Topic :: x"], "BSD License"),
        ({"license": "Apache 2.0\nand its whole text"}, ["License :: OSI Approved"], "Apache 2.0"),
        ({}, [], UNSTATED),
    ],
)
def test_a_licence_is_what_its_author_states(metadata, classifiers, words):
    """The expression first, then the classifiers, then the first line of the text."""
    assert stated(metadata, classifiers) == words
