"""
The examples in the documentation, and a terminal to try them in.

`PAGES` are all Markdown files that hold examples. Each fenced block of a shell or of Python in them
is run by a test: with the real vLLM where an answer matters (`tests/contract/test_examples.py`), else
with the scripted engine (`tests/integration/test_examples.py`). What cannot be run in a test is in
`EXCUSED`, with its reason, and is held against what it names (`tests/unit/test_examples.py`).

A block of JSON or text that follows a block of commands under the same heading is what these print:
JSON with the same fields and kinds of values, text word by word; `…` stands for anything.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

from orchestrator.cli import cli
from tests import pdfs

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "deploy", "docs", "loadtest", "model_server", "orchestrator", "tests")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
)
SHELL = {"sh", "bash", "shell", "console"}
RUN = SHELL | {"python"}
SHOWN = {"json", "text"}
ANYTHING = "…"
_COMMAND = re.compile(r"([A-Z_]+=\S+ )*(make|(\.venv/bin/)?(tidegate|python -m)) [^|]*$")
RUN_S = 120.0
"""Longest that a block may take; more than any of them needs on a busy machine."""

WITH_MODEL = ("README.md", "docs/file-search.md", "docs/first-answer.md", "docs/sizing.md")
"""Pages whose examples are run with the real vLLM."""

WITH_SCRIPT = ("docs/agents.md", "docs/api.md", "docs/under-load.md")
"""Pages whose examples are run with the scripted engine."""

EXCUSED = {
    ("README.md", "make run"): "It sets up two environments, and stays up until it is stopped.",
    ("README.md", "make test"): "It is what runs this test.",
    ("docs/first-answer.md", "make run"): "As in README.md; what follows there is run.",
    ("CONTRIBUTING.md", "make check"): "It and the next one run this test; the third stays up.",
    ("loadtest/README.md", "make loadtest"): "Ten minutes of load; tests have shorter runs.",
    ("loadtest/README.md", "make chaos"): "A quarter of an hour of faults; a test pulls one plug.",
    (
        "loadtest/README.md",
        "make overload ENGINE=simulator",
    ): "An hour of load; its parts have tests.",
    (
        "loadtest/README.md",
        "make before-after",
    ): "It needs root and minutes; tests have shorter runs.",
}
"""Blocks that no test runs, by page and first command, and why. What they name has to exist."""


@dataclass(frozen=True, slots=True)
class Block:
    """
    A fenced block.

    Attributes:
        page: Its file, from the root of the repository.
        line: Where the fence opens, from 1.
        language: What stands behind the fence; "" for nothing, and for blocks that are only indented.
        section: Number of the heading above it; blocks of one section belong together.
    """

    page: str
    line: int
    language: str
    text: str
    section: int

    @property
    def first_command(self) -> str:
        """By which it is excused: its first line, without prompt and comment."""
        return next((line.partition("  #")[0].strip() for line in self.commands), "")

    @property
    def place(self) -> str:
        """Where to look, for people."""
        return f"{self.page}:{self.line}"

    @property
    def is_excused(self) -> bool:
        """Whether no test runs it."""
        return (self.page, self.first_command) in EXCUSED

    @property
    def commands(self) -> list[str]:
        """The lines that are typed, without prompts; of a console block without what was printed."""
        lines = self.text.replace("\\\n", " ").splitlines()
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return typed or [line for line in lines if line.strip()]

    @property
    def script(self) -> str:
        """What is run."""
        prompted = self.language == "console" and self.text.startswith("$ ")
        return "\n".join(self.commands) if prompted else self.text


@dataclass(frozen=True, slots=True)
class Example:
    """A block that is run, and the block that shows what it prints, if there is one."""

    block: Block
    shown: Block | None


def blocks(page: str) -> list[Block]:
    """All blocks of code on a page, in their order."""
    found, section = [], 0
    for token in _tokens(page):
        if token.type == "heading_open":
            section += 1
        if token.type in {"fence", "code_block"}:
            assert token.map is not None
            language = (token.info.split() or [""])[0]
            found.append(Block(page, token.map[0] + 1, language, token.content, section))
    return found


def links(page: str) -> Iterator[str]:
    """Where the page's links and pictures lead."""
    for token in _tokens(page):
        for child in token.children or ():
            if child.type in {"link_open", "image"}:
                yield str(child.attrs.get("href") or child.attrs.get("src"))


