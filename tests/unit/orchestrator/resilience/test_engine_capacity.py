"""What the engine's own figures do to our limits, and what their absence does."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.resilience.admission_policy import AdmissionLimits
from orchestrator.resilience.engine_capacity import EngineCapacity, EngineReading, OwnLoad

LIMITS = AdmissionLimits(max_concurrent=100, max_queued=10, wait_target_s=10.0, safety=0.9)
QUIET = EngineReading(
    kv_tokens=10_000,
    kv_usage=0.0,
    running=0,
    waiting=0,
    waiting_for_cache=0,
    preemptions=0,
)


class Bench:
    """A capacity and its clock, looked at once a second."""

    def __init__(self, limits=LIMITS):
        self.now_s = 100.0
        self.capacity = EngineCapacity(limits, clock=lambda: self.now_s)

    def look(self, reading, own=None, times=1):
        for _ in range(times):
            self.now_s += 1.0
            self.capacity.observe(reading, own or OwnLoad(running=1))
        return self.capacity


@pytest.fixture
def bench():
    return Bench()


def test_the_engine_says_how_large_its_cache_is(bench):
    """Its own figure replaces the one in the settings; without either, space is not counted."""
    assert bench.capacity.current().kv_tokens is None
    assert bench.look(QUIET).current().kv_tokens == 9000
    assert bench.capacity.kv_tokens == 10_000
    configured = Bench(replace(LIMITS, kv_tokens=5000))
    assert configured.capacity.current().kv_tokens == 4500
    assert configured.look(replace(QUIET, kv_tokens=None)).current().kv_tokens == 4500
    assert configured.look(QUIET).current().kv_tokens == 9000


def test_an_engine_that_never_had_metrics_keeps_the_configured_limits():
    """Nothing is unknown about an engine whose limits were written down."""
    bench = Bench(replace(LIMITS, kv_tokens=5000))
    bench.look(None, times=100)
    assert not bench.capacity.stale
    assert (bench.capacity.correction, bench.capacity.current().kv_tokens) == (1.0, 4500)


@pytest.mark.parametrize(
    "silent",
    [
        None,
        EngineReading(),
        replace(QUIET, kv_usage=None),
        replace(QUIET, running=None),
        replace(QUIET, waiting=None),
    ],
)
def test_metrics_that_stop_are_unknown_and_not_idle(bench, silent):
    """After 3 s without a whole reading the limits sink to half, an alarm is up, and no further."""
    bench.look(replace(QUIET, kv_usage=0.4, running=40), OwnLoad(), times=30)
    foreign = bench.capacity.foreign_tokens
    assert foreign > 3900
    bench.look(silent, times=3)
    assert not bench.capacity.stale
    assert bench.capacity.correction == 1.0
    bench.look(silent)
    assert bench.capacity.stale
    assert bench.capacity.correction == pytest.approx(0.9)
    bench.look(silent, times=100)
    assert bench.capacity.correction == 0.5
    assert bench.capacity.foreign_tokens == foreign
    assert not bench.look(QUIET).stale
    assert bench.look(QUIET, times=30).correction == 1.0


def test_preemptions_cut_the_limits(bench):
    """Each look that shows new ones takes 15 %; those before the first look are not ours."""
    bench.look(replace(QUIET, preemptions=7))
    assert bench.capacity.correction == 1.0
    bench.look(replace(QUIET, preemptions=8))
    assert bench.capacity.correction == pytest.approx(0.85)
    assert bench.capacity.current().kv_tokens == int(9000 * 0.85)
    assert bench.capacity.current().concurrent == 85


def test_one_request_may_always_go():
    """However far the limits are cut, the door does not close for good."""
    bench = Bench(replace(LIMITS, max_concurrent=1))
    for count in range(20):
        bench.look(replace(QUIET, preemptions=count, running=50))
    assert bench.capacity.correction == 0.3
    assert bench.capacity.current().concurrent == 1


def test_a_restarted_engine_is_not_congested(bench):
    """Counters that go down are a new beginning."""
    bench.look(replace(QUIET, preemptions=50))
    bench.look(replace(QUIET, preemptions=3))
    assert bench.capacity.correction == 1.0
    bench.look(replace(QUIET, preemptions=4))
    assert bench.capacity.correction == pytest.approx(0.85)


def test_requests_that_wait_for_cache_twice_in_a_row_cut_the_limits(bench):
    """One look can fall on a moment; six waiting at two looks cannot."""
    full = replace(QUIET, kv_usage=0.9)
    starved, few = replace(full, waiting_for_cache=6), replace(full, waiting_for_cache=5)
    bench.look(few, times=5)
    bench.look(starved)
    bench.look(few)
    bench.look(starved)
    assert bench.capacity.correction == 1.0
    bench.look(starved)
    assert bench.capacity.correction == pytest.approx(0.85)


@pytest.mark.parametrize("sign", ["refused", "late"])
@pytest.mark.parametrize("reading", [QUIET, None])
def test_what_our_own_requests_met_cuts_the_limits_once(bench, sign, reading):
    """A refusal by the engine, or a late answer, counts at the next look, also without metrics."""
    bench.look(QUIET)
    getattr(bench.capacity, sign)()
    assert bench.look(reading).correction == pytest.approx(0.85)
    assert bench.look(QUIET).correction == pytest.approx(0.87)


def test_a_slowdown_cuts_the_limits_once():
    """Tokens that take twice as long at two looks are one cut; a slower engine stays usable."""
    bench, full = Bench(), OwnLoad(limit_bound=True)
    bench.look(replace(QUIET, token_s=0.02), full, times=5)
    bench.look(replace(QUIET, token_s=0.2), full)
    bench.look(replace(QUIET, token_s=0.03), full)
    bench.look(replace(QUIET, token_s=0.2), full)
    assert bench.capacity.correction == 1.0
    bench.look(replace(QUIET, token_s=0.2), full)
    assert bench.capacity.correction == pytest.approx(0.85)
    bench.look(replace(QUIET, token_s=0.2), full, times=30)
    assert bench.capacity.correction == 1.0


def test_slow_tokens_without_a_queue_say_nothing():
    """Long pauses on an engine that is not full are the callers' mix."""
    bench = Bench()
    bench.look(replace(QUIET, token_s=0.02), OwnLoad(limit_bound=True))
    for _ in range(3):
        bench.look(replace(QUIET, token_s=0.2), OwnLoad())
        assert bench.capacity.correction == 1.0
    bench.look(replace(QUIET, token_s=None), OwnLoad(limit_bound=True))
    assert bench.capacity.correction == 1.0


