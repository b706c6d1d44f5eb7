"""The people of `before_after`: what they ask and upload, how long they wait, and what they got."""

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx2

from loadtest import corpus
from loadtest.contenders import Contender
from loadtest.figures import REFUSALS
from loadtest.http_client import Client, Response, post
from loadtest.systems import Reading
from loadtest.systems import Tidegate as Wire
from tests.pdfs import HANDBOOK_QUESTIONS

PATIENCE_S = 60.0
ANSWER_TOKENS = 64
ASKERS = 2
"""Who ask on and on while documents are uploaded."""
AFTER_FAILURE_S = 5.0
FIRST_UPLOAD_PAGES = 10

_WIRE = Wire(host="", pool=(), bands=False)


@dataclass(slots=True)
class Acts:
    """What people did in a case: what came of their questions, and of their uploads."""

    responses: list[Response] = field(default_factory=list)
    uploads: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """
    What came of questions.

    Attributes:
        answered: Whole answers with HTTP 200, within the client's patience.
        told: Refusals that say when to come back: 429 or 503 with `Retry-After`.
        failed: Everything else, by code.
        answer_s: Median and longest time of the whole answers; None of none.
    """

    answered: int
    told: int
    failed: dict[str, int]
    answer_s: tuple[float, float] | None

    @property
    def asks(self) -> int:
        """All of them."""
        return self.answered + self.told + sum(self.failed.values())


def outcomes(responses: Sequence[Response]) -> Outcomes:
    """What came of them, counted."""
    took_s: list[float] = []
    told, failed = 0, Counter[str]()
    for response in responses:
        reading = _WIRE.read(response)
        if reading.whole and reading.degraded is None:
            took_s.append(response.took_s)
        elif reading.status in REFUSALS and "retry-after" in response.headers:
            told += 1
        else:
            failed[_failure(reading)] += 1
    times = (statistics.median(took_s), max(took_s)) if took_s else None
    return Outcomes(len(took_s), told, dict(failed), times)


def _failure(reading: Reading) -> str:
    if reading.whole:
        return f"degraded {reading.degraded}"
    return f"HTTP {reading.code}" if reading.code.isdecimal() else reading.code


async def ask(system: Contender, client: Client, number: int) -> Response:
    """What comes of one question."""
    question = HANDBOOK_QUESTIONS[number % len(HANDBOOK_QUESTIONS)].question
    body = {"question": question, "max_tokens": ANSWER_TOKENS, "degrade": False}
    host, port = system.program.address
    request = post("/ask", json.dumps(body).encode(), host=f"{host}:{port}")
    return await client.send(request, give_up_s=time.monotonic() + PATIENCE_S)


async def ask_at_once(system: Contender, acts: Acts, asks: int) -> None:
    """So many people, each with a question, at the same moment."""
    client = Client(*system.program.address)
    acts.responses += await asyncio.gather(*(ask(system, client, n) for n in range(asks)))
    client.close()


async def upload_while_asking(system: Contender, acts: Acts, uploads: int) -> None:
    """Documents one after the other; beside it people who ask without a pause."""
    over = asyncio.Event()

    async def upload() -> None:
        for number in range(uploads):
            acts.uploads += 1
            acts.accepted += await asyncio.to_thread(_uploaded, system, number)
        over.set()

    async def ask_on(number: int) -> None:
        client = Client(*system.program.address)
        while not over.is_set():
            acts.responses.append(await ask(system, client, number))
            if not outcomes(acts.responses[-1:]).answered:
                await asyncio.sleep(AFTER_FAILURE_S)
        client.close()

    await asyncio.gather(upload(), *(ask_on(number) for number in range(ASKERS)))


def _uploaded(system: Contender, number: int) -> bool:
    """Whether a document was taken that nobody has uploaded before."""
    book = corpus.log_book(FIRST_UPLOAD_PAGES + number)
    files = {"file": (f"log-book-{number}.pdf", book)}
    try:
        return system.program.http.post("/upload?wait=true", files=files).is_success
    except httpx2.HTTPError:
        time.sleep(AFTER_FAILURE_S)
        return False


def listed(counts: dict[str, int]) -> str:
    """How many of what, in one line."""
    return ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
