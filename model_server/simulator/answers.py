"""
Prompts as token counts and block keys, answers as lengths and words: the same for the same prompt.

A token is four bytes of the prompt in ChatML. That is within a fifth of real tokenizers on English
prose; it is not meant for counting exactly.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

_BYTES_PER_TOKEN = 4
_LENGTH_SIGMA = 0.6
"""Spread of the log-normal length: the longest of twenty answers is about 2.7 times the median."""

_PIECES = (
    "The harbour gate closes at nine in the evening [1] and opens again at five , "
    "when the duty officer has walked the quay [2] . Ships that arrive later wait at the outer "
    "mooring [1] , where the pilot takes them over once the tide allows it . The log names each "
    "vessel , its draught and its berth [3] . Repairs are announced a week before they begin ."
)
PIECES: Sequence[str] = tuple(
    word if word in {".", ","} else f" {word}" for word in _PIECES.split()
)
"""The tokens that answers are made of; some are citation marks."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """
    A conversation as the engine sees it.

    Attributes:
        tokens: How long it is.
        keys: One for each full block of tokens; equal where two prompts are equal up to there.
        digest: A number of 64 bits that stands for the whole of it.
    """

    tokens: int
    keys: tuple[int, ...]
    digest: int


def content_text(content: Any) -> str:
    """A message's content as one string: a string, or OpenAI's list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(p.get("text", "")) for p in parts if isinstance(p, Mapping))


def render(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """The conversation in ChatML, up to where the assistant would begin."""
    turns = (
        f"<|im_start|>{m.get('role')}\n{content_text(m.get('content'))}<|im_end|>\n"
        for m in messages
    )
    return "".join([*turns, "<|im_start|>assistant\n"]).encode()


def count_tokens(text: bytes) -> int:
    """How many tokens a text is."""
    return -(-len(text) // _BYTES_PER_TOKEN)


def read_prompt(text: bytes, *, block_size: int, seed: int) -> Prompt:
    """A rendered conversation, counted and keyed."""
    span = block_size * _BYTES_PER_TOKEN
    keys: list[int] = []
    key = 0
    for end in range(span, len(text) + 1, span):
        key = hash((key, text[end - span : end]))
        keys.append(key)
    digest = hashlib.blake2b(text, digest_size=8, salt=seed.to_bytes(8, "big")).digest()
    return Prompt(count_tokens(text), tuple(keys), int.from_bytes(digest, "big"))


def natural_length(prompt: Prompt, *, mean_tokens: float) -> int:
    """How long the answer gets if nothing cuts it short: log-normal across prompts, at least 1."""
    # Half a step away from 0 and 1, which have no quantile.
    quantile = ((prompt.digest >> 12) + 0.5) / 2**52
    mu = math.log(mean_tokens) - _LENGTH_SIGMA**2 / 2
    return max(1, round(math.exp(NormalDist(mu, _LENGTH_SIGMA).inv_cdf(quantile))))


def pieces(prompt: Prompt, start: int, stop: int) -> str:
    """The answer's text from token `start` to before token `stop`."""
    shift = prompt.digest % len(PIECES)
    return "".join(PIECES[(shift + place) % len(PIECES)] for place in range(start, stop))
