"""How long a prompt will be, before its passages are known."""

from orchestrator.domain import Question
from orchestrator.generation.prompt import SYSTEM

CHARS_PER_TOKEN = 3.5
TEMPLATE_TOKENS = 24
SMOOTHING = 0.1
MARGIN = 1.1
FIRST_GUESS_TOKENS = 220
"""A chunk of 150 of the embedder's tokens, with its heading line, in a usual model's tokens."""


class PromptLengths:
    """Estimates from the question's own length and the mean length of the chunks so far."""

    def __init__(self) -> None:
        self._chunk_tokens = float(FIRST_GUESS_TOKENS)

    def estimate(self, question: Question, *, window_tokens: int) -> int:
        """
        Tokens that the prompt of `question` will take, rather above than below.

        Args:
            question: What is asked, with its history.
            window_tokens: The engine's context window; no prompt gets longer.
        """
        bare = _bare_tokens(question)
        whole = bare + question.top_k * self._chunk_tokens * MARGIN
        return max(1, min(round(whole), window_tokens - question.max_tokens))

    def learn(self, question: Question, *, num_chunks: int, prompt_tokens: int) -> None:
        """A prompt was assembled."""
        if num_chunks:
            seen = (prompt_tokens - _bare_tokens(question)) / num_chunks
            self._chunk_tokens += SMOOTHING * (max(seen, 1.0) - self._chunk_tokens)


def _bare_tokens(question: Question) -> float:
    turns = sum(len(m.content) for m in question.history)
    chars = len(SYSTEM) + len(question.text) + turns
    return chars / CHARS_PER_TOKEN + TEMPLATE_TOKENS * (1 + len(question.history))
