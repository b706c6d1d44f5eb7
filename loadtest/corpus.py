"""
What is asked, and of which documents: the sample handbook, and a log book that is made here.

The log book has enough pages that sixteen different passages can be found for a question. The engine
is given, by itself, the very prompt that the orchestrator would have made.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import httpx2

from loadtest.arrivals import SIZES, Size
from orchestrator.domain import ChunkId, DocumentId, Message, Passage
from orchestrator.generation.prompt import assemble
from tests.pdfs import HANDBOOK_QUESTIONS, handbook, text_pdf

NONCE = "0123456789abcdef"
"""Stands in a prompt where each request has its own."""

LOG_PAGES = 60
PROMPTS_OF_A_SIZE = 30

GATES = ("Adam", "Berta", "Caesar", "David")
KEEPERS = ("Varn", "Osk", "Lindqvist", "Marrable", "Teague", "Holm", "Brandt", "Yelland")
WORK = (
    "greased the bearings of the lifting chain and found one link worn",
    "cleared driftwood from the trash rack with the long boat hook",
    "measured the sill with the lead line and wrote the depth on the board",
    "changed the lamp of the amber light on the northern pier",
    "drained water from the oil separator and entered it in the green book",
    "painted the tide board again, since the lower figures could not be read",
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    A question with what stands before it.

    Attributes:
        top_k: Passages to be put before the model.
        history: Earlier turns as (role, content); an assistant's turn holds the NONCE.
        messages: The prompt as the engine gets it, once it has been assembled.
    """

    size: Size
    question: str
    top_k: int
    history: tuple[tuple[str, str], ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Sizes:
    """
    What a prompt of each size is.

    Attributes:
        top_k: Passages, by size.
        turns: Earlier questions with their answers, by size.
    """

    top_k: Mapping[Size, int]
    turns: Mapping[Size, int]


GPU_SIZES = Sizes(
    top_k=MappingProxyType({"small": 2, "medium": 6, "large": 16}),
    turns=MappingProxyType({"small": 0, "medium": 1, "large": 3}),
)
CPU_SIZES = Sizes(
    top_k=MappingProxyType({"small": 1, "medium": 2, "large": 5}),
    turns=MappingProxyType({"small": 0, "medium": 1, "large": 1}),
)


def log_book(pages: int = LOG_PAGES) -> bytes:
    """A PDF of watch reports, one a page, no two alike; the same bytes every time."""
    rng = random.Random("log book")  # noqa: S311 - text for a load test
    return text_pdf([_watch(n, rng) for n in range(1, pages + 1)])


def prompts(sizes: Sizes, *, of_a_size: int = PROMPTS_OF_A_SIZE) -> list[Prompt]:
    """Prompts of every size, all about what stands in the documents."""
    rng = random.Random("prompts")  # noqa: S311 - text for a load test
    return [
        Prompt(
            size=size,
            question=_question(rng),
            top_k=sizes.top_k[size],
            history=tuple(turn for _ in range(sizes.turns[size]) for turn in _earlier_turns(rng)),
        )
        for size in SIZES
        for _ in range(of_a_size)
    ]


def upload(http: httpx2.Client) -> None:
    """Put the documents in, and wait until they can be searched."""
    for name, data in (("handbook.pdf", handbook()), ("log-book.pdf", log_book())):
        http.post("/upload?wait=true", files={"file": (name, data)}).raise_for_status()


def assembled(http: httpx2.Client, bare: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with the messages that the orchestrator would send to the engine for them."""
    return [Prompt(p.size, p.question, p.top_k, p.history, tuple(_messages(http, p))) for p in bare]


def found_passages(http: httpx2.Client, search: dict[str, Any]) -> list[Passage]:
    """What `/search` finds, as the prompt is made of it."""
    found: list[dict[str, Any]] = (
        http.post("/search", json=search).raise_for_status().json()["passages"]
    )
    return [
        Passage(
            ChunkId(n), DocumentId(p["document_id"]), p["filename"], p["page"], p["page"],
            0, 0, p["text"], p["score"], 0,
        )
        for n, p in enumerate(found)
    ]  # fmt: skip


def _messages(http: httpx2.Client, prompt: Prompt) -> list[dict[str, str]]:
    asked = [content for role, content in prompt.history if role == "user"]
    # As the orchestrator searches: with the question before this one.
    text = f"{asked[-1]}\n{prompt.question}" if asked else prompt.question
    passages = found_passages(http, {"question": text, "top_k": prompt.top_k})
    history = [Message("user" if r == "user" else "assistant", text) for r, text in prompt.history]
    return [
        {"role": m.role, "content": m.content} for m in assemble(prompt.question, passages, history)
    ]


def _question(rng: random.Random) -> str:
    if rng.random() < 0.5:  # noqa: PLR2004 - half of the questions are the handbook's
        return rng.choice(HANDBOOK_QUESTIONS).question
    return (
        f"What did keeper {rng.choice(KEEPERS)} write about gate {rng.choice(GATES)} "
        f"on watch {rng.randint(1, LOG_PAGES)}?"
    )


def _earlier_turns(rng: random.Random) -> list[tuple[str, str]]:
    answer = (
        f"Entry {NONCE} of the station's log says that the keeper {rng.choice(WORK)}, and that he "
        f"{rng.choice(WORK)} later on the same watch [1]."
    )
    return [("user", _question(rng)), ("assistant", answer)]


def _watch(number: int, rng: random.Random) -> str:
    lines = [f"Log book, watch {number}, keeper {rng.choice(KEEPERS)} with {rng.choice(KEEPERS)}."]
    for gate in GATES:
        lines += [
            f"Gate {gate}: water {rng.uniform(0.4, 3.9):.2f} m, wind {rng.randrange(2, 11)}.",
            f"The keeper {rng.choice(WORK)}.",
            f"At turn of tide he {rng.choice(WORK)}.",
            f"Vessels locked: {rng.randrange(30)}; crowns taken: {rng.randrange(900)}.",
        ]
    return "\n".join(lines)
