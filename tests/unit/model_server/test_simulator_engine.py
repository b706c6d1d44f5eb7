"""The simulated engine in virtual time: when steps end, what is counted, who is refused."""

import asyncio

import pytest

from model_server.simulator.answers import read_prompt
from model_server.simulator.faults import Fault
from model_server.simulator.latency import PROFILES, SMOLLM2_CPU
from tests.unit.model_server.simulating import MODEL, Simulated, body, send

PROMPT = read_prompt(b"x" * 400, block_size=16, seed=0)


async def taken(generation):
    """The sizes in which an answer's tokens come."""
    sizes = []
    while not generation.ended:
        start, stop = await generation.more()
        sizes.append(stop - start)
    return sizes


def start(simulated, tokens=5):
    return simulated.engine.start(PROMPT, answer_tokens=tokens, finish_reason="length")


async def test_steps_take_what_the_profile_says():
    """A prompt of 100 tokens, then four decode steps."""
    simulated = Simulated()
    profile = SMOLLM2_CPU
    async with simulated.running():
        await taken(start(simulated))
    prefill_s = profile.step_s(prefill_tokens=100, decoding=0, resident_tokens=0)
    decode_s = sum(
        profile.step_s(prefill_tokens=0, decoding=1, resident_tokens=100 + n) for n in range(4)
    )
    assert simulated.time.now_s == pytest.approx(prefill_s + decode_s)


@pytest.mark.parametrize(("scale", "factor"), [(0.1, None), (1.0, 3.0)])
async def test_time_can_be_scaled(scale, factor):
    """As a whole when it starts, or by a fault while it runs."""
    plain, scaled = Simulated(), Simulated(time_scale=scale)
    if factor:
        scaled.faults.add(Fault("latency_factor", factor=factor))
    for simulated in (plain, scaled):
        async with simulated.running():
            await taken(start(simulated))
    assert scaled.time.now_s == pytest.approx(plain.time.now_s * scale * (factor or 1))


async def test_time_that_was_lost_is_not_made_up():
    """After a stall of the machine, steps take their time again; a few late milliseconds are caught up."""
    ends_s = []
    for stall_s in (0.0, 0.05, 10.0):
        simulated = Simulated()
        simulated.time.stall_s = stall_s
        async with simulated.running():
            await taken(start(simulated, 100))
        ends_s.append(simulated.time.now_s)
    plain_s, late_s, stalled_s = ends_s
    assert late_s == pytest.approx(plain_s)
    assert plain_s + 9.7 < stalled_s < plain_s + 10


@pytest.mark.parametrize(("interval", "sizes"), [(1, [1] * 6), (4, [1, 4, 1]), (8, [1, 5])])
async def test_tokens_are_handed_out_by_interval(interval, sizes):
    """The first at once, then so many together, the rest at the end: as vLLM's --stream-interval."""
    simulated = Simulated(stream_interval=interval)
    async with simulated.running():
        assert await taken(start(simulated, tokens=6)) == sizes


async def test_everything_is_counted():
    """Tokens, steps, first tokens, gaps and endings; gauges go back to nothing."""
    simulated = Simulated()
    async with simulated.running():
        await asyncio.gather(*(taken(start(simulated)) for _ in range(3)))
    metrics = simulated.engine.metrics
    assert metrics.prompt_tokens == 300
    assert metrics.generation_tokens == 15
    assert metrics.finished["length"] == 3
    assert metrics.prefix_queries == 300
    page = metrics.page(model=MODEL, cache_config={})
    labels = f'engine="0",model_name="{MODEL}"'
    assert f"vllm:time_to_first_token_seconds_count{{{labels}}} 3.0" in page
    assert f"vllm:inter_token_latency_seconds_count{{{labels}}} 12.0" in page
    assert f"vllm:iteration_tokens_total_sum{{{labels}}} 315.0" in page
    assert f"vllm:num_requests_running{{{labels}}} 0.0" in page
    assert f"vllm:kv_cache_usage_perc{{{labels}}} 0.0" in page


