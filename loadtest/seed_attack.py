"""
The load that brings a naive service down, beside people who ask ordinary questions.

    make seed-attack [ENGINE=simulator|vllm] [URL=http://127.0.0.1:8080]

Two rounds. As reported: ten times the very `curl` of the report that started this project and one
"Explain everything in 5000 words" with the longest answer that may be asked for, all at once. Harder:
the same, and ten questions that are really long. Prints what became of each, and the ordinary questions'
times alone and beside them. The exit code is 1 if an attacker got no answer, or if beside the attack as
it was reported ordinary questions take over twice as long. Without URL it starts a stack of its own.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from loadtest import corpus
from loadtest.figures import percentile
from loadtest.programs import commit, machine
from loadtest.stack import H100_LIKE, stack
from tests.pdfs import HANDBOOK_QUESTIONS

ATTACKERS = 10
LONGEST_ANSWER_TOKENS = 2048
LONG_QUESTION_CHARS = 6000
ORDINARY_TOKENS = 32
ORDINARY_ASKS = 50
GIVE_UP_S = 180
MAX_SLOWDOWN = 2.0
ESSAY = "Explain everything in 5000 words: the station, its gates, its lock and its tides."


@dataclass(frozen=True, slots=True)
class Attacker:
    """A running `curl`, and what it asks in a word."""

    kind: str
    process: subprocess.Popen[str]

    def outcome(self) -> str:
        """Status and code of what it got."""
        said, _ = self.process.communicate()
        body, _, status = said.rpartition("\n")
        try:
            found = json.loads(body)
        except ValueError:
            return f"{self.kind}: {status or 'no answer'}, no JSON"
        if error := found.get("error"):
            return f"{self.kind}: {status} {error['code']}"
        tokens = found["usage"]["completion_tokens"]
        level = (found.get("degraded") or {}).get("level")
        return (
            f"{self.kind}: {status} answered"
            + (f" {level}" if level else "")
            + ("" if tokens else ", nothing in the documents fits")
        )


def attack(url: str, *, harder: bool) -> list[Attacker]:
    """Every attacker, started at once."""
    filler = " and ".join(q.question.rstrip("?") for q in HANDBOOK_QUESTIONS)
    long = (filler + " and ") * (LONG_QUESTION_CHARS // len(filler) + 1)
    essay = json.dumps({"question": ESSAY, "max_tokens": LONGEST_ANSWER_TOKENS})
    bodies = [
        *[("as reported", '{"question": "Long question..."}')] * ATTACKERS,
        *[("really long", json.dumps({"question": long[:LONG_QUESTION_CHARS]}))]
        * (ATTACKERS if harder else 0),
        ("5000 words", essay),
    ]
    return [Attacker(kind, _curl(url, body)) for kind, body in bodies]


def ordinary(http: httpx2.Client, attackers: Sequence[Attacker] = ()) -> list[float]:
    """Seconds of ordinary questions one after the other; beside attackers, until the last has ended."""
    took_s: list[float] = []
    while len(took_s) < ORDINARY_ASKS or any(a.process.poll() is None for a in attackers):
        question = HANDBOOK_QUESTIONS[len(took_s) % len(HANDBOOK_QUESTIONS)].question
        began_s = time.monotonic()
        body = {"question": question, "max_tokens": ORDINARY_TOKENS}
        response = http.post("/ask", json=body)
        if response.is_error:
            print(f"  ordinary question refused: {response.status_code} {response.text[:200]}")
        took_s.append(time.monotonic() - began_s)
    return took_s


@dataclass(frozen=True, slots=True)
class Round:
    """What became of one attack, and the seconds of ordinary questions beside it."""

    name: str
    outcomes: Counter[str]
    ordinary_s: list[float]


def run(url: str) -> int:
    """Attack, and print what came of it; gives the exit code."""
    with httpx2.Client(base_url=url, timeout=GIVE_UP_S, trust_env=False) as http:
        ordinary(http)  # fills the engine's prefix cache, as any service's is that has users
        alone_s = ordinary(http)
        rounds = []
        for name in ("as reported", "harder"):
            attackers = attack(url, harder=name == "harder")
            beside_s = ordinary(http, attackers)
            rounds.append(Round(name, Counter(a.outcome() for a in attackers), beside_s))
        alive = http.get("/healthz").is_success
    print(f"\n{machine()}, commit {commit()}\n\n| what | figure |\n|---|---|")
    print(f"| ordinary questions alone | {_times(alone_s)} |")
    ratios = [_report(found, alone_s) for found in rounds]
    unanswered = [o for r in rounds for o in r.outcomes if "no answer" in o or ": 000" in o]
    return int(ratios[0] > MAX_SLOWDOWN or bool(unanswered) or not alive)


def _report(found: Round, alone_s: Sequence[float]) -> float:
    """Print one round; gives the 99th percentile of ordinary questions over that alone."""
    for outcome, n in sorted(found.outcomes.items()):
        print(f"| {found.name}: {outcome} | {n} |")
    print(f"| {found.name}: ordinary questions beside it | {_times(found.ordinary_s)} |")
    ratio = (percentile(found.ordinary_s, 0.99) or 0.0) / (percentile(alone_s, 0.99) or 1.0)
    objective = f" (objective <= {MAX_SLOWDOWN:g})" if found.name == "as reported" else ""
    print(f"| {found.name}: p99 beside / alone{objective} | {ratio:.2f} |")
    return ratio


def _times(took_s: Sequence[float]) -> str:
    p99_s = percentile(took_s, 0.99) or 0.0
    return f"p50 {statistics.median(took_s):.2f} s, p99 {p99_s:.2f} s, n={len(took_s)}"


def main() -> int:
    """Read the command line, and run; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--engine", choices=["simulator", "vllm"], default="simulator")
    parser.add_argument("--url", help="a running orchestrator; default: start everything")
    options = parser.parse_args()
    with _url(options) as url:
        return run(url)


@contextmanager
def _url(options: argparse.Namespace) -> Iterator[str]:
    if options.url:
        with httpx2.Client(base_url=options.url, timeout=GIVE_UP_S, trust_env=False) as http:
            corpus.upload(http)
        yield options.url
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        stack(options.engine, Path(folder), simulator_options=H100_LIKE) as running,
    ):
        yield running.orchestrator.url


def _curl(url: str, body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *("curl", "-s", "--noproxy", "*", "--max-time", str(GIVE_UP_S), "-w", "\n%{http_code}"),
            *("-X", "POST", f"{url}/ask", "-H", "Content-Type: application/json", "-d", body),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    sys.exit(main())
