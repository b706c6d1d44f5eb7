"""
`[n]` marks: kept when they point to a passage, removed when they do not, added when missing.

A model may invent a number, or answer from a passage without naming it. The first would be a lie on
the page; the second leaves a reader without a source.
"""

import re
from collections.abc import Sequence

from orchestrator.domain import Citation, Passage

_MARK = re.compile(r"\[(\d{1,3})\]")
_PARTIAL = re.compile(r"\[\d{0,3}$")
_WORD = re.compile(r"[^\W_]{3,}|\d+")

MIN_SUPPORT = 0.5
"""Share of the answer's words that one passage must hold to be named as its source."""
MIN_WORDS = 3
"""Fewer words than this (a bare "Yes.") support nothing."""


class MarkFilter:
    """
    Streamed text without marks that point nowhere.

    Holds back at most four characters: a "[" and the digits after it, until it is clear what they
    are.
    """

    def __init__(self, num_passages: int) -> None:
        self._num_passages = num_passages
        self._held = ""
        self.cited: set[int] = set()

    def feed(self, text: str) -> str:
        """The part of the stream that can be shown now."""
        text = self._held + text
        partial = _PARTIAL.search(text)
        self._held = partial.group() if partial else ""
        return self._clean(text[: partial.start()] if partial else text)

    def flush(self) -> str:
        """What was held back when the stream ended."""
        text, self._held = self._held, ""
        return self._clean(text)

    def _clean(self, text: str) -> str:
        return _MARK.sub(self._keep, text) if "[" in text else text

    def _keep(self, match: re.Match[str]) -> str:
        n = int(match.group(1))
        if 1 <= n <= self._num_passages:
            self.cited.add(n)
            return match.group()
        return ""


def marks(text: str) -> list[tuple[int, int]]:
    """Each mark of a text: (its number, where it begins)."""
    return [(int(match.group(1)), match.start()) for match in _MARK.finditer(text)]


def missing_mark(answer: str, passages: Sequence[Passage]) -> str:
    """
    The mark to append to an answer that carries none, or "".

    It names the passage that holds the largest share of the answer's words, if that share is at
    least `MIN_SUPPORT`; ties go to the better ranked one. Nothing is named when unsure.
    """
    words = _words(answer)
    if len(words) < MIN_WORDS or not passages:
        return ""
    shares = [len(words & _words(p.text)) / len(words) for p in passages]
    best = max(range(len(shares)), key=lambda i: (shares[i], -i))
    return f" [{best + 1}]" if shares[best] >= MIN_SUPPORT else ""


def number(passages: Sequence[Passage], cited: set[int]) -> tuple[Citation, ...]:
    """Every passage that the model saw, numbered from 1, those that the answer marks flagged."""
    return tuple(Citation(n, p, n in cited) for n, p in enumerate(passages, start=1))


def _words(text: str) -> set[str]:
    return {word.casefold() for word in _WORD.findall(text)}
