"""
The naive service and Tidegate under the same memory limit, asked by the same people.

    make before-after [MEMORY_GIB=4] [ASKS=1,2,3,10] [UPLOADS=10] [OUT=reports/before-after.json]

One after the other on this machine, each with all of its processes in one control group: the naive
service (`naive_service.py`), then real vLLM with model_server and the orchestrator. For each number of
asks the system is started anew, with the documents in: its first questions come all at once, and then,
after one alone, as many again. Last, documents are uploaded in a loop while people ask. The naive
service is started again whenever it has died. The exit code is 1 if Tidegate failed anybody, lost a
document, or had a process killed.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtest import corpus
from loadtest.asking import (
    ANSWER_TOKENS,
    ASKERS,
    PATIENCE_S,
    Acts,
    Outcomes,
    ask_at_once,
    listed,
    outcomes,
    upload_while_asking,
)
from loadtest.contenders import Contender, Naive, Tidegate
from loadtest.memory_group import MemoryGroup, NoMemoryGroup, memory_group
from loadtest.programs import NotStarted, commit, machine
from model_server.memory import GIB, human

CONTENDERS: dict[str, type[Contender]] = {"naive": Naive, "tidegate": Tidegate}

MEMORY_GIB = 4.0
"""Tidegate's plan wants 3.4 GiB at least: 2.3 for the engine, 0.1 for one sequence, 1 for the rest."""

DOCUMENTS = 2
"""What `corpus.upload` puts in."""

LOOK_S = 0.1
DYING_S = 1.0
"""Whose connections break may still be about to end."""
CALM_CORES = 0.2
CALM_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """
    One case of one system.

    Attributes:
        killed: Processes that the kernel killed for want of memory.
        died: How often a part of the system ended, for whatever reason.
        peak_bytes: The most in use, page cache included.
        kept_bytes: The most that could not be dropped, looked at ten times a second.
        documents: That can be asked about when the case is over.
        expected: That were there before, and that were accepted in it.
    """

    system: str
    case: str
    outcomes: Outcomes
    uploads: int
    accepted: int
    killed: int
    died: int
    peak_bytes: int
    kept_bytes: int
    documents: int
    expected: int


def missed(results: Sequence[Result]) -> list[str]:
    """What Tidegate did not do as promised, in words; nothing is expected of the other."""
    found = []
    for result in results:
        promises = {
            f"{listed(result.outcomes.failed)} failed": not result.outcomes.failed,
            f"{result.uploads - result.accepted} uploads failed": result.accepted == result.uploads,
            f"{result.killed} processes killed": result.killed == 0,
            f"died {result.died} times": result.died == 0,
            f"{result.documents} of {result.expected} documents": result.documents
            == result.expected,
        }
        if result.system == Tidegate.name:
            found += [f"{result.case}: {what}" for what, held in promises.items() if not held]
    return found


