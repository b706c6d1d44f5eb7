"""The arithmetic of memory, against published figures."""

import pytest

from model_server.memory import (
    GIB,
    KIB,
    activation_bytes,
    human,
    kv_bytes_per_token,
    weights_bytes,
    whole_blocks,
)
from tests.unit.model_server.making import make_shape


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "expected"),
    [
        pytest.param(40, 40, 128, 800 * KIB, id="OPT-13B, PagedAttention section 3"),
        pytest.param(32, 32, 128, 512 * KIB, id="Llama-2-7B"),
        pytest.param(32, 8, 128, 128 * KIB, id="Llama-3-8B"),
        pytest.param(30, 3, 64, 23_040, id="SmolLM2-135M"),
    ],
)
def test_kv_bytes_per_token_of_known_models(layers, kv_heads, head_dim, expected):
    """A token of a known model takes the bytes that its paper or configuration gives."""
    shape = make_shape(
        num_layers=layers, num_heads=kv_heads, num_kv_heads=kv_heads, head_dim=head_dim
    )
    assert kv_bytes_per_token(shape) == expected


def test_one_gib_of_kv_cache_holds_what_vllm_reported():
    """1 GiB in blocks of 128 tokens is 46,592 tokens of SmolLM2-135M, as vLLM 0.32 said."""
    per_token = kv_bytes_per_token(make_shape())
    assert whole_blocks(GIB, bytes_per_token=per_token, block_tokens=128)[1] == 46_592


def test_whole_blocks_never_round_up():
    """A byte less than a block holds nothing, and negative room neither."""
    assert whole_blocks(1_279, bytes_per_token=10, block_tokens=128) == (0, 0)
    assert whole_blocks(1_280, bytes_per_token=10, block_tokens=128) == (1_280, 128)
    assert whole_blocks(-5, bytes_per_token=10, block_tokens=128) == (0, 0)


def test_float32_weights_are_loaded_at_half_their_size():
    """A float32 checkpoint is served in two bytes a value; other tensors stay as they are."""
    assert weights_bytes(make_shape(weight_bytes=1000, float32_bytes=0)) == 1000
    assert weights_bytes(make_shape(weight_bytes=1000, float32_bytes=400)) == 800


def test_activations_worked_by_hand():
    """Activations are the sum of the vectors of a layer for each token, and the logits."""
    shape = make_shape(
        hidden_size=10, num_heads=2, num_kv_heads=1, head_dim=5, intermediate_size=20, vocab_size=7
    )
    per_token = (3 * 10 + (2 + 2) * 5 + 3 * 20) * 2
    expected = 4 * per_token + 3 * 7 * 10
    assert activation_bytes(shape, max_num_batched_tokens=4, max_num_seqs=3) == expected


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(12, "12 B"), (23_040, "22.50 KiB"), (GIB, "1.00 GiB"), (141 * GIB, "141 GiB")],
)
def test_sizes_are_readable(num_bytes, text):
    """Sizes are shown with a unit and about three digits."""
    assert human(num_bytes) == text
