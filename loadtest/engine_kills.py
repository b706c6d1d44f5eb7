"""
The engine's processes killed at random moments under load: who is told, how soon it serves again.

    make engine-kills [KILLS=20] [OUT=reports/engine_kills.json]

Starts real vLLM and the orchestrator, lets a few clients ask without a pause, and kills EngineCore, the
worker and the API server with -9, in turn, each as often as asked for. After each: every client that was
being answered has to be told within 2 s; somebody has to get the first token of an answer again within
the time that the engine's start took, what a first token takes anyway, and 3 s more; nothing of the old
engine may be left, its memory has to be back, and the documents have to be as they were. The exit code is 1 if one of these was missed.
"""

import argparse
import json
import math
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx2
import psutil

from deploy.child_process import is_running
from loadtest.figures import percentile
from loadtest.programs import commit, machine
from loadtest.stack import Stack, stack
from model_server.devices import find_cpu
from model_server.memory_watch import MemoryWatch
from tests.pdfs import HANDBOOK_QUESTIONS

PARTS = {"EngineCore": "EngineCore", "worker": "Worker", "API server": "api_server"}
CLIENTS = 6
ANSWER_TOKENS = 200
TOLD_S, MORE_S = 2.0, 3.0
LONGEST_CALM_S = 8.0
SERVES_AGAIN_S = 300.0
MEMORY_BACK_SHARE = 0.9
LOOK_S = 0.05
SEED = 20260701
_PAGES_AT_A_CORE = re.compile(r"^ +count: +(\d+)$", re.MULTILINE)
_LOADED = re.compile(r"engine ready after ([0-9.]+) s")


@dataclass(frozen=True, slots=True)
class Told:
    """
    One question: when it was asked, got its first token and ended, on this machine's clock, and how.

    Attributes:
        token_s: -inf if no token came.
    """

    asked_s: float
    token_s: float
    ended_s: float
    outcome: str


@dataclass(frozen=True, slots=True)
class Kill:
    """
    What one kill came to.

    Attributes:
        running: Clients that were being answered.
        told_s: Until the last of them was told or had its answer, in seconds.
        outcomes: What they were told.
        again_s: Until one of the clients got the first token of an answer again, in seconds.
        load_s: What the start in it took, by model_server's own account.
        left: Processes of the old engine that were still there when the new one served.
        memory_back: Greatest share of the old engine's memory that was free between the two; without
            the files that it mapped, which were cache before and after.
        documents_kept: Whether the documents were as they had been.
    """

    part: str
    running: int
    told_s: float
    outcomes: tuple[str, ...]
    again_s: float
    load_s: float
    left: int
    memory_back: float
    documents_kept: bool

    def late_s(self, answer_s: float) -> float:
        """Seconds until it served again, beyond what its start and a first token take anyway."""
        return self.again_s - self.load_s - answer_s


