"""What goes into the context window, and what gives way."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain import ChunkId, DocumentId, Message, Passage, Question
from orchestrator.errors import ContextTooLong
from orchestrator.generation.token_budget import BLOCK_MARGIN_TOKENS, fit


class Words:
    """A tokenizer whose tokens are words; each message costs 3 more."""

    exact = True
    fingerprint = "words"
    takes_system = True

    def count(self, text: str) -> int:
        return len(text.split())

    def count_messages(self, messages) -> int:
        return sum(self.count(m.content) + 3 for m in messages)


def passage(n: int, words: int) -> Passage:
    text = " ".join(["word"] * words)
    return Passage(ChunkId(n), DocumentId("d"), "a.pdf", n, n, 0, 1, text, 0.9, words)


def question(text: str = "why", max_tokens: int = 50, history=()) -> Question:
    return Question(text, "default", 5, max_tokens, history=tuple(history))


def test_takes_every_passage_that_fits():
    """With room enough nothing is left out."""
    prompt = fit(question(), [passage(1, 20), passage(2, 20)], counter=Words(), window_tokens=1000)
    assert len(prompt.passages) == 2


class Counting(Words):
    """Notes which prompts are counted as a whole."""

    def __init__(self) -> None:
        self.counted: list[int] = []

    def count_messages(self, messages) -> int:
        self.counted.append(messages[-1].content.count(", page "))
        return super().count_messages(messages)


def test_a_prompt_with_room_to_spare_is_not_counted_again():
    """The sum of its parts is enough then: never below the exact count, and hardly above."""
    counter = Counting()
    prompt = fit(question(), [passage(1, 20), passage(2, 20)], counter=counter, window_tokens=1000)
    exact = Words().count_messages(prompt.messages)
    assert exact <= prompt.prompt_tokens <= exact + 2 * BLOCK_MARGIN_TOKENS
    assert counter.counted == [0]


def test_a_prompt_that_nearly_fills_the_window_is_counted_exactly():
    """Where room is short, every token counts."""
    counter = Counting()
    prompt = fit(question(), [passage(1, 60), passage(2, 60)], counter=counter, window_tokens=270)
    assert len(prompt.passages) == 2
    assert prompt.prompt_tokens == Words().count_messages(prompt.messages) <= 220
    assert counter.counted == [0, 2]


def test_the_worst_passages_give_way_first():
    """The best ranked stay, in order."""
    passages = [passage(1, 60), passage(2, 60), passage(3, 60)]
    prompt = fit(question(), passages, counter=Words(), window_tokens=290)
    assert [p.page for p in prompt.passages] == [1, 2]


def test_the_oldest_turns_give_way_first():
    """History yields to passages; the newest turn stays longest, a system turn always."""
    history = [
        Message("system", "be brief"),
        Message("user", "ancient " * 100),
        Message("assistant", "newer"),
    ]
    prompt = fit(question(history=history), [passage(1, 20)], counter=Words(), window_tokens=300)
    contents = [m.content for m in prompt.messages]
    assert "newer" in contents
    assert not any("ancient" in c for c in contents)
    assert "be brief" in contents[0]
    assert prompt.passages


def test_a_question_that_cannot_fit_is_told_so():
    """The message names the sizes and what to do."""
    with pytest.raises(ContextTooLong, match="Shorten the question"):
        fit(question("long " * 500), [], counter=Words(), window_tokens=300)


class Surprising(Words):
    """A tokenizer for which the whole is more than the sum of its parts."""

    def count_messages(self, messages) -> int:
        return super().count_messages(messages) + 20 * messages[-1].content.count(", page ")


def test_the_assembled_prompt_is_counted_again():
    """Where the parts do not add up, the last passages give way to the exact count."""
    passages = [passage(n, 30) for n in range(1, 7)]
    prompt = fit(question(), passages, counter=Surprising(), window_tokens=340)
    assert 0 < len(prompt.passages) < 6
    assert prompt.prompt_tokens == Surprising().count_messages(prompt.messages) <= 340 - 50


@given(
    st.lists(st.integers(1, 120), max_size=8),
    st.integers(120, 900),
    st.integers(1, 40),
)
def test_prompt_and_answer_never_exceed_the_window(sizes, window, max_tokens):
    """Whatever is found, the engine is never asked for more than it has."""
    passages = [passage(n, words) for n, words in enumerate(sizes, start=1)]
    prompt = fit(question(max_tokens=max_tokens), passages, counter=Words(), window_tokens=window)
    exact = Words().count_messages(prompt.messages)
    assert exact <= prompt.prompt_tokens <= window - max_tokens


def test_chunks_are_fitted_one_by_one_and_then_joined():
    """What has no room gives way alone; those that stay and follow one another are one source."""
    text = " ".join(f"word{n}" for n in range(40))
    ends = [len(" ".join(text.split()[: 10 * n])) for n in range(5)]
    chunks = [
        Passage(ChunkId(n), DocumentId("d"), "a.pdf", 1, 1, start, end, text[start:end], 0.9, 10)
        for n, (start, end) in enumerate(pairwise(ends))
    ]
    whole = fit(question(), chunks, counter=Words(), window_tokens=1000)
    assert [(p.chunks, p.text) for p in whole.passages] == [
        (3, text[: ends[3]]),
        (1, text[ends[3] :]),
    ]
    bare = fit(question(), [], counter=Words(), window_tokens=1000).prompt_tokens
    room = bare + 2 * (10 + 10 + BLOCK_MARGIN_TOKENS)
    short = fit(question(max_tokens=50), chunks, counter=Words(), window_tokens=room + 50)
    assert [p.chunks for p in short.passages] == [2]