def anchors(page: str) -> set[str]:
    """Names of the page's headings, as a link says them."""
    tokens = _tokens(page)
    titles = [inline.content for head, inline in pairwise(tokens) if head.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def named(page: str) -> Iterator[list[str]]:
    """The commands that stand in a page's sentences, in words; placeholders are words, too."""
    for token in _tokens(page):
        for child in token.children or ():
            if child.type == "code_inline" and _COMMAND.match(child.content):
                yield shlex.split(re.sub(r"<[^>]*>", "X", child.content.replace(ANYTHING, "X")))


def examples(page: str) -> list[Example]:
    """What is run of a page, in its order."""
    found = blocks(page)
    return [
        Example(block, _shown_by(block, following))
        for block, following in zip_longest(found, found[1:])
        if block.language in RUN and not block.is_excused
    ]


def _shown_by(block: Block, following: Block | None) -> Block | None:
    if following is None or following.section != block.section:
        return None
    return following if following.language in SHOWN else None


def unknown(words: Sequence[str]) -> str:
    """What in this command does not exist; "" if all does."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    name, arguments = Path(words[0]).name, words[1:]
    kinds = {"make": _unknown_to_make, "tidegate": _unknown_to_tidegate, "python": _unknown_module}
    return kinds[name](arguments) if name in kinds else f"{name}: nothing here knows that program"


def _unknown_to_make(arguments: Sequence[str]) -> str:
    rules, runner = ((ROOT / name).read_text() for name in ("Makefile", "deploy/stack_options.py"))
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        if is_variable and not re.search(rf"\b{name}\b", rules + runner):
            return f"no variable {name}"
        if not is_variable and not re.search(rf"^{name}:", rules, re.MULTILINE):
            return f"no target {name}"
    return ""


def _unknown_to_tidegate(arguments: Sequence[str]) -> str:
    command: Any = typer.main.get_command(cli)
    words = list(arguments)
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return ", ".join(w for w in words if w.startswith("-") and w not in known)


def _unknown_module(arguments: Sequence[str]) -> str:
    flag, module, *rest = arguments
    file = ROOT / module.replace(".", "/")
    sources = [path for path in (file.with_suffix(".py"), file / "__main__.py") if path.exists()]
    if flag != "-m" or not sources:
        return f"no module {module}"
    asked = [word for n, word in enumerate(rest) if word.startswith("-") or n == 0]
    return ", ".join(word for word in asked if f'"{word}"' not in sources[0].read_text())


def _tokens(page: str) -> list[Token]:
    return MarkdownIt().enable("table").parse((ROOT / page).read_text())


class Terminal:
    """
    A shell in a folder with a few PDFs, in which the blocks of a page are run one after the other.

    What one block exports or sets, the next ones have, as in the window of whoever copies them.

    Args:
        folder: Where it stands, and its home; made if there is none.
        addresses: What is said in place of the addresses that the pages have.
        data_dir: The data folder of the service, which is `.data` here.
    """

    def __init__(self, folder: Path, addresses: Mapping[str, str], *, data_dir: Path) -> None:
        self._folder = folder
        self._addresses = addresses
        self._kept = folder / ".environment"
        _furnish(folder, data_dir)
        venv = Path(sys.executable).parent
        self._environment = {
            "PATH": f"{venv}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "COLUMNS": "120",
            "PYTHONPATH": str(ROOT),
            "TIDEGATE_URL": addresses["http://127.0.0.1:8080"],
            "TIDEGATE_CONTROL_URL": addresses.get("http://127.0.0.1:8081", "http://127.0.0.1:9"),
        }

    def run(self, example: Example) -> str:
        """
        What it printed, once it has ended well.

        Raises:
            AssertionError: If it did not, or printed something else than the page shows.
        """
        block = example.block
        text = self._here(block.script)
        command = (
            [sys.executable, "-c", text]
            if block.language == "python"
            else [
                "bash",
                "-euo",
                "pipefail",
                "-c",
                f"set -a; trap 'env -0 >{self._kept}' EXIT\n{text}",
            ]
        )
        ended = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        told = f"{block.place} printed:\n{ended.stdout}\n{ended.stderr}"
        assert ended.returncode == 0, f"exit code {ended.returncode}; {told}"
        if self._kept.exists():
            pairs = self._kept.read_text().rstrip("\0").split("\0")
            self._environment = dict(pair.split("=", 1) for pair in pairs)
        if example.shown is not None:
            shown = self._here(example.shown.text)
            wrong = difference(replace(example.shown, text=shown), ended.stdout)
            assert not wrong, f"{example.shown.place} is not what is printed: {wrong}; {told}"
        return ended.stdout

    def _here(self, text: str) -> str:
        for shown, real in self._addresses.items():
            text = text.replace(shown, real)
        return text


def _furnish(folder: Path, data_dir: Path) -> None:
    """The files that examples speak of: a checkout as far as they need it, and papers of their own."""
    (folder / "docs" / "samples").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "samples" / "handbook.pdf", folder / "docs" / "samples")
    (folder / ".venv").symlink_to(Path(sys.prefix))
    (folder / ".data").symlink_to(data_dir)
    for name in (".models", ".venv-engine"):
        (folder / name).symlink_to(ROOT / name)
    first = ["The northern lock opens at nine in the morning, and closes at dusk."]
    (folder / "paper.pdf").write_bytes(pdfs.text_pdf(first))
    (folder / "paper-2.pdf").write_bytes(pdfs.text_pdf(["The northern lock opens at ten now."]))
    (folder / "scan.pdf").write_bytes(pdfs.image_only())
    # An error status is a failed example; nothing between curl and a loopback address.
    (folder / ".curlrc").write_text('fail-with-body\nsilent\nshow-error\nnoproxy = "*"\n')


def difference(shown: Block, printed: str) -> str:
    """How what was printed is not what the page shows; "" if it is."""
    if shown.language == "text":
        parts = (" ".join(part.split()) for part in shown.text.split(ANYTHING))
        pattern = ".*".join(map(re.escape, parts))
        told = " ".join(printed.split())
        return "" if re.fullmatch(pattern, told, re.DOTALL) else f"expected {shown.text!r}"
    return unlike(json.loads(shown.text), json.loads(printed))


def unlike(shown: Any, real: Any, where: str = "$") -> str:
    """
    Where two JSON values differ in their fields or kinds; "" if they do not.

    Null stands for whatever may be missing. A list shows one element for all.
    """
    if shown is None or real is None:
        return ""
    if isinstance(shown, dict) and isinstance(real, dict):
        if shown.keys() != real.keys():
            return f"{where}: only one of them has {sorted(shown.keys() ^ real.keys())}"
        return next(filter(None, (unlike(shown[k], real[k], f"{where}.{k}") for k in shown)), "")
    if isinstance(shown, list) and isinstance(real, list):
        if not shown or not real:
            return "" if shown == real else f"{where}: one of them is empty"
        pairs = (unlike(shown[0], value, f"{where}[{n}]") for n, value in enumerate(real))
        return next(filter(None, pairs), "")
    same = _kind(shown) is _kind(real)
    return "" if same else f"{where}: {shown!r} is shown and {real!r} came"


def _kind(value: object) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)