async def test_an_abort_frees_everything():
    """Whether it waits or runs, an aborted request leaves no block and no count of its prompt."""
    simulated = Simulated(max_num_seqs=1, max_num_queued_tokens=100)
    async with simulated.running():
        running, waiting = start(simulated, 500), start(simulated, 500)
        await running.more()
        assert simulated.engine.metrics.gauges.running == 1
        for generation in (running, waiting, running):
            simulated.engine.abort(generation)
        assert running.ended
        assert waiting.ended
        assert simulated.engine.cache.usage == 0
        assert simulated.engine.refusal() is None
        assert simulated.engine.unfinished == 0


async def test_too_many_requests_are_refused():
    """Running and waiting count alike, and the refusal is counted."""
    simulated = Simulated(max_num_queued_reqs=2)
    start(simulated)
    assert simulated.engine.refusal() is None
    start(simulated)
    assert simulated.engine.refusal() == "max_num_queued_reqs"
    assert simulated.engine.metrics.rejections["max_num_queued_reqs"] == 1


async def test_too_many_prompt_tokens_are_refused_until_the_first_token():
    """A prompt counts in full until it has been computed."""
    simulated = Simulated(max_num_queued_tokens=100)
    generation = start(simulated)
    assert simulated.engine.refusal() == "max_num_queued_tokens"
    async with simulated.running():
        await generation.more()
        assert simulated.engine.refusal() is None


async def test_a_frozen_engine_takes_no_step_and_its_gauges_stand_still():
    """Nothing moves until the fault is cleared; then the answer goes on."""
    simulated = Simulated()
    async with simulated.running():
        generation = start(simulated, 50)
        await generation.more()
        simulated.faults.add(Fault("freeze"))
        before = simulated.app.metrics_page()
        start(simulated)
        for _ in range(50):
            await asyncio.sleep(0)
        assert simulated.app.metrics_page() == before
        simulated.faults.clear()
        assert sum(await taken(generation)) > 0


async def test_preemption_happens_and_is_counted():
    """Four answers that do not fit together all come whole."""
    simulated = Simulated(kv_cache_tokens=2080, max_model_len=2048)
    async with simulated.running():
        sizes = await asyncio.gather(*(taken(start(simulated, 600)) for _ in range(4)))
    assert [sum(s) for s in sizes] == [600] * 4
    assert simulated.engine.metrics.preemptions > 0
    assert simulated.engine.cache.usage == 0


async def test_a_client_that_leaves_frees_the_engine():
    """The application aborts what nobody reads, streamed or not."""
    for stream in (True, False):
        simulated = Simulated()
        gone = asyncio.Event()
        async with simulated.running():
            request = body(max_tokens=1500, ignore_eos=True, stream=stream)
            task = asyncio.create_task(send(simulated.app, request, gone=gone))
            while simulated.engine.metrics.generation_tokens < 3:
                await asyncio.sleep(0)
            gone.set()
            await task
        assert simulated.engine.unfinished == 0
        assert simulated.engine.metrics.generation_tokens < 1500
        assert simulated.engine.cache.usage == 0


def test_a_cache_smaller_than_one_request_is_refused():
    """Such an engine could never finish a request that it takes."""
    with pytest.raises(ValueError, match="cannot hold one request"):
        Simulated(kv_cache_tokens=2048)


def test_the_h100_profile_serves_about_fifteen_requests_a_second():
    """Prompts of 1,100 tokens and answers of 140, 256 at once: the figure its constants aim at."""
    profile = PROFILES["h100-8b"]
    decode_s = profile.step_s(prefill_tokens=0, decoding=256, resident_tokens=256 * 1170)
    prefill_s = profile.prefill_token_s * 1100
    assert 1 / (decode_s * 140 / 256 + prefill_s) == pytest.approx(15.5, rel=0.1)
    assert 0.006 < profile.step_s(prefill_tokens=0, decoding=1, resident_tokens=1100) < 0.008