def test_others_take_their_share(bench):
    """What the engine holds beyond our books is somebody else's, smoothed over some looks."""
    own = OwnLoad(running=10, resident_tokens=2000)
    crowd = replace(QUIET, kv_usage=0.5, running=35, waiting=5)
    bench.look(crowd, own)
    assert bench.capacity.foreign_tokens == pytest.approx(0.3 * 3000)
    bench.look(crowd, own, times=30)
    assert bench.capacity.foreign_tokens == pytest.approx(3000, rel=0.01)
    assert bench.capacity.foreign_requests == pytest.approx(30, rel=0.01)
    assert bench.capacity.current().kv_tokens == pytest.approx(6000, rel=0.01)
    assert bench.capacity.current().concurrent == pytest.approx(70, abs=1)
    bench.look(QUIET, times=30)
    assert bench.capacity.current().kv_tokens == pytest.approx(9000, rel=0.01)


def test_noise_is_nobody(bench):
    """A tenth more than our books, or less than them, is blocks half filled and requests ending."""
    own = OwnLoad(running=10, resident_tokens=2000)
    for kv_usage, running in ((0.3, 20), (0.1, 5)):
        bench.look(replace(QUIET, kv_usage=kv_usage, running=running), own, times=10)
    assert (bench.capacity.foreign_tokens, bench.capacity.foreign_requests) == (0.0, 0.0)


