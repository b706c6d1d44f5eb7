"""
What a load test wrote down: each act with what came of it, and each second what the service said of itself.

Everything that is shown later (table, objectives, pictures) is made from this, so that a run can be
looked at again without being run again. Times are seconds since the start.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from loadtest.figures import REFUSALS

Outcome = Literal["whole", "degraded", "told", "left", "failed", "cut", "hung"]
"""
`told`: refused in the service's own words (`refused`); `left`: the person hung up; `cut`: an answer that broke off;
`hung`: no end long after the person's patience; `failed`: everything else.
"""
OUTCOMES: tuple[Outcome, ...] = ("whole", "degraded", "told", "left", "failed", "cut", "hung")
BAD: frozenset[Outcome] = frozenset({"failed", "cut", "hung"})
OK, GATEWAY_TIMEOUT = 200, 504
BUG = "internal_error"


@dataclass(slots=True)
class Try:
    """
    One attempt.

    Attributes:
        status: HTTP status; 0 if none came.
        code: The service's own word for an error, else empty.
        told_s: The `Retry-After` that came with it.
        took_s: From sending to the end.
    """

    status: int
    code: str = ""
    told_s: float | None = None
    took_s: float = 0.0


@dataclass(slots=True)
class Entry:
    """
    One act of one person.

    Attributes:
        at_s: When it was due.
        late_s: How much later it was sent.
        kind: As in `workload.Kind`.
        phase: Name of the phase.
        outcome: How it ended.
        degraded: "L1", "L2" or "L3" of a lesser answer.
        first_token_s: From when it was due, over all tries, to the first token; None without one.
        total_s: From when it was due to its end.
        gap_max_s: Longest pause between two pieces of the answer; None without a stream.
        completion_tokens: Of the answer, if it said.
        document: Id of what was uploaded.
    """

    at_s: float
    kind: str
    phase: str
    late_s: float = 0.0
    outcome: Outcome = "hung"
    degraded: str | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    gap_max_s: float | None = None
    completion_tokens: int = 0
    document: str | None = None
    tries: list[Try] = field(default_factory=list)


@dataclass(slots=True)
class Sample:
    """
    The service at one moment; None is what it does not say.

    Attributes:
        people: Whom locust had there.
        open: Acts that had no end yet.
        rss_bytes: Of the orchestrator and its children.
        kv_usage: Share of the engine's cache in use, 0 to 1.
    """

    at_s: float
    people: int
    open: int
    running: int | None = None
    queued: int | None = None
    reserved_tokens: int | None = None
    rss_bytes: int | None = None
    tasks: int | None = None
    threads: int | None = None
    open_files: int | None = None
    kv_usage: float | None = None


@dataclass(slots=True)
class Logbook:
    """
    All of it.

    Attributes:
        about: Settings, machine, commit.
        lost_documents: That were said to be ready, and were not there at the end.
    """

    about: dict[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    lost_documents: list[str] = field(default_factory=list)


def refused(last: Try) -> Outcome:
    """
    What an attempt without an answer was: told, or a failure.

    Told is a refusal that says when to come back, a deadline that was up, and an error event in a stream
    that had begun: it has the service's own code. A bug of the service is none of them.
    """
    if last.code == BUG:
        return "failed"
    if last.status in REFUSALS:
        return "failed" if last.told_s is None else "told"
    return "told" if last.code and last.status in {OK, GATEWAY_TIMEOUT} else "failed"


def write(book: Logbook, path: Path) -> None:
    """Save it as one JSON object a line: what each is stands first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        _lines(file, "about", [{**book.about, "lost_documents": book.lost_documents}])
        _lines(file, "entry", map(asdict, book.entries))
        _lines(file, "sample", map(asdict, book.samples))


def read(path: Path) -> Logbook:
    """
    The same from its file.

    Raises:
        OSError: If there is none.
    """
    book = Logbook()
    for line in path.read_text(encoding="utf-8").splitlines():
        ((kind, values),) = json.loads(line).items()
        if kind == "about":
            book.lost_documents = values.pop("lost_documents")
            book.about = values
        elif kind == "entry":
            tries = [Try(**one) for one in values.pop("tries")]
            book.entries.append(Entry(**values, tries=tries))
        else:
            book.samples.append(Sample(**values))
    return book


def _lines(file: TextIO, kind: str, values: Iterable[dict[str, Any]]) -> None:
    file.writelines(json.dumps({kind: value}) + "\n" for value in values)
