"""No example of the documentation is left untried, and what its sentences name exists."""

import json
import shlex

import pytest
import yaml

from tests.examples import (
    EXCUSED,
    PAGES,
    RUN,
    SHOWN,
    WITH_MODEL,
    WITH_SCRIPT,
    Block,
    blocks,
    difference,
    examples,
    named,
    unknown,
    unlike,
)

ALL = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in ALL if block.language in RUN]
EXCUSES = [block for block in COMMANDS if block.is_excused]
HISTORY = ("CHANGELOG.md", "docs/decisions/")
"""What was written down once, and is not kept up."""


def by_place(block):
    return block.place


def test_examples_are_found():
    """The reader of the pages reads them."""
    found = {block.page for block in COMMANDS}
    assert found >= {"README.md", "CONTRIBUTING.md", "loadtest/README.md", "docs/api.md"}
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("block", ALL, ids=by_place)
def test_every_block_says_what_it_is(block):
    """In a language that nobody tries, or in none, an example could stand that does not work."""
    assert block.language in RUN | SHOWN | {"yaml", "jsonc"}


@pytest.mark.parametrize("block", COMMANDS, ids=by_place)
def test_every_example_is_run_or_excused(block):
    """Its page is one of those that a test runs, or it is excused by its first command."""
    assert block.is_excused or block.page in WITH_MODEL + WITH_SCRIPT


def test_every_excuse_has_its_example():
    """One each, with a reason in words; what is gone needs none."""
    assert sorted(EXCUSED) == sorted((block.page, block.first_command) for block in EXCUSES)
    assert all(len(reason.split()) >= 5 for reason in EXCUSED.values())


@pytest.mark.parametrize("page", WITH_MODEL + WITH_SCRIPT)
def test_pages_that_are_run_have_something_to_run(page):
    """A page that lost its examples would be tested for nothing."""
    assert examples(page)


@pytest.mark.parametrize("block", [b for b in ALL if b.language in {"json", "yaml"}], ids=by_place)
def test_data_can_be_read(block):
    """JSON is JSON, and YAML is YAML."""
    assert (json.loads if block.language == "json" else yaml.safe_load)(block.text)


def test_every_answer_is_held_against_a_real_one():
    """JSON stands below the command that prints it."""
    held = [example.shown for page in PAGES for example in examples(page)]
    assert [block for block in ALL if block.language == "json" and block not in held] == []


@pytest.mark.parametrize("page", [p for p in PAGES if not p.startswith(HISTORY)])
def test_what_sentences_name_exists(page):
    """Make's targets and variables, the commands of `tidegate`, modules, and their options."""
    assert [(words, wrong) for words in named(page) if (wrong := unknown(words))] == []


@pytest.mark.parametrize(
    "command",
    [
        "make everything",
        "make run MODLE=x",
        "tidegate aks",
        "tidegate keys create ann --adimn",
        "python -m loadtest.overlaod",
        "python -m loadtest.overload --senario curve",
        "python -m model_server paln",
        "docker compose up",
    ],
)
def test_what_does_not_exist_is_found(command):
    """A typing error in a target, a variable, a command, an option or a module; and what is not known here."""
    assert unknown(shlex.split(command))


def block(language, text):
    return Block("page.md", 1, language, text, 1)


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": {"b": 1}}, {"a": {"c": 1}}),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1}, {"c": 1}]}),
        ({"a": "1"}, {"a": 1}),
        ({"a": True}, {"a": 1}),
        ({"a": []}, {"a": [1]}),
        ({"a": []}, {"a": {}}),
    ],
)
def test_another_answer_is_told(shown, real):
    """A field more, one less, one deeper, one in a later element of a list; another kind of value."""
    assert unlike(shown, real)


def test_values_and_what_may_be_missing_are_free():
    """An answer has the fields that are shown, not the same words and numbers."""
    shown = {"a": [{"n": 1, "s": "x", "error": None}], "b": {"c": 0.5}}
    assert not unlike(shown, {"a": [{"n": 2.5, "s": "", "error": {"e": 1}}], "b": None})


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("ready", "ready\n", True),
        ("ready", "not ready", False),
        ("a  b", "a\nb", True),
        ("a …\nd", "a b c d", True),
        ("…\n[1] x.pdf, page …", "Words [1].\n\n[1] x.pdf, page 3\n", True),
        ("a.c", "abc", False),
        ("a", "a b", False),
    ],
)
def test_text_is_held_word_by_word(shown, printed, same):
    """But for white space, and for what `…` stands for."""
    assert (difference(block("text", shown), printed) == "") is same


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("make run\n", "make run\n"),
        ("$ echo a   # a comment\na\n$ echo b\nb\n", "echo a   # a comment\necho b"),
    ],
)
def test_a_console_has_prompts_or_only_commands(text, script):
    """What was printed is not run."""
    assert block("console", text).script == script