def table(results: Sequence[Result]) -> str:
    """Markdown: one row a case of a system."""
    head = (
        "system", "case", "asks", "answered", "told", "failed", "answer, median / longest",
        "uploads", "killed", "died", "peak", "of it kept", "documents",
    )  # fmt: skip
    rows = [head, ("---",) * len(head), *(_row(result) for result in results)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(result: Result) -> tuple[str, ...]:
    seen = result.outcomes
    times = "" if seen.answer_s is None else f"{seen.answer_s[0]:.1f} / {seen.answer_s[1]:.1f} s"
    return (
        result.system,
        result.case,
        str(seen.asks),
        str(seen.answered),
        str(seen.told),
        listed(seen.failed) or "0",
        times,
        f"{result.accepted} of {result.uploads}" if result.uploads else "",
        str(result.killed),
        str(result.died),
        human(result.peak_bytes),
        human(result.kept_bytes),
        f"{result.documents} of {result.expected}",
    )


def observe(system: Contender, case: str, acts: Acts, acting: Awaitable[None]) -> Result:
    """One case, from its first question until the system is up again."""
    group = system.group
    group.begin_peak()
    killed, died, before = group.kills(), system.deaths(), system.documents()
    kept_bytes = asyncio.run(_watched(system, acting))
    result = Result(
        system=system.name,
        case=case,
        outcomes=outcomes(acts.responses),
        uploads=acts.uploads,
        accepted=acts.accepted,
        killed=group.kills() - killed,
        died=system.deaths() - died,
        peak_bytes=group.peak_bytes(),
        kept_bytes=kept_bytes,
        documents=system.documents(),
        expected=before + acts.accepted,
    )
    print(result, file=sys.stderr, flush=True)
    return result


async def _watched(system: Contender, acting: Awaitable[None]) -> int:
    """Let people act while the system is kept up; gives the most memory that it kept."""
    over = asyncio.Event()

    async def act() -> None:
        try:
            await acting
        finally:
            over.set()

    kept_bytes, *_ = await asyncio.gather(
        _most_kept(system.group, over), _keep_up(system, over), act()
    )
    return kept_bytes


async def _most_kept(group: MemoryGroup, over: asyncio.Event) -> int:
    most = group.kept_bytes()
    while not over.is_set():
        await asyncio.sleep(LOOK_S)
        most = max(most, group.kept_bytes())
    return most


async def _keep_up(system: Contender, over: asyncio.Event) -> None:
    while not over.is_set():
        await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(system.keep_up)
    await asyncio.sleep(DYING_S)
    await asyncio.to_thread(system.keep_up)


def make_warm(system: Contender) -> None:
    """Bring a system where it would be after a quiet hour: idle, documents in, one question asked."""
    system.keep_up()
    _wait_calm(system.group)
    if system.documents() < DOCUMENTS:
        corpus.upload(system.program.http)
    asyncio.run(ask_at_once(system, Acts(), 1))


def _wait_calm(group: MemoryGroup) -> None:
    """Until what nobody waits for any more has been computed, or given up."""
    until_s = time.monotonic() + CALM_WITHIN_S
    cpu_s, cores = group.cpu_s(), CALM_CORES
    while cores >= CALM_CORES and time.monotonic() < until_s:
        time.sleep(1)
        cpu_s, cores = group.cpu_s(), abs(group.cpu_s() - cpu_s)


def cases(
    kind: type[Contender], limit_bytes: int, asks: Sequence[int], uploads: int
) -> Iterator[Result]:
    """Every case of one system; it is started for each number of asks, and for the uploads."""
    for number in asks:
        with _started(kind, limit_bytes) as system:
            for warmth in ("cold", "warm"):
                if warmth == "warm":
                    make_warm(system)
                acts, case = Acts(), f"{number} at once, {warmth}"
                yield observe(system, case, acts, ask_at_once(system, acts, number))
    if uploads:
        with _started(kind, limit_bytes) as system:
            make_warm(system)
            acts, case = Acts(), f"uploads, {ASKERS} ask on"
            yield observe(system, case, acts, upload_while_asking(system, acts, uploads))


@contextmanager
def _started(kind: type[Contender], limit_bytes: int) -> Iterator[Contender]:
    with (
        tempfile.TemporaryDirectory() as folder,
        memory_group(limit_bytes) as group,
        kind(group, Path(folder), answer_tokens=ANSWER_TOKENS) as system,
    ):
        yield system


def main() -> int:
    """Run both, and print what came of it; gives the exit code."""
    options = _options()
    limit_bytes = int(options.memory_gib * GIB)
    where, checkout = machine(), commit()
    results: list[Result] = []
    found: list[str] = []
    try:
        with memory_group(limit_bytes) as group:
            limited_by = group.version.name
    except NoMemoryGroup as exc:
        print(f"before_after: {exc}", file=sys.stderr)
        return 2
    for name in options.systems:
        try:
            results.extend(cases(CONTENDERS[name], limit_bytes, options.asks, options.uploads))
        except NotStarted as exc:
            found.append(f"{name} did not start: {exc}")
    found += missed(results)
    about = {
        "machine": where,
        "commit": checkout,
        "limit_bytes": limit_bytes,
        "limited_by": limited_by,
        "patience_s": PATIENCE_S,
        "answer_tokens": ANSWER_TOKENS,
    }
    print(
        f"\n{where}, commit {checkout}, at most {human(limit_bytes)} each ({limited_by}), "
        f"{ANSWER_TOKENS} tokens an answer, patience {PATIENCE_S:g} s\n\n{table(results)}\n"
    )
    print("\n".join(found) or "nothing was missed")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {**about, "results": [asdict(result) for result in results], "missed": found}
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        "--memory-gib", type=float, default=MEMORY_GIB, help="for all processes of a system"
    )
    parser.add_argument(
        "--asks", type=_numbers, default=[1, 2, 3, 10], help="at once, e.g. 1,2,3,10"
    )
    parser.add_argument("--uploads", type=int, default=10, help="0 leaves that case out")
    parser.add_argument(
        "--systems", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), help="in order"
    )
    parser.add_argument("--out", type=Path, default=Path("reports/before-after.json"))
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
