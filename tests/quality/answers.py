"""
What comes of whole answers, told without a model that judges them.

    make answers PDFS=<folder> QUESTIONS=<file> [ENGINE=vllm|simulator] [OUT=<file>]

Each question is asked of a running stack, about its own PDF. Counted is what can be known for sure:

- whether every mark in the answer is a source that was found, and how many answers have one;
- whether a cited page is a page that holds the answer (`evidence_pages`, `alt_pages`);
- for questions with a literal answer: whether it stands in the answer, and then on a cited page;
- how many questions without an answer in the PDF (`answerable` false) were refused, and how many with one.

The questions are those of `evaluate.py`, and those that cannot be answered.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from loadtest.programs import commit, machine
from loadtest.stack import orchestrator, simulator, vllm
from orchestrator.documents.pdf import inspect, read_pages
from orchestrator.generation.prompt import NOTHING_RELEVANT
from tests.quality.evaluate import read_questions

CLIENTS = 4
MAX_TOKENS = 96
TIMEOUT_S = 600.0
SETTINGS = {"REQUEST_TIMEOUT_S": str(TIMEOUT_S), "OCR": "false"}
"""Pages that are pictures have no question here whose answer is text."""
MAX_PAGE_CHARS = 400_000
MIN_LITERAL_CHARS = 3
"""Shorter answers ("5", "no") stand everywhere."""
_MARK = re.compile(r"\[(\d+)\]")
_REFUSAL = re.compile(
    r"\b(?:do|does|did|is|are|was|were|can|could)(?: not|n't)\b.{0,60}"
    r"\b(?:say|mention|contain|include|provide|specif|state|find|found|answer|inform)"
    r"|\b(?:no|not enough) (?:information|answer|mention)\b|\bnot answerable\b",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Checked:
    """
    What is known of one answer; None where a question does not apply.

    Attributes:
        marks_hold: Every mark is a source, and that source is said to be cited.
        gold_found: A page that holds the answer is among the sources.
        gold_cited: It is among the cited ones.
        literal: The answer's own words stand in the text.
        literal_cited: They stand on a cited page.
    """

    id: str
    answerable: bool
    degraded: bool
    refused: bool
    cited: bool
    marks_hold: bool
    gold_found: bool | None
    gold_cited: bool | None
    literal: bool | None
    literal_cited: bool | None


def plain(text: str) -> str:
    """Letters and digits alone, in lower case: how something is spaced or pointed says nothing."""
    return "".join(character for character in text.lower() if character.isalnum())


def refused(answer: str) -> bool:
    """Whether an answer says that there is none."""
    return answer == NOTHING_RELEVANT or bool(_REFUSAL.search(answer))


def check(row: dict[str, Any], answer: dict[str, Any], page_text: dict[int, str]) -> Checked:
    """
    One answer.

    Args:
        row: The question.
        answer: What `/ask` gave.
        page_text: The text of each page of its PDF.
    """
    sources = {source["n"]: source for source in answer["citations"]}
    marks = {int(mark) for mark in _MARK.findall(answer["answer"])}
    cited = {source["page"] for source in sources.values() if source["cited"]}
    gold = {*row["evidence_pages"], *(row.get("alt_pages") or ())}
    answerable = bool(row.get("answerable", True))
    wanted = plain(str(row.get("answer", "")))
    has_literal = answerable and len(wanted) >= MIN_LITERAL_CHARS
    literal = wanted in plain(answer["answer"]) if has_literal else None
    return Checked(
        id=str(row["id"]),
        answerable=answerable,
        degraded=answer["degraded"] is not None,
        refused=refused(answer["answer"]),
        cited=bool(cited),
        marks_hold=all(mark in sources and sources[mark]["cited"] for mark in marks),
        gold_found=any(s["page"] in gold for s in sources.values()) if answerable else None,
        gold_cited=bool(cited & gold) if answerable else None,
        literal=literal,
        literal_cited=(
            any(wanted in plain(page_text.get(page, "")) for page in cited) if literal else None
        ),
    )


def figures(checked: Sequence[Checked]) -> dict[str, tuple[int, int]]:
    """What was counted: how many, of how many."""
    known = [c for c in checked if c.answerable]
    unknown = [c for c in checked if not c.answerable]

    def count(name: str, of: Sequence[Checked]) -> tuple[int, int]:
        values = [getattr(c, name) for c in of if getattr(c, name) is not None]
        return sum(values), len(values)

    return {
        "every mark is a source": count("marks_hold", checked),
        "cites a page": count("cited", known),
        "page with the answer among the sources": count("gold_found", known),
        "page with the answer cited": count("gold_cited", known),
        "literal answer given": count("literal", known),
        "of those, it stands on a cited page": count("literal_cited", known),
        "refused, and has an answer": count("refused", known),
        "refused, and has none": count("refused", unknown),
        "degraded": count("degraded", checked),
    }


def table(counted: dict[str, tuple[int, int]]) -> str:
    """A line a figure."""
    lines = ["| what | answers | share |", "|---|---|---|"]
    for what, (hits, of) in counted.items():
        lines.append(
            f"| {what} | {hits} of {of} | {hits / of:.3f} |" if of else f"| {what} | - | - |"
        )
    return "\n".join(lines)


def upload(http: httpx2.Client, path: Path) -> str | None:
    """The document's id; None if it cannot be read."""
    response = http.post(
        "/upload",
        params={"wait": "true"},
        files={"file": (path.name, path.read_bytes(), "application/pdf")},
    )
    if not response.is_success:
        print(f"left out: {path.name}: {response.json()['error']['message']}", file=sys.stderr)
        return None
    return str(response.json()["documents"][0]["id"])


