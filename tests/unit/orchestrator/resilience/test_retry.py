"""When the engine is tried again."""

import pytest
from tenacity import AsyncRetrying

from orchestrator.errors import EngineUnavailable
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryPolicy, retry_on, stop_when, wait_for


def retrying(policy: RetryPolicy, deadline: Deadline, sleeps: list[float]) -> AsyncRetrying:
    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)

    return AsyncRetrying(
        retry=retry_on(),
        stop=stop_when(policy, deadline),
        wait=wait_for(policy),
        sleep=sleep,
        reraise=True,
    )


async def attempts(retry_after_s, *, deadline_s=60.0):
    calls, sleeps = [], []

    async def fails():
        calls.append(1)
        raise EngineUnavailable("down", retry_after_s=retry_after_s)

    with pytest.raises(EngineUnavailable):
        await retrying(RetryPolicy(), Deadline(deadline_s), sleeps)(fails)
    return len(calls), sleeps


async def test_pauses_as_long_as_the_engine_says():
    """Retry-After overrides the back-off curve."""
    assert await attempts(1.5) == (3, [1.5, 1.5])


async def test_pauses_are_capped():
    """An engine that asks for minutes does not get them."""
    assert (await attempts(600.0))[1] == [2.0, 2.0]


async def test_no_pause_reaches_past_the_deadline():
    """When there is no time for another pause, the failure is told now."""
    assert await attempts(1.5, deadline_s=1.0) == (1, [])
