"""What is offered where a model does not fit: it fits, and nothing larger of its kind does."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.alternatives import FOUR_BIT, quantized
from model_server.errors import DoesNotFit
from model_server.planner import Goals, make_plan
from tests.public_models import CARDS_GB, PUBLIC_MODELS, card
from tests.unit.model_server.making import GIB, make_gpu, make_shape


def refusal(device, shape, goals):
    with pytest.raises(DoesNotFit) as caught:
        make_plan(device=device, shape=shape, goals=goals)
    return str(caught.value)


def offered(message, pattern):
    found = re.search(pattern, message)
    return None if found is None else found[1]


@pytest.mark.parametrize("gigabytes", CARDS_GB)
@pytest.mark.parametrize("name", PUBLIC_MODELS)
def test_public_models_fit_under_the_budget_or_are_told_what_would(name, gigabytes):
    """From half a billion parameters to 72, on small, middling and large cards."""
    device = card(gigabytes)
    shape = PUBLIC_MODELS[name]
    goals = Goals(max_model_len=min(shape.max_position, 8192))
    message = ""
    try:
        plan = make_plan(device=device, shape=shape, goals=goals)
    except DoesNotFit as exc:
        message = exc.message
    else:
        assert plan.total_bytes <= plan.sums.budget <= device.free_bytes - plan.sums.reserve
    assert not message or "What would fit: " in message


@pytest.mark.parametrize(
    ("name", "gigabytes", "fits"),
    [
        ("Qwen2.5-0.5B", 8, True),
        ("Llama-3.2-3B", 8, False),
        ("Llama-3.2-3B", 24, True),
        ("Mistral-7B-AWQ", 8, True),
        ("Falcon-7B", 24, True),
        ("Llama-3.1-70B", 80, False),
        ("Qwen2.5-72B-AWQ", 24, False),
        ("Qwen2.5-72B-AWQ", 80, True),
    ],
)
def test_what_fits_is_what_people_run(name, gigabytes, fits):
    """Neither so careful that nothing fits, nor so bold that everything does."""
    device = card(gigabytes)
    goals = Goals(max_model_len=2048)
    try:
        make_plan(device=device, shape=PUBLIC_MODELS[name], goals=goals)
    except DoesNotFit:
        assert not fits
    else:
        assert fits


@given(
    weights_gib=st.integers(1, 30),
    layers=st.integers(8, 80),
    kv_heads=st.sampled_from([1, 3, 9]),
    seqs=st.integers(1, 512),
)
def test_whatever_is_offered_fits_and_one_step_more_does_not(weights_gib, layers, kv_heads, seqs):
    """The longest context and the most sequences that fit, to the block and to the one."""
    device = make_gpu(15 * GIB, 16 * GIB)
    shape = make_shape(
        num_layers=layers,
        num_kv_heads=kv_heads,
        head_dim=128,
        vocab_size=250_000,
        weight_bytes=weights_gib * GIB,
    )
    goals = Goals(max_model_len=8192, max_num_seqs=seqs)

    def holds(shape=shape, **changes):
        try:
            make_plan(device=device, shape=shape, goals=replace(goals, **changes))
        except DoesNotFit:
            return False
        return True

    if holds():
        return
    message = refusal(device, shape, goals)
    if length := offered(message, r"MODEL_SERVER_MAX_MODEL_LEN=(\d+)"):
        assert holds(max_model_len=int(length))
        assert not holds(max_model_len=int(length) + 16)
    if count := offered(message, r"MODEL_SERVER_MAX_NUM_SEQS=(\d+)"):
        assert holds(max_num_seqs=int(count))
        assert not holds(max_num_seqs=int(count) + 1)
    if billions := offered(message, r"\((\d+\.\d) billion at 16 bits\)"):
        least = int((float(billions) - 0.05) * 2e9)
        assert holds(replace(shape, weight_bytes=least, float32_bytes=0))
    if "4-bit" in message:
        assert holds(quantized(shape, FOUR_BIT))
    assert message.count("; or ") <= 2


def test_a_quantized_model_is_as_large_as_those_that_people_download():
    """Within 5 % of the published size of a 72-billion model at four bits."""
    whole = replace(PUBLIC_MODELS["Qwen2.5-72B-AWQ"], weight_bytes=145_400_000_000)
    less = quantized(replace(whole, quantization=None), FOUR_BIT)
    assert less.weight_bytes == pytest.approx(41_600_000_000, rel=0.05)


def test_a_quantized_model_is_not_told_to_be_quantized():
    """What is at four bits already has nothing to gain there."""
    shape = PUBLIC_MODELS["Qwen2.5-72B-AWQ"]
    message = refusal(make_gpu(23 * GIB, 24 * GIB), shape, Goals(max_model_len=2048))
    assert "checkpoint" not in message
    assert "a smaller model, of at most" in message


def test_a_kv_cache_that_is_too_large_is_all_that_is_wrong():
    """Where the rest fits, nobody is told to take another model."""
    goals = Goals(kv_cache_bytes=30 * GIB)
    message = refusal(make_gpu(), make_shape(), goals)
    assert "or one that is left to the plan" in message
    assert "model, of at most" not in message