class Askers:
    """Clients that ask for full answers without a pause, until told to stop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._told: list[Told] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def first_token_after(self, moment_s: float) -> float:
        """When the first answer after a moment began, of those that have ended; inf if none did."""
        with self._lock:
            return min((t.token_s for t in self._told if t.token_s > moment_s), default=math.inf)

    def running_at(self, moment_s: float) -> list[Told]:
        """The questions that were open at a moment, of those that have ended by now."""
        with self._lock:
            return [t for t in self._told if t.asked_s < moment_s < t.ended_s]

    def _ask(self, number: int) -> None:
        questions = [case.question for case in HANDBOOK_QUESTIONS]
        with httpx2.Client(base_url=self._url, timeout=120, trust_env=False) as http:
            while not self._stop.is_set():
                told = _ask(http, questions[number % len(questions)])
                with self._lock:
                    self._told.append(told)
                if told.outcome != "answered":
                    self._stop.wait(0.5)


def _ask(http: httpx2.Client, question: str, tokens: int = ANSWER_TOKENS) -> Told:
    """Answered, or the code of the error that was told; anything else is a broken promise."""
    body = {"question": question, "max_tokens": tokens, "degrade": False, "stream": True}
    asked_s, token_s, text = time.monotonic(), -math.inf, ""
    try:
        with http.stream("POST", "/ask", json=body) as answer:
            for part in answer.iter_text():
                text += part
                if token_s < asked_s and "event: token" in text:
                    token_s = time.monotonic()
        outcome = _outcome(answer.status_code, text)
    except httpx2.HTTPError as exc:
        outcome = f"broken off ({type(exc).__name__})"
    return Told(asked_s, token_s, time.monotonic(), outcome)


def _outcome(status: int, text: str) -> str:
    if status != httpx2.codes.OK:
        return str(json.loads(text)["error"]["code"])
    if "event: done" in text:
        return "answered"
    found = re.search(r'event: error\ndata: .*?"code":"(\w+)"', text)
    return found[1] if found else "neither an end nor an error"


def kill_once(running: Stack, part: str, rng: random.Random) -> Kill:
    """Wait for a random moment under load, kill one process, and see what comes of it."""
    family = running.engine_family()
    memory = MemoryWatch(device=find_cpu, environ={}, nvml=None)
    held = memory.returnable_bytes(running.keeper()["pid"]) or 0
    (victim,) = [p for p in family if PARTS[part] in " ".join(p.cmdline())]
    documents = _documents(running)
    with Askers(running.orchestrator.url) as askers:
        time.sleep(2 + rng.random() * LONGEST_CALM_S)
        free_before = _free_bytes()
        os.kill(victim.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        freed = _until_ready(running, killed_s, free_before)
        ours_s = _first_token(running, killed_s)
    # What was still on its way from the old engine came within the time for being told.
    theirs_s = askers.first_token_after(killed_s + TOLD_S)
    open_then = askers.running_at(killed_s)
    return Kill(
        part=part,
        running=len(open_then),
        told_s=max((t.ended_s - killed_s for t in open_then), default=0.0),
        outcomes=tuple(sorted({t.outcome for t in open_then})),
        again_s=min(ours_s, theirs_s) - killed_s,
        load_s=float(_LOADED.findall(running.engine_process.log.read_text())[-1]),
        left=sum(is_running(process) for process in family),
        memory_back=freed / held,
        documents_kept=_documents(running) == documents,
    )


def _free_bytes() -> int:
    """
    What the machine could give away, with the freed pages that the kernel keeps at each core.

    Those are as free as any other (some tens of MiB a core), but no figure of /proc/meminfo has them.
    """
    zones = Path("/proc/zoneinfo").read_text(encoding="ascii")
    kept = sum(int(count) for count in _PAGES_AT_A_CORE.findall(zones))
    return psutil.virtual_memory().available + kept * os.sysconf("SC_PAGESIZE")


def _documents(running: Stack) -> Any:
    return running.orchestrator.http.get("/documents").raise_for_status().json()


def _until_ready(running: Stack, killed_s: float, free_before: int) -> int:
    """Wait for the next engine; gives the most bytes that were freed on the way."""
    freed, seen_down = 0, False
    while time.monotonic() - killed_s < SERVES_AGAIN_S:
        freed = max(freed, _free_bytes() - free_before)
        ready = running.engine_process.http.get("/readyz").is_success
        seen_down = seen_down or not ready
        if ready and seen_down:
            return freed
        time.sleep(LOOK_S)
    raise SystemExit(f"the engine did not come back:\n{running.engine_process.tail()}")


def _first_token(running: Stack, killed_s: float) -> float:
    """When a question of our own got its first token."""
    question = HANDBOOK_QUESTIONS[0].question
    while (told := _ask(running.orchestrator.http, question, tokens=1)).outcome != "answered":
        if time.monotonic() - killed_s > SERVES_AGAIN_S:
            raise SystemExit("no question was answered after the engine was ready again")
        time.sleep(LOOK_S)
    return told.token_s


def missed(kills: Sequence[Kill], answer_s: float) -> list[str]:
    """What was not as promised, in words; `answer_s` is what a first token takes anyway."""
    found = []
    for n, kill in enumerate(kills):
        late_s = kill.late_s(answer_s)
        promises = {
            f"told after {kill.told_s:.1f} s": kill.told_s <= TOLD_S,
            f"told {', '.join(kill.outcomes)}": not any(
                "broken" in o or "neither" in o for o in kill.outcomes
            ),
            f"served again {late_s:.1f} s after the load": late_s <= MORE_S,
            f"{kill.left} processes left": kill.left == 0,
            f"{kill.memory_back:.0%} of the memory back": kill.memory_back >= MEMORY_BACK_SHARE,
            "documents changed": kill.documents_kept,
        }
        found += [
            f"kill {n + 1} ({kill.part}): {what}" for what, held in promises.items() if not held
        ]
    return found


def _table(kills: Sequence[Kill], answer_s: float) -> str:
    rows = ["| killed | n | told, median / worst | again after load, median / worst | left |"]
    rows.append("|---|---|---|---|---|")
    for part in PARTS:
        mine = [k for k in kills if k.part == part]
        told = [k.told_s for k in mine]
        late = [k.late_s(answer_s) for k in mine]
        rows.append(
            f"| {part} | {len(mine)} | {statistics.median(told):.2f} / {max(told):.2f} s | "
            f"{statistics.median(late):.1f} / {max(late):.1f} s | {sum(k.left for k in mine)} |"
        )
    return "\n".join(rows)


def main() -> int:
    """Kill, and print what came of it; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--kills", type=int, default=20, help="of each of the three processes")
    parser.add_argument("--out", type=Path, default=Path("reports/engine_kills.json"))
    options = parser.parse_args()
    rng = random.Random(SEED)  # noqa: S311 - moments of a test
    kills: list[Kill] = []
    question = HANDBOOK_QUESTIONS[0].question
    with tempfile.TemporaryDirectory() as folder, stack("vllm", Path(folder)) as running:
        alone = [_ask(running.orchestrator.http, question) for _ in range(3)]
        answer_s = percentile([t.token_s - t.asked_s for t in alone], 0.5) or 0.0
        for _ in range(options.kills):
            for part in PARTS:
                kills.append(kill_once(running, part, rng))
                print(kills[-1], file=sys.stderr, flush=True)
    found = missed(kills, answer_s)
    print(f"\n{machine()}, commit {commit()}\n\n{_table(kills, answer_s)}\n")
    print("\n".join(found) or "every promise held")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "commit": commit(), "kills": [asdict(k) for k in kills]}
    options.out.write_text(json.dumps({**report, "missed": found}, indent=1) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
