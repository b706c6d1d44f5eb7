"""A half-open breaker closes by itself when its dependency is well, also if nobody asks."""

import asyncio

import pytest

from orchestrator import concurrency
from orchestrator.errors import EmbedderUnavailable, Overloaded
from orchestrator.resilience.breaker_probe import BreakerProbe
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker


class Bench:
    """A breaker that opened, its clock, and a dependency that does what it is told."""

    def __init__(self):
        self.now_s = 1000.0
        self.error = None
        self.attempts = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.worth_trying = True
        self.breaker = CircuitBreaker(
            name="embedder", policy=BreakerPolicy(open_s=5), clock=lambda: self.now_s
        )
        self.probe = BreakerProbe(
            breaker=self.breaker,
            attempt=self.attempt,
            failures=(EmbedderUnavailable,),
            worth_trying=lambda: self.worth_trying,
            look_s=0.001,
        )
        for _ in range(5):
            self.breaker.enter().failed("why")

    async def attempt(self):
        self.attempts += 1
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
async def bench():
    return Bench()


async def test_nobody_is_tried_who_is_well_or_left_alone(bench):
    """Closed there is nothing to prove, and open means open."""
    await bench.probe.look()
    assert bench.attempts == 0
    bench.now_s += 5
    await bench.probe.look()
    assert bench.breaker.state == "closed"
    await bench.probe.look()
    assert bench.attempts == 1


async def test_one_that_is_still_broken_is_left_alone_for_longer(bench):
    """A failed try counts as any other does."""
    bench.error = EmbedderUnavailable("still")
    bench.now_s += 5
    await bench.probe.look()
    assert bench.breaker.state == "open"
    assert bench.breaker.retry_after_s == 10


async def test_one_that_is_being_restarted_is_left_until_it_is_back(bench):
    """A try that cannot succeed would double the time for which it is left alone."""
    bench.now_s += 5
    bench.worth_trying = False
    await bench.probe.look()
    assert (bench.attempts, bench.breaker.state) == (0, "half_open")
    bench.worth_trying = True
    await bench.probe.look()
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize("error", [Overloaded("full"), TimeoutError()])
async def test_one_that_is_busy_is_tried_again(bench, error):
    """What is no failure opens nothing, and closes nothing."""
    bench.error = error
    bench.now_s += 5
    await bench.probe.look()
    assert bench.breaker.state == "half_open"
    bench.error = None
    await bench.probe.look()
    assert bench.breaker.state == "closed"


async def test_never_beside_another_call(bench):
    """While a caller tries, we do not."""
    bench.now_s += 5
    call = bench.breaker.enter()
    await bench.probe.look()
    assert bench.attempts == 0
    call.abandoned()
    await bench.probe.look()
    assert bench.attempts == 1


async def test_looks_by_itself_until_it_is_closed(bench):
    """The first look after its time closes the breaker; an attempt that hangs is cut off."""
    await bench.probe.start()
    bench.now_s += 5
    async with asyncio.timeout(10):
        while bench.breaker.state != "closed":
            await asyncio.sleep(0)
    for _ in range(5):
        bench.breaker.enter().failed("why")
    bench.may_answer.clear()
    bench.now_s += 5
    async with asyncio.timeout(10):
        while bench.attempts < 2:
            await asyncio.sleep(0)
    await bench.probe.aclose()
    assert bench.breaker.state == "half_open"
    assert bench.breaker.retry_after_s == 0, "the place of the attempt was lost"


async def test_one_that_was_never_started_may_be_closed(bench):
    """A start that broke off closes what it has."""
    await bench.probe.aclose()


async def test_a_bug_in_a_try_is_not_the_last_try(bench, monkeypatch):
    """Nobody else would find out that the dependency is well."""
    monkeypatch.setattr(concurrency, "AFTER_BUG_S", 0.0)
    bench.error = KeyError("a bug")
    bench.now_s += 5
    await bench.probe.start()
    async with asyncio.timeout(10):
        while bench.attempts < 1:
            await asyncio.sleep(0.001)
        bench.error = None
        while bench.breaker.state != "closed":
            bench.now_s += 60
            await asyncio.sleep(0.001)
    await bench.probe.aclose()
