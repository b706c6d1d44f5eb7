"""When the engine is tried again, and when no longer."""

import random
from contextlib import suppress

import pytest
from tenacity import AsyncRetrying

from orchestrator.errors import EngineOverloaded, EngineRejected, EngineUnavailable
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryBudget, RetryPolicy, retry_on, stop_when, wait_for


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def highest(_low: float, high: float) -> float:
    return high


def retrying(*, sleeps, deadline_s=60.0, budget=None, uniform=highest, policy=None):
    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)

    policy = policy or RetryPolicy()
    return AsyncRetrying(
        retry=retry_on(),
        stop=stop_when(policy, Deadline(deadline_s), budget or RetryBudget()),
        wait=wait_for(policy, uniform),
        sleep=sleep,
        reraise=True,
    )


async def attempts(retry_after_s=None, *, error=EngineUnavailable, **options):
    calls: list[int] = []
    sleeps: list[float] = []

    async def fails():
        calls.append(1)
        raise error("down", retry_after_s=retry_after_s)

    with pytest.raises(error):
        await retrying(sleeps=sleeps, **options)(fails)
    return len(calls), sleeps


async def test_pauses_as_long_as_the_engine_says():
    """Retry-After overrides the back-off curve, and spreads those who were told the same."""
    assert await attempts(1.0) == (3, [1.25, 1.25])
    assert await attempts(1.0, uniform=lambda low, _: low) == (3, [1.0, 1.0])


async def test_an_engine_that_asks_for_long_is_left_alone():
    """Trying sooner than told would be rude, waiting that long would be pointless."""
    assert await attempts(3.0) == (1, [])


async def test_backs_off_with_full_jitter():
    """Pauses are drawn from zero to a bound that doubles up to the longest."""
    policy = RetryPolicy(attempts=5, wait_initial_s=0.5, wait_max_s=1.5)
    assert await attempts(policy=policy) == (5, [0.5, 1.0, 1.5, 1.5])
    assert await attempts(policy=policy, uniform=lambda low, _: low) == (5, [0.0] * 4)


async def test_no_pause_reaches_past_the_deadline():
    """When there is no time for another pause, the failure is told now."""
    assert await attempts(1.5, deadline_s=1.0) == (1, [])


async def test_only_what_did_not_reach_the_model():
    """An overloaded engine is asked again, one that rejects the request is not."""
    assert (await attempts(error=EngineOverloaded))[0] == 3
    assert (await attempts(error=EngineRejected))[0] == 1


async def test_an_empty_budget_stops_retries():
    """Without budget the first failure is the answer."""
    budget = RetryBudget(ratio=0, per_s=0, burst=1)
    assert (await attempts(budget=budget))[0] == 2
    assert (await attempts(budget=budget))[0] == 1


def test_each_second_earns_a_retry():
    """A service with few requests can still retry, up to what may be saved."""
    clock = Clock()
    budget = RetryBudget(ratio=0, per_s=1, burst=2, clock=clock)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    clock.now_s = 1.0
    assert [budget.spend() for _ in range(2)] == [True, False]
    clock.now_s = 100.0
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_ten_requests_earn_a_retry():
    """The ratio is of first attempts."""
    budget = RetryBudget(ratio=0.1, per_s=0, burst=1)
    assert budget.spend()
    for _ in range(9):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    budget.earn()
    assert budget.spend()


@pytest.mark.parametrize("wrong", [{"ratio": -0.1}, {"per_s": -1}, {"burst": 0.5}])
def test_nonsense_is_no_budget(wrong):
    """A budget that could never be spent, or that grows backwards, is refused."""
    with pytest.raises(ValueError, match="retry budget"):
        RetryBudget(**wrong)


@pytest.mark.parametrize("failing", [0.3, 1.0])
async def test_what_the_engine_meets_is_bounded(failing):
    """100 requests a second for a minute: nine in a hundred, and the burst once."""
    clock, dice = Clock(), random.Random(7)  # noqa: S311 - no secret
    budget = RetryBudget(clock=clock)
    met = 0

    async def attempt():
        nonlocal met
        met += 1
        if dice.random() < failing:
            raise EngineUnavailable("down")

    for _ in range(6000):
        clock.now_s += 0.01
        budget.earn()
        with suppress(EngineUnavailable):
            await retrying(sleeps=[], budget=budget)(attempt)
    retries = met - 6000
    assert 540 <= retries <= 540 + 5


def test_a_dozen_requests_a_second_do_not_pay_twice():
    """Thirteen a second, three in ten failing, for a minute: one attempt in ten on top, not two."""
    clock = Clock()
    budget = RetryBudget(clock=clock)
    retries = 0
    for n in range(13 * 60):
        clock.now_s += 1 / 13
        budget.earn()
        retries += n % 10 < 3 and budget.spend()
    assert 0.08 <= retries / (13 * 60) <= 0.1


def test_a_quiet_service_may_retry_once_a_second():
    """One request in ten seconds that fails is tried again."""
    clock = Clock()
    budget = RetryBudget(clock=clock, burst=1)
    spent = []
    for _ in range(20):
        clock.now_s += 10
        budget.earn()
        spent.append(budget.spend())
    assert all(spent)