def pages_of(path: Path) -> dict[int, str]:
    """The text of each page."""
    pages = read_pages(
        path,
        first=1,
        last=inspect(path, max_pages=100_000).pages,
        max_chars_per_page=MAX_PAGE_CHARS,
    )
    return {page.number: page.text for page in pages}


def ask_all(http: httpx2.Client, folder: Path, rows: Sequence[dict[str, Any]]) -> list[Checked]:
    """Upload what is asked about, ask, and check."""
    names = sorted({row["pdf"] for row in rows})
    documents = {name: upload(http, folder / name) for name in names if (folder / name).exists()}
    texts = {name: pages_of(folder / name) for name, found in documents.items() if found}

    def one(row: dict[str, Any]) -> Checked:
        body = {
            "question": row["question"],
            "document_ids": [documents[row["pdf"]]],
            "max_tokens": MAX_TOKENS,
        }
        answer = http.post("/ask", json=body).raise_for_status().json()
        return check(row, answer, texts[row["pdf"]])

    asked = [row for row in rows if row["pdf"] in texts]
    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(one, asked))


@contextmanager
def running(engine: str, folder: Path) -> Iterator[httpx2.Client]:
    """A whole stack with an empty library."""
    with ExitStack() as on:
        start = vllm(folder, {}) if engine == "vllm" else simulator(folder)
        _, url = on.enter_context(start)
        ours = on.enter_context(orchestrator(folder, url, SETTINGS))
        yield on.enter_context(httpx2.Client(base_url=ours.url, timeout=TIMEOUT_S, trust_env=False))


def main() -> int:
    """Ask, print the table, write it down; the exit code is 1 if a mark was no source."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--pdfs", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--engine", choices=["vllm", "simulator"], default="vllm")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = read_questions(options.questions, without_answer=True)
    with tempfile.TemporaryDirectory() as folder, running(options.engine, Path(folder)) as http:
        checked = ask_all(http, options.pdfs, rows)
    counted = figures(checked)
    print(f"{machine()}, commit {commit()}, engine {options.engine}\n\n{table(counted)}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = {"machine": machine(), "commit": commit(), "engine": options.engine}
        report = about | {"figures": counted, "answers": [asdict(c) for c in checked]}
        options.json.write_text(json.dumps(report, indent=1))
    hits, of = counted["every mark is a source"]
    return int(hits < of)


if __name__ == "__main__":
    sys.exit(main())
