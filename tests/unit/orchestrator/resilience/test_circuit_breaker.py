"""The breaker: when it opens, whom it lets try, and that no probe is ever lost."""

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.errors import CircuitOpen
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker

POLICY = BreakerPolicy(
    window_s=10, min_calls=10, failure_rate=0.5, slow_rate=0.8, open_s=5, max_open_s=60
)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Bench:
    """A breaker, its clock, and the changes that it told."""

    def __init__(self, policy=POLICY):
        self.clock = Clock()
        self.changes = []
        self.breaker = CircuitBreaker(
            name="engine",
            policy=policy,
            clock=self.clock,
            on_change=lambda name, state, _why: self.changes.append((name, state)),
        )

    def succeed(self, times=1, *, slow=False):
        for _ in range(times):
            self.breaker.enter().succeeded(slow=slow)

    def fail(self, times=1):
        for _ in range(times):
            self.breaker.enter().failed("why")

    def open(self):
        self.fail(5)
        assert self.breaker.state == "open"


@pytest.fixture
def bench():
    return Bench()


def test_opens_when_everything_fails(bench):
    """Five failures without a success are enough, and four are not."""
    bench.fail(4)
    assert bench.breaker.state == "closed"
    bench.fail()
    assert bench.breaker.state == "open"
    assert bench.changes == [("engine", "open")]
    with pytest.raises(CircuitOpen, match=r"engine .* 5\.0 s") as refusal:
        bench.breaker.enter()
    assert refusal.value.retry_after_s == pytest.approx(5.0)


def test_needs_enough_calls_before_it_believes_a_rate(bench):
    """Half of nine is no reason to open; half of ten is."""
    bench.succeed(5)
    bench.fail(4)
    assert bench.breaker.state == "closed"
    bench.fail()
    assert bench.breaker.state == "open"


def test_stays_closed_below_the_rate(bench):
    """Two failures in five, for ever, are lived with."""
    for _ in range(40):
        bench.succeed(3)
        bench.fail(2)
    assert bench.breaker.state == "closed"


def test_slow_successes_open_it_too(bench):
    """Eight slow ones in ten: a dependency that crawls is left alone as well."""
    bench.succeed(2)
    bench.succeed(7, slow=True)
    assert bench.breaker.state == "closed"
    bench.succeed(slow=True)
    assert bench.breaker.state == "open"


def test_old_results_are_forgotten(bench):
    """Failures further back than the window count no longer."""
    bench.fail(4)
    bench.clock.now_s += 10.1
    bench.fail(4)
    assert bench.breaker.state == "closed"
    bench.clock.now_s += 5
    bench.fail()
    assert bench.breaker.state == "open"


def test_one_probe_closes_it(bench):
    """When its time is up one call goes through, alone, and its success lets everybody in."""
    bench.open()
    bench.clock.now_s += 5
    assert bench.breaker.state == "half_open"
    probe = bench.breaker.enter()
    assert probe.probe
    with pytest.raises(CircuitOpen) as refusal:
        bench.breaker.enter()
    assert refusal.value.retry_after_s > 0
    probe.succeeded()
    assert [state for _, state in bench.changes] == ["open", "half_open", "closed"]
    bench.fail(4)  # what was before is forgotten
    assert bench.breaker.state == "closed"
    assert bench.breaker.retry_after_s == 0


def test_failed_probes_double_the_pause_up_to_its_limit(bench):
    """5, 10, 20, 40, 60, 60 seconds; a success starts over at 5."""
    bench.open()
    pauses = []
    for _ in range(6):
        pauses.append(bench.breaker.retry_after_s)
        bench.clock.now_s += bench.breaker.retry_after_s
        bench.fail()
    assert pauses == pytest.approx([5, 10, 20, 40, 60, 60])
    bench.clock.now_s += 60
    bench.succeed()
    bench.open()
    assert bench.breaker.retry_after_s == pytest.approx(5)


def test_a_slow_probe_opens_it_again(bench):
    """What crawls is not well yet."""
    bench.open()
    bench.clock.now_s += 5
    bench.succeed(slow=True)
    assert bench.breaker.state == "open"


def test_one_that_is_back_is_tried_by_the_next_call(bench):
    """Whoever looks at it says so: no waiting for the time to be up, and no blind trust either."""
    bench.breaker.try_soon()
    assert bench.breaker.state == "closed"
    bench.open()
    bench.breaker.try_soon()
    assert bench.breaker.state == "half_open"
    probe = bench.breaker.enter()
    bench.breaker.try_soon()
    with pytest.raises(CircuitOpen):
        bench.breaker.enter()
    probe.failed("why")
    assert bench.breaker.retry_after_s == 10


@pytest.mark.parametrize("state", ["closed", "open", "half_open"])
def test_one_that_begins_anew_has_no_past(bench, state):
    """Closed at once, whatever it was; calls from before count neither against it nor for it."""
    out = bench.breaker.enter()
    if state != "closed":
        bench.open()
        bench.clock.now_s += 5 if state == "half_open" else 0
    bench.breaker.forget()
    assert bench.breaker.state == "closed"
    out.failed("ended on purpose")
    assert bench.breaker.last_failure != "ended on purpose"
    bench.open()
    assert bench.breaker.retry_after_s == 5


def test_an_abandoned_probe_leaves_its_place_to_the_next(bench):
    """A probe whose caller left says nothing, and the next caller may try."""
    bench.open()
    bench.clock.now_s += 5
    bench.breaker.enter().abandoned()
    assert bench.breaker.state == "half_open"
    bench.succeed()
    assert bench.breaker.state == "closed"


