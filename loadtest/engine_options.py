"""
What prefix caching and speculation from the prompt do to answers over real documents.

    make engine-options PDFS=<folder> QUESTIONS=<file> [ROUNDS=2] [ASKS=24] [OUT=reports/engine_options.json]

Starts real vLLM and the orchestrator with each of the engine's options in turn, round after round, so that
a machine that drifts wrongs none of them. The smallest PDFs that hold enough questions are uploaded; each
question is asked alone, once more right after (a follow-up to the same passages), and then all of them by
eight clients at a time; always greedily. Says how soon the first token came, retrieval left out, how fast
the others followed, how many answers are word for word those of the defaults, and how many tokens a second
eight clients got. The questions are JSON lines with `pdf`, `question` and, if given, `text_gold`.
"""

import argparse
import concurrent.futures
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from loadtest.programs import commit, machine
from loadtest.stack import Stack, stack

SPECULATION = {
    "method": "ngram",
    "num_speculative_tokens": 4,
    "prompt_lookup_min": 2,
    "prompt_lookup_max": 4,
}
OPTIONS: Mapping[str, str] = {
    "as planned": "",
    "no prefix cache": "--no-enable-prefix-caching",
    "ngram": f"--speculative-config '{json.dumps(SPECULATION, separators=(',', ':'))}'",
}
CLIENTS = 8
ANSWER_TOKENS = 96
INGEST_S = 600.0


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one PDF."""

    pdf: str
    text: str


@dataclass(frozen=True, slots=True)
class Told:
    """
    One answer.

    Attributes:
        first_s: From the prompt's sending to the first token.
        rest_s: From the first token to the last.
    """

    text: str
    tokens: int
    first_s: float
    rest_s: float

    @property
    def pace(self) -> float | None:
        """Tokens a second after the first; None of a single token."""
        return (self.tokens - 1) / self.rest_s if self.tokens > 1 and self.rest_s > 0 else None


@dataclass(frozen=True, slots=True)
class Round:
    """One start of the engine with one set of options; `cold`, `warm` and `crowd` in the questions' order."""

    options: str
    cold: tuple[Told, ...]
    warm: tuple[Told, ...]
    crowd: tuple[Told, ...]
    crowd_s: float


def choose(questions: Iterable[Mapping[str, Any]], folder: Path, asks: int) -> list[Question]:
    """As many questions as asked for, of as few and as small PDFs as hold them."""
    by_pdf: dict[str, list[Question]] = {}
    for asked in questions:
        if asked.get("text_gold", True) and (folder / asked["pdf"]).is_file():
            question = Question(asked["pdf"], asked["question"])
            by_pdf.setdefault(question.pdf, []).append(question)
    smallest = sorted(by_pdf, key=lambda pdf: (folder / pdf).stat().st_size)
    return [question for pdf in smallest for question in by_pdf[pdf]][:asks]


def play(running: Stack, options: str, questions: Sequence[Question], folder: Path) -> Round:
    """Upload, then ask: alone, again, and all at once."""
    http = running.orchestrator.http
    ids = {pdf: _upload(http, folder / pdf) for pdf in dict.fromkeys(q.pdf for q in questions)}
    _ask(http, questions[0], ids)  # warms what is loaded on first use
    pairs = [(_ask(http, q, ids), _ask(http, q, ids)) for q in questions]
    began_s = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        crowd = tuple(pool.map(lambda q: _ask(http, q, ids), questions))
    took_s = time.monotonic() - began_s
    cold, warm = zip(*pairs, strict=True)
    return Round(options, cold, warm, crowd, took_s)


def _upload(http: httpx2.Client, pdf: Path) -> str:
    with pdf.open("rb") as file:
        files = {"file": (pdf.name, file, "application/pdf")}
        response = http.post("/upload?wait=true", files=files, timeout=INGEST_S)
    document = response.raise_for_status().json()["documents"][0]
    return str(document["id"])


def _ask(http: httpx2.Client, question: Question, ids: Mapping[str, str]) -> Told:
    body = {
        "question": question.text,
        "document_ids": [ids[question.pdf]],
        "max_tokens": ANSWER_TOKENS,
        "degrade": False,
    }
    answer = http.post("/ask", json=body, timeout=INGEST_S).raise_for_status().json()
    times = answer["timings_ms"]
    first_ms = times["first_token"] - times["retrieve"] - times["queue"]
    return Told(
        text=answer["answer"],
        tokens=answer["usage"]["completion_tokens"],
        first_s=first_ms / 1000,
        rest_s=(times["total"] - times["first_token"]) / 1000,
    )


def table(rounds: Sequence[Round]) -> str:
    """One row for each set of options: medians over all rounds, and the spread between them."""
    rows = [
        "| options | first token, ms | again, ms | tokens/s alone | tokens/s of eight | same words |",
        "|---|---|---|---|---|---|",
    ]
    reference = next(r for r in rounds if r.options == "as planned")
    for name in dict.fromkeys(r.options for r in rounds):
        mine = [r for r in rounds if r.options == name]
        rows.append(
            f"| {name} | {_spread([_first_ms(r.cold) for r in mine])} "
            f"| {_spread([_first_ms(r.warm) for r in mine])} "
            f"| {_spread([_pace(r.cold) for r in mine])} "
            f"| {_spread([sum(t.tokens for t in r.crowd) / r.crowd_s for r in mine])} "
            f"| {_same(mine, reference)} |"
        )
    return "\n".join(rows)


def _first_ms(told: Sequence[Told]) -> float:
    return statistics.median(t.first_s for t in told if t.tokens) * 1000


def _pace(told: Sequence[Told]) -> float:
    return statistics.median(t.pace for t in told if t.pace is not None)


def _spread(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    return f"{middle:.0f} ({min(values):.0f} to {max(values):.0f})"


def _same(rounds: Sequence[Round], reference: Round) -> str:
    pairs = [(t, r) for one in rounds for t, r in zip(one.cold, reference.cold, strict=True)]
    return f"{sum(t.text == r.text for t, r in pairs)} of {len(pairs)}"


def main() -> int:
    """Measure, and print the table; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--pdfs", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--asks", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("reports/engine_options.json"))
    wanted = parser.parse_args()
    lines = wanted.questions.read_text(encoding="utf-8").splitlines()
    questions = choose(map(json.loads, lines), wanted.pdfs, wanted.asks)
    if not questions:
        parser.error(f"no question of {wanted.questions} is about a PDF in {wanted.pdfs}")
    rounds: list[Round] = []
    for number in range(wanted.rounds):
        # Back and forth, so that none is always first on a machine that drifts.
        for name, arguments in list(OPTIONS.items())[:: 1 if number % 2 == 0 else -1]:
            with (
                tempfile.TemporaryDirectory() as data,
                stack(
                    "vllm", Path(data), model_server={"MODEL_SERVER_ENGINE_ARGS": arguments}
                ) as running,
            ):
                rounds.append(play(running, name, questions, wanted.pdfs))
            print(table(rounds), file=sys.stderr, flush=True)
    print(f"\n{machine()}, commit {commit()}, {len(questions)} questions\n\n{table(rounds)}")
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "commit": commit(), "rounds": [asdict(r) for r in rounds]}
    wanted.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
