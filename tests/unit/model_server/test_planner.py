"""The plan: what fits, what does not, and that it never takes more than it may."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from model_server.errors import ConfigurationError, DoesNotFit
from model_server.memory import GIB, MIB, kv_bytes_per_token, whole_blocks
from model_server.planner import Goals, block_tokens, make_plan
from tests.public_models import PUBLIC_MODELS, taken_bytes
from tests.unit.model_server.making import make_cpu, make_gpu, make_shape

# From a small desktop's card to a large server's, empty or mostly taken by others.
cards = st.builds(
    lambda total, free_share: make_gpu(int(total * free_share), total),
    st.integers(4 * GIB, 144 * GIB),
    st.floats(0.2, 1.0),
)
devices = st.one_of(st.integers(4 * GIB, 64 * GIB).map(make_cpu), cards)
goals = st.builds(
    Goals,
    max_model_len=st.none() | st.integers(16, 8192),
    max_num_seqs=st.none() | st.integers(1, 512),
    memory_limit_bytes=st.none() | st.integers(4 * GIB, 64 * GIB),
    kv_cache_bytes=st.none() | st.integers(1 * GIB, 4 * GIB),
    gpu_memory_utilization=st.floats(0.3, 1.0),
    reserve_bytes=st.none() | st.integers(0, 4 * GIB),
    enforce_eager=st.booleans(),
)
shapes = st.builds(
    make_shape,
    num_layers=st.integers(1, 80),
    hidden_size=st.integers(256, 8192),
    intermediate_size=st.integers(512, 32_768),
    num_kv_heads=st.sampled_from([1, 3, 9]),
    head_dim=st.sampled_from([64, 128]),
    vocab_size=st.integers(1_000, 260_000),
    weight_bytes=st.integers(1 * MIB, 60 * GIB),
    quantization=st.sampled_from([None, "awq"]),
) | st.sampled_from(list(PUBLIC_MODELS.values()))


slices = st.just(0) | st.integers(1, 8 * GIB)


@given(device=devices, shape=shapes, goals=goals, embedder=slices, index=slices)
def test_a_plan_is_never_over_budget_and_holds_one_full_sequence(
    device, shape, goals, embedder, index
):
    """Whatever is asked, a plan keeps under every cap, leaves to others what is theirs, and can serve."""
    if device.kind == "cpu":
        embedder = index = 0  # a wrong setting has its own test
    goals = replace(goals, embedder_bytes=embedder, index_bytes=index)
    others = embedder + index
    assume((goals.max_model_len or 0) <= shape.max_position)  # a wrong setting has its own test
    try:
        plan = make_plan(device=device, shape=shape, goals=goals)
    except DoesNotFit:
        return
    taken = taken_bytes(plan)
    assert plan.total_bytes == taken, "a part is missing from the planner's sum, or there twice"
    assert plan.sums.runtime >= GIB, "vLLM's own processes were forgotten"
    assert taken <= device.free_bytes - plan.sums.reserve - others
    assert taken <= (goals.memory_limit_bytes or taken)
    if device.kind == "cuda":
        assert taken + others <= device.total_bytes * goals.gpu_memory_utilization
        assert plan.gpu_memory_utilization * device.total_bytes <= device.free_bytes
    assert plan.kv_tokens >= plan.max_model_len
    assert plan.kv_tokens % block_tokens(device) == 0
    assert plan.kv_cache_bytes == plan.kv_tokens * kv_bytes_per_token(shape)
    assert plan.max_num_batched_tokens >= plan.max_num_seqs


@given(
    free=st.integers(3 * GIB, 40 * GIB),
    more=st.integers(0, 20 * GIB),
    shape=shapes,
    is_gpu=st.booleans(),
)
def test_more_free_memory_never_gives_less(free, more, shape, is_gpu):
    """With more free memory the KV cache is as large or larger, and what fitted still fits."""

    def tokens(free_bytes):
        device = make_gpu(free_bytes, 64 * GIB) if is_gpu else make_cpu(free_bytes)
        try:
            return make_plan(device=device, shape=shape, goals=Goals()).kv_tokens
        except DoesNotFit:
            return 0

    assert tokens(free) <= tokens(free + more)


def test_a_cpu_gets_half_of_the_full_length_for_every_sequence():
    """With room to spare a CPU's KV cache is max_num_seqs times half of max_model_len, no more."""
    plan = make_plan(device=make_cpu(64 * GIB), shape=make_shape(), goals=Goals())
    assert (plan.max_num_seqs, plan.max_model_len) == (32, 4096)
    assert plan.kv_tokens == 32 * 2048
    assert plan.dtype == "bfloat16"


def test_a_gpu_gives_all_of_its_budget_to_the_kv_cache():
    """On a GPU less than one block of the budget stays unused."""
    plan = make_plan(device=make_gpu(), shape=make_shape(), goals=Goals(enforce_eager=False))
    assert 0 <= plan.sums.budget - plan.total_bytes < 16 * kv_bytes_per_token(plan.shape)
    assert plan.max_num_seqs == 256
    assert plan.max_model_len == 8192


