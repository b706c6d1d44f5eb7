"""The examples of the documentation that need no model, run as they stand there; and those that are not run."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.examples import (
    PAGES,
    ROOT,
    RUN,
    WITH_SCRIPT,
    Block,
    Example,
    Terminal,
    blocks,
    examples,
    unknown,
)
from tests.fake_engine import MODEL, FakeEngine, serving
from tests.running import orchestrator


@pytest.mark.parametrize("page", WITH_SCRIPT)
def test_examples_do_what_the_page_says(page, tmp_path):
    """Each block ends well, one after the other, and prints what is shown below it."""
    data_dir = tmp_path / "data"
    with (
        serving(FakeEngine()) as engine,
        orchestrator(
            data_dir,
            engine.url,
            wait_for=("engine", "embedder"),
            embedder_url=engine.url,
            embedder_served_model="all-MiniLM-L6-v2",
            ocr="false",
        ) as running,
    ):
        said = {"http://127.0.0.1:8080": running.url, "smollm2-135m-instruct": MODEL}
        terminal = Terminal(tmp_path / "home", said, data_dir=data_dir)
        for example in examples(page):
            terminal.run(example)


def test_every_route_has_an_example(http):
    """docs/api.md asks each of them, by each of its methods, with curl."""
    asked = {
        (method_of(command), path)
        for example in examples("docs/api.md")
        for command in example.block.commands
        for path in re.findall(r"http://127\.0\.0\.1:8080(/[^\s\"'?]*)", command)
    }
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        for method in methods:
            assert [a for m, a in asked if m == method.upper() and re.fullmatch(pattern, a)], path


def method_of(command):
    """As curl chooses it."""
    named = re.search(r"-X ([A-Z]+)", command)
    if named:
        return named.group(1)
    return "POST" if re.search(r" -[Fd] ", command) else "GET"


class TestTerminal:
    """What runs the examples notices when they are wrong."""

    @pytest.fixture
    def run(self, fake_engine, tmp_path):
        said = {"http://127.0.0.1:8080": fake_engine.url}
        terminal = Terminal(tmp_path / "home", said, data_dir=tmp_path)

        def run(text, language="sh", shown=None):
            block = Block("page.md", 1, language, text, 1)
            below = Block("page.md", 5, "text", shown, 1) if shown else None
            return terminal.run(Example(block, below))

        return run

    @pytest.mark.parametrize(
        ("text", "language"),
        [
            ("false\ntrue", "sh"),
            ("false | true", "sh"),
            ("echo $NOBODY_SET_THIS", "sh"),
            ("$ false\n$ true", "console"),
            ("curl http://127.0.0.1:8080/nothing", "sh"),
            ("import nothing_of_this_name", "python"),
        ],
    )
    def test_what_fails_is_told(self, run, text, language):
        """Also in the middle, in a pipe, by a name that is not set, and by an error's status."""
        with pytest.raises(AssertionError, match=r"page\.md:1"):
            run(text, language)

    def test_another_output_is_told(self, run):
        """With the place of what is shown."""
        run("echo one two", shown="one …")
        with pytest.raises(AssertionError, match=r"page\.md:5"):
            run("echo one two", shown="two …")

    def test_what_is_set_stays_set(self, run):
        """In the blocks below it, those of Python too."""
        run("WORD='two words'")
        assert run("echo $WORD") == "two words\n"
        assert run("import os; print(os.environ['WORD'])", "python") == "two words\n"

    def test_nothing_of_this_machine_is_there(self, run):
        """A home of its own, and none of the settings of whoever runs the tests."""
        assert "home" in run("echo $HOME")
        assert run("env | grep -c ^ORCHESTRATOR_ || true") == "0\n"


EXCUSED = [
    block for page in PAGES for block in blocks(page) if block.language in RUN and block.is_excused
]


@pytest.mark.parametrize("block", EXCUSED, ids=lambda block: block.place)
def test_what_is_not_run_could_be(block):
    """Each target of make can be made, programs know the options, and variables are read."""
    for words in (shlex.split(command, comments=True) for command in block.commands):
        if words[0] == ".venv/bin/locust":
            assert not unknown_to_locust(words[1:])
            continue
        assert not unknown(words)
        if words[0] == "make":
            # Not what the make that runs this test was told.
            environment = {n: v for n, v in os.environ.items() if not n.startswith("MAKE")}
            dry = ["make", "--dry-run", "--directory", str(ROOT), *words[1:]]
            subprocess.run(dry, env=environment, check=True, capture_output=True)


def unknown_to_locust(arguments):
    """Its options that do not exist, and files that are not there."""
    told = subprocess.run(
        [sys.executable, "-m", "locust", "--help"], check=True, capture_output=True, text=True
    ).stdout
    options = {a for a in arguments if a.startswith("-") and a not in told}
    return options | {a for a in arguments if a.endswith(".py") and not (ROOT / a).is_file()}
