"""
What would fit where a model does not: less context, fewer at once, a quantized or a smaller model.

Pure. Whether something fits is for the planner to say; here is what is worth asking it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from model_server.checkpoint import ModelShape
from model_server.memory import SERVED_DTYPE_BYTES, human, weights_bytes

SHOWN = 3

MIN_CONTEXT_TOKENS = 512
"""A question with one passage and a short answer takes about this; less helps nobody."""

EIGHT_BIT, FOUR_BIT = 8.1, 4.25
"""
Bits a weight of a quantized layer takes, its scales and zero points included.

Source:
    Lin et al. 2024, "AWQ" (MLSys), and Frantar et al. 2023, "GPTQ" (ICLR): groups of 128 weights
    with a 16-bit scale and a 4-bit zero point, 4.16 bits; FP8 has one scale a channel.
"""
_QUANTIZED = (
    (EIGHT_BIT, "an FP8 checkpoint"),
    (FOUR_BIT, "a 4-bit checkpoint (AWQ, GPTQ)"),
)


class Fits(Protocol):
    """Whether one sequence of full length finds room beside everything else."""

    def __call__(self, shape: ModelShape, /, *, length: int, seqs: int) -> bool:
        """True if it does; more of anything never fits better."""
        ...


def alternatives(
    shape: ModelShape, *, length: int, seqs: int, block_tokens: int, fits: Fits
) -> tuple[str, ...]:
    """
    Up to three things that would fit, each in words that can be acted on; the nearest first.

    Args:
        shape: The model that does not fit.
        length: Tokens of prompt and answer together that were asked for.
        seqs: Sequences in one batch that were asked for.
        block_tokens: Tokens in one block of the KV cache; lengths are told in whole ones.
        fits: The planner's answer for this device and these goals.
    """
    found = (
        _shorter(shape, length, seqs, block_tokens, fits),
        _fewer(shape, length, seqs, fits),
        _quantized(shape, length, seqs, fits),
        _smaller(shape, length, seqs, fits),
    )
    return tuple(text for text in found if text is not None)[:SHOWN]


def quantized(shape: ModelShape, bits: float) -> ModelShape:
    """
    The same model with its layers at so many bits a weight; the embeddings stay as they are.

    Taken as two tables of vocab_size * hidden_size, though many models have one: the layers left
    over are fewer then, and the estimate errs upwards.
    """
    whole = weights_bytes(shape)
    embeddings = min(2 * shape.vocab_size * shape.hidden_size * SERVED_DTYPE_BYTES, whole)
    layers = int((whole - embeddings) * bits / (8 * SERVED_DTYPE_BYTES))
    return replace(shape, weight_bytes=embeddings + layers, float32_bytes=0)


def _shorter(
    shape: ModelShape, length: int, seqs: int, block_tokens: int, fits: Fits
) -> str | None:
    blocks = _largest(
        (length - 1) // block_tokens,
        lambda n: fits(shape, length=n * block_tokens, seqs=seqs),
    )
    tokens = blocks * block_tokens
    if tokens < min(MIN_CONTEXT_TOKENS, length - 1):
        return None
    return f"MODEL_SERVER_MAX_MODEL_LEN={tokens} with the KV cache left to the plan"


def _fewer(shape: ModelShape, length: int, seqs: int, fits: Fits) -> str | None:
    count = _largest(seqs - 1, lambda n: fits(shape, length=length, seqs=n))
    return f"MODEL_SERVER_MAX_NUM_SEQS={count}" if count else None


def _quantized(shape: ModelShape, length: int, seqs: int, fits: Fits) -> str | None:
    if shape.quantization is not None:
        return None
    for bits, name in _QUANTIZED:
        less = quantized(shape, bits)
        if fits(less, length=length, seqs=seqs):
            return f"{name} of the same model, about {human(less.weight_bytes)} of weights"
    return None


def _smaller(shape: ModelShape, length: int, seqs: int, fits: Fits) -> str | None:
    """The other sums are those of the model at hand: a smaller one has smaller ones, too."""
    step = 1 << 26
    steps = _largest(
        weights_bytes(shape) // step,
        lambda n: fits(
            replace(shape, weight_bytes=n * step, float32_bytes=0), length=length, seqs=seqs
        ),
    )
    if not steps:
        return None
    billions = steps * step / SERVED_DTYPE_BYTES / 1e9
    return (
        f"a smaller model, of at most {human(steps * step)} of weights "
        f"({billions:.1f} billion at 16 bits)"
    )


def _largest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest n from 1 to `most` that holds; 0 if none does. What holds, holds for less."""
    low, high = 0, max(most, 0)
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
