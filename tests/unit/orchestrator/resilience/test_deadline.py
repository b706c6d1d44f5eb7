"""One absolute time a request must end by."""

import asyncio

import pytest

from orchestrator.errors import DeadlineExceeded
from orchestrator.resilience.deadline import Deadline


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_counts_down_on_its_clock():
    """Remaining time shrinks with the clock and never goes below zero."""
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    clock.now += 4
    assert deadline.remaining_s() == 6
    clock.now += 60
    assert deadline.remaining_s() == 0
    assert deadline.expired


def test_check_raises_only_when_time_is_up():
    """A check passes while there is time and tells the budget when there is none."""
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    deadline.check()
    clock.now += 10
    with pytest.raises(DeadlineExceeded, match="10 s"):
        deadline.check()


def test_is_only_ever_tightened():
    """A longer budget changes nothing, a shorter one wins."""
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    assert deadline.tightened(60) is deadline
    assert deadline.tightened(3).remaining_s() == 3


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_refuses_a_budget_that_is_none(budget):
    """A deadline that never comes, or has already passed, is a programming error."""
    with pytest.raises(ValueError, match="positive"):
        Deadline(budget)


async def test_scope_cuts_off_what_takes_too_long():
    """An await under the deadline ends when the deadline does."""
    with pytest.raises(DeadlineExceeded):
        async with Deadline(0.01).scope():
            await asyncio.sleep(5)


async def test_scope_lets_an_inner_timeout_be_itself():
    """A TimeoutError of somebody else's timer is not mistaken for the deadline."""
    with pytest.raises(TimeoutError):
        async with Deadline(5).scope():
            raise TimeoutError