def test_a_larger_batch_is_slower_by_nature(bench):
    """The time of a token is compared under a like load only."""
    bench.look(replace(QUIET, token_s=0.01), OwnLoad(running=10, limit_bound=True), times=3)
    bench.look(replace(QUIET, token_s=0.05), OwnLoad(running=50, limit_bound=True), times=3)
    assert bench.capacity.correction == 1.0
    bench.look(replace(QUIET, token_s=0.2), OwnLoad(running=50, limit_bound=True), times=2)
    assert bench.capacity.correction < 1.0


def test_tokens_between_which_prompts_are_read_are_not_slow(bench):
    """As long as as much gets done as ever, prompts included, the engine has not slowed down."""

    def look(token_s, tokens_per_s):
        own = OwnLoad(running=10, limit_bound=True, tokens_per_s=tokens_per_s)
        return bench.look(replace(QUIET, token_s=token_s), own, times=3).correction

    assert look(0.01, 9000.0) == 1.0
    assert look(0.09, 8000.0) == 1.0
    assert look(0.09, 5000.0) == pytest.approx(0.85 + 0.02)
    assert look(0.09, 5000.0) == pytest.approx(0.85 + 4 * 0.02)


def test_the_prompt_window_widens_while_answers_begin_at_once(bench):
    """Half as much more a look, back by a fifth when they begin late, never below its setting."""
    least = LIMITS.prefill_window_tokens
    queue = OwnLoad(running=5, limit_bound=True)

    def window(took_s: float, own: OwnLoad = queue) -> int:
        bench.capacity.first_token(took_s)
        return bench.look(QUIET, own).current().prefill_tokens

    assert bench.look(QUIET, queue).current().prefill_tokens == least
    assert window(0.2, OwnLoad(running=5)) == least
    assert window(0.2) == least * 1.5
    assert window(1.5) == least * 1.5
    assert window(2.5) == int(least * 1.5 * 0.8)
    for _ in range(20):
        assert least <= window(9.0) <= least * 1.5
    assert window(9.0) == least


COUNTING = replace(QUIET, running=1, generated=500, steps=40)


class Receiving(Bench):
    """The same, with an engine that sends us so many tokens before each look."""

    def __init__(self):
        super().__init__()
        self.tokens = 0

    def receive(self, reading, tokens=10, times=1):
        for _ in range(times):
            self.tokens += tokens
            self.look(reading, OwnLoad(running=1, received_tokens=self.tokens))
        return self.capacity


@pytest.mark.parametrize(
    "page", [COUNTING, replace(COUNTING, steps=None), replace(COUNTING, generated=None)]
)
def test_figures_that_stand_still_while_tokens_come_are_a_lie(page):
    """Unknown from 3 s after they were seen to stand still, proven by one more look; then half."""
    bench = Receiving()
    bench.receive(page, times=5)
    assert not bench.capacity.stale
    bench.receive(page)
    assert bench.capacity.stale
    assert bench.capacity.correction == pytest.approx(0.9)
    bench.receive(page, times=100)
    assert bench.capacity.correction == 0.5
    assert bench.receive(page, tokens=0, times=10).stale, "believed again because nobody asks"
    bench.look(None)
    assert bench.receive(page, tokens=0).stale
    moved = replace(page, kv_usage=0.1)
    assert not bench.receive(moved).stale
    for step in range(40):
        bench.receive(replace(COUNTING, generated=600 + step))
    assert bench.capacity.correction == 1.0


@pytest.mark.parametrize("running", [0, 1])
def test_an_engine_that_sends_nothing_may_stand_still(running):
    """Idle, or reading one long prompt: its figures are true for as long as no token comes."""
    bench = Receiving()
    bench.receive(replace(COUNTING, running=running), tokens=0, times=100)
    assert not bench.capacity.stale
    assert bench.capacity.correction == 1.0