def test_the_embedders_slice_of_a_gpu_is_its_own():
    """Its cap and its CUDA context are left to it, and shown; a refusal names them too."""
    alone = make_plan(device=make_gpu(), shape=make_shape(), goals=Goals())
    beside = make_plan(device=make_gpu(), shape=make_shape(), goals=Goals(embedder_bytes=GIB))
    assert alone.sums.embedder == 0
    assert alone.sums.budget - beside.sums.budget == beside.sums.embedder > GIB
    assert [row.value for row in beside.lines if row.what == "embedder"] == ["1.75 GiB"]
    assert "embedder" not in {row.what for row in alone.lines}
    with pytest.raises(DoesNotFit, match=r"4\.75 GiB for the embedder"):
        make_plan(device=make_gpu(6 * GIB), shape=make_shape(), goals=Goals(embedder_bytes=4 * GIB))


def test_vectors_on_the_card_have_a_slice_beside_the_embedders():
    """Both are left out of the engine's budget, each with its CUDA context."""
    goals = Goals(embedder_bytes=GIB, index_bytes=2 * GIB)
    both = make_plan(device=make_gpu(), shape=make_shape(), goals=goals)
    alone = make_plan(device=make_gpu(), shape=make_shape(), goals=Goals())
    assert both.sums.index > 2 * GIB
    assert alone.sums.budget - both.sums.budget == both.sums.embedder + both.sums.index
    assert [row.value for row in both.lines if row.what == "vector index"] == ["2.81 GiB"]


@pytest.mark.parametrize("part", ["embedder", "index"])
def test_a_cpu_has_no_slice_for_the_orchestrator(part):
    """It is a mistake that says what to unset."""
    goals = Goals(**{f"{part}_bytes": GIB})
    with pytest.raises(ConfigurationError, match=f"Unset it, and ORCHESTRATOR_{part.upper()}_DEV"):
        make_plan(device=make_cpu(), shape=make_shape(), goals=goals)


def test_a_gpu_without_bfloat16_serves_float16():
    """Cards before Ampere have no bfloat16 units."""
    plan = make_plan(device=make_gpu(bfloat16=False), shape=make_shape(), goals=Goals())
    assert plan.dtype == "float16"


def test_large_gpus_batch_more_tokens():
    """From 70 GiB on, a step takes 8192 tokens, below that 2048."""
    small = make_plan(device=make_gpu(), shape=make_shape(), goals=Goals())
    large = make_plan(device=make_gpu(79 * GIB, 80 * GIB), shape=make_shape(), goals=Goals())
    assert (small.max_num_batched_tokens, large.max_num_batched_tokens) == (2048, 8192)


def test_too_little_memory_is_refused_with_the_sums_and_no_false_hope():
    """When not even the engine itself fits, the message names each sum and offers nothing."""
    with pytest.raises(DoesNotFit) as caught:
        make_plan(device=make_cpu(2 * GIB), shape=make_shape(), goals=Goals())
    message = str(caught.value)
    assert "weights 257 MiB" in message
    assert "1.00 GiB reserved" in message
    assert "No model fits in that" in message


def test_the_length_that_is_said_to_fit_does():
    """Following the advice of a refusal gives a plan."""
    device = make_gpu(8 * GIB, 8 * GIB)
    shape = make_shape(num_layers=64, num_kv_heads=9, head_dim=128, weight_bytes=5 * GIB)
    with pytest.raises(DoesNotFit) as caught:
        make_plan(device=device, shape=shape, goals=Goals(max_model_len=8192))
    length = int(str(caught.value).split("MODEL_SERVER_MAX_MODEL_LEN=")[1].split()[0])
    assert 16 <= length < 8192
    assert make_plan(device=device, shape=shape, goals=Goals(max_model_len=length)).kv_tokens


def test_a_given_kv_cache_is_taken_as_it_is():
    """An explicit size counts, down to whole blocks."""
    goals = Goals(kv_cache_bytes=GIB)
    plan = make_plan(device=make_cpu(), shape=make_shape(), goals=goals)
    expected = whole_blocks(GIB, bytes_per_token=23_040, block_tokens=128)
    assert (plan.kv_cache_bytes, plan.kv_tokens) == expected


def test_a_kv_cache_too_small_for_one_sequence_is_refused_with_what_it_would_hold():
    """An explicit size below one full sequence is refused, and the message says what it would hold."""
    with pytest.raises(DoesNotFit, match="lower MODEL_SERVER_MAX_MODEL_LEN to 2816"):
        make_plan(device=make_cpu(), shape=make_shape(), goals=Goals(kv_cache_bytes=65_000_000))


def test_a_context_beyond_the_model_is_a_wrong_setting():
    """A context longer than the model's own is refused, with the limit."""
    with pytest.raises(ConfigurationError, match="at most 8192 tokens"):
        make_plan(device=make_cpu(), shape=make_shape(), goals=Goals(max_model_len=9000))


def test_the_table_and_the_json_say_the_same():
    """The rows that people read add up to what machines read."""
    plan = make_plan(device=make_cpu(), shape=make_shape(), goals=Goals())
    body = plan.as_json()
    parts = body["bytes"]
    total = parts["weights"] + parts["activations"] + parts["runtime"] + body["kv_cache_bytes"]
    assert parts["total"] == total == plan.total_bytes
    labels = [row["what"] for row in body["rows"]]
    for label in (
        "device",
        "memory, free",
        "weights",
        "KV cache",
        "activations",
        "total",
        "reserve",
    ):
        assert label in labels
