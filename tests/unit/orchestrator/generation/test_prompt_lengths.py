"""Estimates of prompts before their passages are known."""

from orchestrator.domain import Message, Question
from orchestrator.generation.prompt_lengths import PromptLengths

QUESTION = Question("Why?", "default", top_k=5, max_tokens=256)


def test_learns_how_long_passages_are():
    """After some prompts the estimate is near, and rather above."""
    lengths = PromptLengths()
    for _ in range(100):
        lengths.learn(QUESTION, num_chunks=5, prompt_tokens=700)
    assert 700 <= lengths.estimate(QUESTION, window_tokens=4096) <= 800


def test_counts_the_history():
    """Earlier turns take room."""
    longer = Question("Why?", "default", 5, 256, history=(Message("user", "x" * 3500),))
    lengths = PromptLengths()
    bare, whole = (lengths.estimate(q, window_tokens=10**6) for q in (QUESTION, longer))
    assert whole - bare > 950


def test_never_exceeds_the_window():
    """What does not fit is left out of the prompt, so it is not reserved either."""
    many = Question("Why?", "default", top_k=50, max_tokens=2048)
    assert PromptLengths().estimate(many, window_tokens=4096) == 2048
