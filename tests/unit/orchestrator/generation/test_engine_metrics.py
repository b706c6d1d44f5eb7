"""What is read from an engine's metrics page, and what is not made up when it is missing."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.generation.engine_metrics import EngineMetrics, parse

# vLLM 0.32's own lines, shortened.
PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="deferred"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.795455234192674e+09
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 62.0
vllm:generation_tokens_total{engine="0",model_name="m"} 600.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 42.0
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 68.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="m"} 0.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.025",model_name="m"} 10.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.05",model_name="m"} 30.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="m"} 30.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 30.0
vllm:cache_config_info{block_size="128",engine="0",kv_cache_dtype_skip_layers="[]",kv_cache_size_tokens="65536",num_gpu_blocks="512"} 1.0
"""
NOTHING = EngineMetrics()


def page_of_two() -> str:
    """The page of two engines behind one address."""
    return PAGE + PAGE.replace('engine="0"', 'engine="1"')


def test_every_figure_is_read():
    """Each field comes from the sample of its own name."""
    assert parse(PAGE) == EngineMetrics(
        kv_cache_tokens=65_536,
        kv_usage=0.25,
        running=3,
        waiting=5,
        waiting_capacity=4,
        preemptions_total=7,
        prompt_tokens_total=1_500_000,
        generation_tokens_total=600,
        iterations_total=42,
        inter_token_s=((0.01, 0.0), (0.025, 10.0), (0.05, 30.0), (math.inf, 30.0)),
    )


def test_engines_are_added_up():
    """Two engines hold twice as much, each with its own share of it."""
    both = parse(page_of_two())
    assert (both.running, both.waiting, both.kv_cache_tokens) == (6, 10, 131_072)
    assert both.kv_usage == 0.25
    assert both.inter_token_s is not None
    assert both.inter_token_s[-1] == (math.inf, 60.0)


@pytest.mark.parametrize("value", ["NaN", "-1.0", "+Inf", "-Inf", "x", ""])
def test_what_is_no_count_is_unknown(value):
    """One bad sample makes its own figure unknown, in a sum too, and no other."""
    good = 'vllm:num_requests_running{engine="0",model_name="m"} 3.0'
    bad = good.removesuffix("3.0") + value
    for page in (PAGE.replace(good, bad), page_of_two().replace(good, bad)):
        found = parse(page)
        assert found.running is None
        assert found.waiting is not None


@pytest.mark.parametrize("name", ["num_requests_running", "kv_cache_usage_perc", "prompt_tokens"])
def test_a_missing_name_is_unknown(name):
    """A renamed metric is no zero."""
    found = parse(PAGE.replace(f"vllm:{name}", f"vllm:former_{name}"))
    assert [found.running, found.kv_usage, found.prompt_tokens_total].count(None) == 1


def test_a_share_above_one_is_unknown():
    """A percentage where a share was meant is not believed."""
    assert parse(PAGE.replace("} 0.25", "} 25.0")).kv_usage is None


def test_half_a_histogram_is_unknown():
    """Without the last bucket nobody knows how many observations there were."""
    text = "\n".join(line for line in PAGE.splitlines() if "+Inf" not in line)
    assert parse(text).inter_token_s is None
    assert parse(PAGE.replace('le="0.05"', 'le="wide"')).inter_token_s is None


def looks(*counts: float) -> EngineMetrics:
    """A look with these cumulative counts below 10 ms, 20 ms and everything."""
    return EngineMetrics(inter_token_s=tuple(zip((0.01, 0.02, math.inf), counts, strict=True)))


@pytest.mark.parametrize(
    ("before", "now", "median_s"),
    [
        (looks(0, 0, 0), looks(10, 10, 10), 0.005),
        (looks(100, 100, 100), looks(100, 110, 110), 0.015),
        (looks(5, 5, 5), looks(6, 6, 15), 0.02),
        (looks(5, 5, 5), looks(5, 5, 5), None),
        (looks(5, 5, 5), looks(1, 1, 1), None),
        (looks(5, 9, 9), looks(9, 9, 19), None),
        (NOTHING, looks(1, 1, 1), None),
        (looks(1, 1, 1), NOTHING, None),
        (EngineMetrics(inter_token_s=((math.inf, 1.0),)), looks(1, 1, 9), None),
    ],
)
def test_the_median_between_two_looks(before, now, median_s):
    """Only what came since the earlier look counts; nothing since, or a restart, is unknown."""
    assert now.median_inter_token_s(before) == pytest.approx(median_s)


LINES = st.sampled_from(PAGE.splitlines()) | st.text(max_size=60)


@given(st.lists(LINES).map("\n".join) | st.binary().map(lambda b: b.decode("latin-1")))
@example("vllm:num_requests_running 1e308\nvllm:num_requests_running 1e308")
@example('vllm:inter_token_latency_seconds_bucket{le="-1"} 1')
@example("vllm:kv_cache_usage_perc{")
def test_nothing_makes_it_raise(text):
    """Any text gives figures that are in range, or none."""
    found = parse(text)
    assert found.kv_usage is None or 0 <= found.kv_usage <= 1
    assert found.running is None or found.running >= 0
    median_s = found.median_inter_token_s(parse(PAGE))
    assert median_s is None or 0 <= median_s < math.inf


def test_an_empty_page_says_nothing():
    """No page, no figures."""
    assert parse("") == NOTHING
