"""
What people do: questions about hot and cold documents, uploads, and how they hang up. Pure and seeded.

Two sources: people who are made up here, or the rows of a trace of a real service, whose hot passages,
sessions and answer lengths are kept.
"""

import json
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from loadtest.arrivals import Mix

Kind = Literal["stream", "ask", "openai", "leave", "upload"]
"""
`stream` and `ask`: our own route, as it comes or at once; `openai`: the `openai` client; `leave`: hangs
up in the middle; `upload`: a document, until it can be searched.
"""

KINDS: Mapping[Kind, float] = MappingProxyType({
    "stream": 0.55,
    "ask": 0.15,
    "openai": 0.15,
    "leave": 0.12,
    "upload": 0.03,
})
HOT_DOCUMENTS = 1.1
"""Exponent of Zipf's law, by which documents are asked about; real services have some 0.7 to 1.3."""
FOLLOW_UPS = 0.3
"""How many questions follow the one before."""
LEAVE_WITHIN_S = 3.0
LONG_ANSWER_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Question:
    """
    Something that can be asked.

    Attributes:
        document: The name of the file that it is about.
        text: In a person's words.
    """

    document: str
    text: str


@dataclass(frozen=True, slots=True)
class Act:
    """
    What one person does once.

    Attributes:
        question: Empty with an upload.
        max_tokens: Longest answer.
        history: Earlier turns, as (role, content).
        leave_after_s: When a person who leaves hangs up, counted from sending.
        number: Makes an uploaded document one of its kind.
    """

    kind: Kind
    question: str = ""
    max_tokens: int = 0
    history: tuple[tuple[str, str], ...] = ()
    leave_after_s: float = 0.0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Habits:
    """
    What the people of a run are like.

    Attributes:
        kinds: How often each act is.
        mix: Lengths of answers.
        think_s: Mean time between two acts of a person. People don't wait for the answer before the
            next: whoever does lets a slow service choose its own load.
    """

    kinds: Mapping[Kind, float] = field(default_factory=lambda: KINDS)
    mix: Mix = field(default_factory=Mix)
    think_s: float = 30.0


class Workload:
    """
    Draws what people do.

    Args:
        questions: What can be asked.
        habits: What people are like.
        seed: The same seed makes the same documents hot.
    """

    def __init__(self, questions: Sequence[Question], habits: Habits, *, seed: int) -> None:
        if not questions:
            raise ValueError("there is nothing to ask: give a file with at least one question")
        self._by_document: dict[str, list[Question]] = {}
        for question in questions:
            self._by_document.setdefault(question.document, []).append(question)
        self._documents = sorted(self._by_document)
        random.Random(seed).shuffle(self._documents)  # noqa: S311 - a reproducible load, no secret
        self._heat = [(rank + 1) ** -HOT_DOCUMENTS for rank in range(len(self._documents))]
        self._habits = habits

    def pause_s(self, rng: random.Random) -> float:
        """Seconds until a person's next act; exponential, so that all together are a Poisson process."""
        return rng.expovariate(1 / self._habits.think_s)

    def act(self, rng: random.Random, before: str = "") -> Act:
        """
        The next act of a person.

        Args:
            rng: The person's own.
            before: What the person asked last.
        """
        kinds = self._habits.kinds
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        if kind == "upload":
            return Act(kind, number=rng.getrandbits(32))
        document = rng.choices(self._documents, self._heat)[0]
        follows = bool(before) and rng.random() < FOLLOW_UPS
        return Act(
            kind,
            rng.choice(self._by_document[document]).text,
            self._habits.mix.max_tokens(rng),
            _turns(before) if follows else (),
            leave_after_s=rng.uniform(0, LEAVE_WITHIN_S),
        )


@dataclass(frozen=True, slots=True)
class Arrival:
    """
    One row of a trace, as it is played.

    Attributes:
        at_s: Seconds from the start, compressed.
        person: Of the row's session.
    """

    at_s: float
    person: str
    act: Act


def replay(
    rows: Iterable[Mapping[str, object]], questions: Sequence[Question], *, speed: float
) -> list[Arrival]:
    """
    A trace as acts on the documents that there are here.

    The same first passage asks the same question, so that what was hot there is hot here; a session is
    a person, whose question before is the history of the next.

    Args:
        rows: `at_s`, `output_tokens`, `session`, `passages`.
        questions: What can be asked here.
        speed: How much faster than it was.

    Raises:
        ValueError: If a row lacks one of them.
    """
    last: dict[str, str] = {}
    arrivals = []
    for number, row in enumerate(rows, start=1):
        try:
            passages, session = row["passages"], str(row["session"])
            at_s, tokens = float(str(row["at_s"])), int(str(row["output_tokens"]))
        except (KeyError, ValueError) as exc:
            raise ValueError(
                f"row {number} of the trace is not one: it needs at_s (seconds), output_tokens, "
                f"session and passages ({exc!r})"
            ) from exc
        hot = passages[0] if isinstance(passages, list) and passages else number
        text = questions[zlib.crc32(str(hot).encode()) % len(questions)].text
        act = Act("stream", text, max(tokens, 1), _turns(last.get(session, "")))
        arrivals.append(Arrival(at_s / speed, session, act))
        last[session] = text
    return arrivals


def read_rows(path: Path) -> list[dict[str, object]]:
    """The objects of a file with one JSON object a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def read_questions(path: Path) -> list[Question]:
    """
    The questions of a file with `pdf` and `question` in each line.

    Raises:
        ValueError: If a line lacks one of them.
    """
    try:
        return [Question(str(row["pdf"]), str(row["question"])) for row in read_rows(path)]
    except KeyError as exc:
        raise ValueError(f"{path} has a line without {exc}: each needs pdf and question") from exc


def long_question() -> Act:
    """One of those that a naive service takes until its memory is gone."""
    text = "Write 5000 words about everything that stands in these documents."
    return Act("ask", text, LONG_ANSWER_TOKENS)


def _turns(question: str) -> tuple[tuple[str, str], ...]:
    if not question:
        return ()
    return (("user", question), ("assistant", "That stands in the document [1]."))