def test_only_the_first_word_about_a_call_counts(bench):
    """A call that succeeded cannot fail afterwards, nor count twice."""
    for _ in range(20):
        call = bench.breaker.enter()
        call.succeeded()
        call.failed("why")
        call.abandoned()
    assert bench.breaker.state == "closed"
    assert bench.breaker._window.total.calls == 20


def test_the_last_failure_is_remembered(bench):
    """Whoever looks at an open breaker sees what happened, a late word of the past aside."""
    late = bench.breaker.enter()
    bench.open()
    late.failed("long ago")
    assert bench.breaker.last_failure == "why"
    bench.clock.now_s += 5
    bench.succeed()
    assert bench.breaker.last_failure == "why"


def test_calls_from_before_it_opened_say_nothing(bench):
    """A stream that ends well, or badly, after the breaker has moved on changes nothing."""
    late = [bench.breaker.enter() for _ in range(6)]
    bench.open()
    bench.clock.now_s += 5
    probe = bench.breaker.enter()
    late[0].failed("why")
    late[1].succeeded()
    late[2].abandoned()
    assert bench.breaker.state == "half_open"
    with pytest.raises(CircuitOpen):
        bench.breaker.enter()
    probe.succeeded()
    for call in late:
        call.failed("why")
    assert bench.breaker.state == "closed"
    assert bench.breaker._window.total.calls == 0


async def test_guard_tells_the_kinds_of_exceptions_apart(bench):
    """Named kinds are failures, others and a cancellation are not; a long success is slow."""
    total = bench.breaker._window.total

    async def run(error=None, took_s=0.0):
        async with bench.breaker.guard((OSError,), slow_s=1.0):
            bench.clock.now_s += took_s
            if error is not None:
                raise error

    for error in (ValueError("not the dependency's"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            await run(error)
    assert (total.calls, total.failures, total.slow) == (0, 0, 0)
    with pytest.raises(ConnectionError):
        await run(ConnectionError())
    await run(took_s=0.9)
    await run(took_s=1.1)
    assert (total.calls, total.failures, total.slow) == (3, 1, 1)


async def test_a_guarded_probe_that_is_cancelled_is_not_lost(bench):
    """The next caller may probe after the first was cut off."""
    bench.open()
    bench.clock.now_s += 5

    async def cut_off():
        async with bench.breaker.guard((OSError,)) as call:
            assert call.probe
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await cut_off()
    async with bench.breaker.guard((OSError,)):
        pass
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_s": 0},
        {"min_calls": 0},
        {"failure_rate": 0},
        {"slow_rate": 1.1},
        {"open_s": 0},
        {"open_s": 61},
    ],
)
def test_a_policy_that_cannot_work_is_refused(wrong):
    """A breaker that never or always opens is a mistake of whoever wrote its policy."""
    with pytest.raises(ValueError, match="not usable"):
        BreakerPolicy(**wrong)


class Breaking(RuleBasedStateMachine):
    """Any order of calls, results and pauses: one probe at most, no negative count, no lost probe."""

    def __init__(self):
        super().__init__()
        self.bench = Bench(BreakerPolicy(window_s=3, min_calls=3, open_s=1, max_open_s=4))
        self.calls = []
        self.probes = []

    @rule()
    def enter(self):
        breaker = self.bench.breaker
        state, waits_s = breaker.state, breaker.retry_after_s
        if state == "open" or self.probes:
            with pytest.raises(CircuitOpen) as refusal:
                breaker.enter()
            assert refusal.value.retry_after_s == waits_s
            assert 0 < waits_s <= 4
            return
        assert waits_s == 0
        call = breaker.enter()
        assert call.probe == (state == "half_open")
        (self.probes if call.probe else self.calls).append(call)

    @precondition(lambda self: self.calls or self.probes)
    @rule(
        data=st.data(),
        word=st.sampled_from(["succeeded", "slow", "failed", "abandoned"]),
        again=st.booleans(),
    )
    def tell(self, data, word, again):
        call = data.draw(st.sampled_from([*self.calls, *self.probes]))
        say = {"slow": lambda: call.succeeded(slow=True), "failed": lambda: call.failed("why")}
        say.get(word, getattr(call, word, None))()
        if again:
            call.failed("why")
        if call.probe:
            self.probes.remove(call)
            expected = {"succeeded": "closed", "abandoned": "half_open"}
            assert self.bench.breaker.state == expected.get(word, "open")
        else:
            self.calls.remove(call)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.3, 1.0, 2.9, 4.0, 100.0]))
    def pass_time(self, seconds):
        self.bench.clock.now_s += seconds

    @invariant()
    def at_most_one_probe(self):
        assert len(self.probes) <= 1
        assert self.bench.breaker._probing == bool(self.probes)

    @invariant()
    def counts_add_up(self):
        window = self.bench.breaker._window
        for name in ("calls", "failures", "slow"):
            parts = [getattr(bucket, name) for bucket in window._buckets]
            assert min(parts) >= 0
            assert sum(parts) == getattr(window.total, name)
        assert window.total.failures + window.total.slow <= window.total.calls

    @invariant()
    def somebody_may_try_in_the_end(self):
        """Without a probe out, waiting is all it takes to be let through."""
        breaker = self.bench.breaker
        if self.probes:
            return
        before_s = self.bench.clock.now_s
        self.bench.clock.now_s += breaker.retry_after_s
        assert breaker.state != "open"
        self.bench.clock.now_s = before_s


TestBreaking = Breaking.TestCase


def test_ten_failures_in_a_row_open_it_also_after_healthy_traffic(bench):
    """When nothing works any more, a window full of successes does not hide it."""
    bench.succeed(200)
    bench.fail(9)
    bench.succeed()
    bench.fail(9)
    assert bench.breaker.state == "closed"
    bench.fail()
    assert bench.breaker.state == "open"
