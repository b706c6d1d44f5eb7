"""
What has to come of a load test, and whether it did. Pure.

Most hold under any load: nobody hangs, every failure is a told one, what was accepted stays. How many
are served is only asked of the phases in which there is room for all.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from loadtest.figures import percentile
from loadtest.logbook import BAD, Entry, Logbook, Sample

ASKED = frozenset({"stream", "ask", "openai"})
EASY_PHASES = frozenset({"constant", "half", "before"})
"""Phases whose load a service takes with ease, if USERS was chosen so."""
SOAK = "soak"
GROWS_IN: Mapping[str, Callable[[Sample], float | None]] = MappingProxyType({
    "memory": lambda sample: sample.rss_bytes,
    "threads": lambda sample: sample.threads,
    "open files": lambda sample: sample.open_files,
    "tasks": lambda sample: sample.tasks,
})


@dataclass(frozen=True, slots=True)
class Objective:
    """
    Something that has to hold.

    Attributes:
        name: By which it is set.
        what: In words.
        value: From the logbook; None if there is nothing to judge.
        most: It must not be above.
        least: It must not be below.
    """

    name: str
    what: str
    value: Callable[[Logbook], float | None]
    most: float | None = None
    least: float | None = None

    def at(self, limit: float) -> "Objective":
        """The same with another limit."""
        if self.least is None:
            return replace(self, most=limit)
        return replace(self, least=limit)


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What came of an objective.

    Attributes:
        value: None if there was nothing to judge; then it counts as held.
    """

    objective: Objective
    value: float | None

    @property
    def held(self) -> bool:
        """Whether the value is within the limit."""
        if self.value is None:
            return True
        most, least = self.objective.most, self.objective.least
        return (most is None or self.value <= most) and (least is None or self.value >= least)


def verdicts(book: Logbook, changed: Mapping[str, float] = MappingProxyType({})) -> list[Verdict]:
    """
    Each objective with what came of it.

    Args:
        book: Of a run.
        changed: Limits by name, instead of those that are built in.

    Raises:
        ValueError: If there is no objective of that name.
    """
    known = {objective.name: objective for objective in OBJECTIVES}
    if unknown := sorted(set(changed) - set(known)):
        raise ValueError(
            f"no objective is called {', '.join(unknown)}; there are {', '.join(known)}"
        )
    wanted = [o.at(changed[o.name]) if o.name in changed else o for o in OBJECTIVES]
    return [Verdict(objective, objective.value(book)) for objective in wanted]


def limits(texts: Sequence[str]) -> dict[str, float]:
    """
    Limits by name, of NAME=VALUE as people write them.

    Raises:
        ValueError: If one is not that.
    """
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError as exc:
            raise ValueError(f"{text!r} is no limit: write NAME=VALUE, first_token_s=5") from exc
    return found


def _hung(book: Logbook) -> float:
    return float(sum(entry.outcome == "hung" for entry in book.entries))


def _untold(book: Logbook) -> float:
    return float(sum(entry.outcome in BAD for entry in book.entries))


def _cut(book: Logbook) -> float:
    return float(sum(entry.outcome == "cut" for entry in book.entries))


def _lost(book: Logbook) -> float:
    return float(len(book.lost_documents))


def _first_token_s(book: Logbook) -> float | None:
    times = [e.first_token_s for e in answered(book.entries) if e.first_token_s is not None]
    return percentile(times, 0.99)


def _served(book: Logbook) -> float | None:
    asked = [e for e in book.entries if e.kind in ASKED and e.phase in EASY_PHASES]
    return len(answered(asked)) / len(asked) if asked else None


def _late_ms(book: Logbook) -> float | None:
    late = percentile([entry.late_s for entry in book.entries], 0.99)
    return None if late is None else late * 1000


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """
    How much more the last quarter of a run holds than the second one, by what is held.

    Medians, for all of it goes up and down with what is asked; the first quarter warms up.
    """
    quarter = len(samples) // 4
    found = {}
    for name, pick in GROWS_IN.items():
        before = [v for s in samples[quarter : 2 * quarter] if (v := pick(s)) is not None]
        after = [v for s in samples[-quarter:] if (v := pick(s)) is not None]
        if quarter and before and after and statistics.median(before):
            found[name] = statistics.median(after) / statistics.median(before)
    return found


def _grew(book: Logbook) -> float | None:
    if not any(entry.phase == SOAK for entry in book.entries):
        return None
    asked_until_s = max(entry.at_s for entry in book.entries)
    return max(growth([s for s in book.samples if s.at_s <= asked_until_s]).values(), default=None)


def answered(entries: Sequence[Entry]) -> list[Entry]:
    """Those who got an answer of the model, whole."""
    return [e for e in entries if e.outcome in {"whole", "degraded"} and e.degraded != "L3"]


OBJECTIVES = (
    Objective("hung", "acts without an end, long after the person's patience", _hung, most=0),
    Objective("untold", "failures without a word on when to come back", _untold, most=0),
    Objective("cut", "answers that broke off", _cut, most=0),
    Objective("lost", "documents said to be ready and gone at the end", _lost, most=0),
    Objective(
        "first_token_s", "first token p99, from when it was due (s)", _first_token_s, most=10
    ),
    Objective("served", "share answered in phases with room for all", _served, least=0.9),
    Objective(
        "grew",
        "of memory, threads, files or tasks, in a soak: last quarter / second",
        _grew,
        most=1.1,
    ),
    Objective("late_ms", "sent later than due, p99 (ms): the generator itself", _late_ms, most=250),
)
