"""The examples of the documentation that need no model, run as they stand there; and those that are not run."""

import os
import shlex
import subprocess
import sys

import pytest

from tests.examples import (
    PAGES,
    ROOT,
    RUN,
    WITH_SCRIPT,
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
        orchestrator(data_dir, engine.url, embedder_url=engine.url, ocr="false") as running,
    ):
        said = {"http://127.0.0.1:8080": running.url, "smollm2-135m-instruct": MODEL}
        terminal = Terminal(tmp_path / "home", said, data_dir=data_dir)
        for example in examples(page):
            terminal.run(example)


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
