"""Share the context window between instructions, history, passages and the answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain import Message, Passage, Question
from orchestrator.errors import ContextTooLong
from orchestrator.generation.neighbours import joined
from orchestrator.generation.prompt import assemble, passage_block
from orchestrator.generation.tokenizer import TokenCounter

BLOCK_MARGIN_TOKENS = 4
"""Tokens that joining a passage's block to its neighbours may add to the sum of the parts."""

UNCOUNTED_SHARE = 8
"""
The sum of the parts is believed while one part in so many is left free. Counting the whole prompt
takes longer than everything else between the question and the engine.
"""


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """
    A prompt that fits.

    Attributes:
        passages: Those that found room, best first.
        prompt_tokens: What the prompt takes at most. Exact if the counter is and room is short; else
            the sum of the parts, a few tokens a passage above (2 with the bundled model's tokenizer).
    """

    messages: tuple[Message, ...]
    passages: tuple[Passage, ...]
    prompt_tokens: int


def fit(
    question: Question, passages: Sequence[Passage], *, counter: TokenCounter, window_tokens: int
) -> FittedPrompt:
    """
    The largest prompt that leaves room for `question.max_tokens`.

    Passages give way before the question does, worst first; history gives way before passages,
    oldest first. Those that stay and follow one another on a page are joined, which takes no more.

    Raises:
        ContextTooLong: If the question alone does not fit.
    """
    room = window_tokens - question.max_tokens
    history, tokens = _history_that_fits(question, counter=counter, room=room)
    left = room - tokens
    kept: list[Passage] = []
    for passage in passages:
        cost = _block_tokens(len(kept) + 1, passage, counter)
        if cost > left:
            break
        kept.append(passage)
        left -= cost
    total = room - left
    if total <= room - room // UNCOUNTED_SHARE:
        sources = joined(kept)
        messages = _prompt(question, sources, history, counter)
        return FittedPrompt(tuple(messages), sources, total)
    return _confirm(question, kept, history, counter=counter, room=room)


def _prompt(
    question: Question,
    passages: Sequence[Passage],
    history: Sequence[Message],
    counter: TokenCounter,
) -> list[Message]:
    return assemble(question.text, passages, history, takes_system=counter.takes_system)


def _history_that_fits(
    question: Question, *, counter: TokenCounter, room: int
) -> tuple[tuple[Message, ...], int]:
    """
    The newest turns that leave half of the room to the passages; system turns always stay.

    Returns:
        The turns, and what the prompt takes with them and without passages, in tokens.
    """
    bare = counter.count_messages(_prompt(question, (), (), counter))
    if bare > room:
        raise ContextTooLong(
            f"The question takes {bare} tokens, and only {room} are left beside an answer of "
            f"{question.max_tokens}. Shorten the question, or ask for a shorter answer.",
            param="question",
        )
    kept = list(question.history)
    while kept:
        tokens = counter.count_messages(_prompt(question, (), kept, counter))
        if tokens <= (room + bare) // 2:
            return tuple(kept), tokens
        oldest = next((i for i, m in enumerate(kept) if m.role != "system"), None)
        if oldest is None:
            raise ContextTooLong(
                "The system message leaves no room for passages. Shorten it.", param="messages"
            )
        del kept[oldest]
    return (), bare


def _block_tokens(n: int, passage: Passage, counter: TokenCounter) -> int:
    """A passage's cost: its text was counted at ingestion, only the line above it is new."""
    header = passage_block(n, passage).removesuffix(f"{passage.text}\n")
    return counter.count(header) + passage.prompt_tokens + BLOCK_MARGIN_TOKENS


def _confirm(
    question: Question,
    kept: list[Passage],
    history: tuple[Message, ...],
    *,
    counter: TokenCounter,
    room: int,
) -> FittedPrompt:
    """The exact count of the assembled prompt; parts that do not add up cost the last passage."""
    while True:
        sources = joined(kept)
        messages = _prompt(question, sources, history, counter)
        tokens = counter.count_messages(messages)
        if tokens <= room or not kept:
            return FittedPrompt(tuple(messages), sources, tokens)
        kept.pop()