def test_a_token_that_is_newer_than_the_page_proves_nothing():
    """Received while the page was on its way: the next look has it."""
    bench = Receiving()
    bench.receive(COUNTING, tokens=0, times=10)
    bench.receive(COUNTING)
    assert not bench.receive(replace(COUNTING, generated=510)).stale


def test_a_token_that_is_older_than_the_page_proves_nothing():
    """The last ones of an answer may come after the look that counted them, and nobody asks then."""
    bench = Receiving()
    bench.receive(COUNTING, times=3)
    assert not bench.receive(COUNTING, tokens=0, times=100).stale


def test_figures_without_a_count_of_tokens_may_stand_still():
    """Gauges alone can be the same by chance: some engines have nothing else."""
    bench = Receiving()
    bench.receive(replace(COUNTING, generated=None, steps=None), times=100)
    assert not bench.capacity.stale


NUMBER = st.none() | st.integers(-10, 10**9)
GARBAGE = st.none() | st.builds(
    EngineReading,
    kv_tokens=NUMBER,
    kv_usage=st.none() | st.floats(-1e3, 1e6, allow_nan=False),
    running=NUMBER,
    waiting=NUMBER,
    waiting_for_cache=NUMBER,
    preemptions=NUMBER,
    generated=NUMBER,
    steps=NUMBER,
    token_s=st.none() | st.floats(0, 1e9, allow_nan=False),
)


@settings(max_examples=400)
@given(st.lists(st.tuples(GARBAGE, st.booleans()), max_size=30))
def test_garbage_never_takes_the_limits_out_of_their_range(looks):
    """Whatever the metrics say, at least one request may go, and never more than configured."""
    bench = Bench()
    for reading, bound in looks:
        bench.look(reading, OwnLoad(5, 1000, bound))
        current = bench.capacity.current()
        assert 1 <= current.concurrent <= LIMITS.max_concurrent
        assert current.prefill_tokens >= LIMITS.prefill_window_tokens
        if current.kv_tokens is not None:
            assert 0 <= current.kv_tokens <= bench.capacity.kv_tokens * LIMITS.safety


@pytest.mark.parametrize("start", [(9000, 0), (0, 9000), (9000, 9000), (3000, 0)])
def test_two_gates_settle_at_half_each(start):
    """Each sends what it may and sees the other only in the engine's gauges and its queue."""
    sides = [Bench(replace(LIMITS, max_concurrent=1000)) for _ in start]
    sent, inside = list(start), [min(tokens, 5000) for tokens in start]
    for _ in range(120):
        waiting = sum(sent) - sum(inside)
        reading = replace(
            QUIET,
            kv_usage=sum(inside) / 10_000,
            running=sum(inside) // 100,
            waiting=waiting // 100,
            waiting_for_cache=waiting // 100,
        )
        for index, side in enumerate(sides):
            side.look(reading, OwnLoad(sent[index] // 100, sent[index], limit_bound=True))
            # A tenth of what is inside ends each second, and is replaced as far as we may.
            ended = inside[index] // 10
            inside[index] -= ended
            sent[index] = max(sent[index] - ended, side.capacity.current().kv_tokens)
        free = 10_000 - sum(inside)
        wanted = [mine - held for mine, held in zip(sent, inside, strict=True)]
        for index, want in enumerate(wanted):
            inside[index] += min(want, free * want // max(1, sum(wanted)))
    assert sum(sent) <= 11_000
    assert min(sent) >= 0.45 * sum(sent)


def test_a_crowd_that_we_are_not_in_cuts_nothing(bench):
    """While nothing of ours is with the engine, its congestion is not of our making."""
    crowd = replace(QUIET, preemptions=50, waiting_for_cache=50)
    bench.look(QUIET, OwnLoad())
    bench.look(crowd, OwnLoad(), times=3)
    assert bench.capacity.correction == 1.0
    bench.look(replace(crowd, preemptions=60), OwnLoad(running=1))
    assert bench.capacity.correction < 1.0
