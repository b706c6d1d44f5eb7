"""The gate: permits, queue, refusals."""

import asyncio

import pytest

from orchestrator.errors import DeadlineExceeded, NotReady, QueueFull, QueueTimeout
from orchestrator.resilience.admission import AdmissionGate, AdmissionLimits
from orchestrator.resilience.deadline import Deadline


def gate(concurrent: int = 1, queued: int = 2, max_wait_s: float = 5.0) -> AdmissionGate:
    return AdmissionGate(limits=AdmissionLimits(concurrent, queued, max_wait_s), notify_s=0.01)


async def waits(gate, ticket, deadline=None):
    return [notice async for notice in gate.wait(ticket, deadline or Deadline(5))]


async def test_admits_up_to_the_limit_at_once():
    """Permits are granted without waiting while there are any."""
    door = gate(concurrent=2)
    first, second, third = door.enter(), door.enter(), door.enter()
    assert (first.granted, second.granted, third.granted) == (True, True, False)
    assert (door.running, door.queued) == (2, 1)


async def test_refuses_when_the_queue_is_full():
    """One more than the queue holds is refused at once, with a time to come back."""
    door = gate(concurrent=1, queued=1)
    door.enter()
    door.enter()
    with pytest.raises(QueueFull) as refusal:
        door.enter()
    assert refusal.value.retry_after_s is not None
    assert door.queued == 1


async def test_hands_the_permit_to_the_first_in_line():
    """Waiters are served in order of arrival."""
    door = gate()
    holder, first, second = door.enter(), door.enter(), door.enter()
    door.leave(holder)
    assert first.granted
    assert not second.granted


async def test_tells_a_waiter_its_place():
    """A waiter hears its position, counted from 1, until it is admitted."""
    door = gate()
    holder, _, second = door.enter(), door.enter(), door.enter()
    notices = []
    async for notice in door.wait(second, Deadline(5)):
        notices.append(notice.position)
        if len(notices) == 2:
            door.leave(holder)
            door.leave(next(iter(door._running)))
    assert notices[0] == 2
    assert second.granted


async def test_leaving_twice_releases_once():
    """A permit that is given back twice does not make two."""
    door = gate(concurrent=1)
    ticket = door.enter()
    door.leave(ticket)
    door.leave(ticket)
    door.enter()
    assert door.running == 1
    assert not door.enter().granted


async def test_a_waiter_that_leaves_frees_its_place():
    """Giving up in the queue takes no permit and leaves no trace."""
    door = gate()
    holder, waiter = door.enter(), door.enter()
    door.leave(waiter)
    door.leave(holder)
    assert (door.running, door.queued) == (0, 0)


async def test_a_cancelled_holder_gives_its_permit_back():
    """Cancellation while waiting or holding leaks nothing."""
    door = gate()

    async def visit():
        async with door.hold() as ticket:
            await waits(door, ticket)
            await asyncio.sleep(60)

    visitors = [asyncio.create_task(visit()) for _ in range(3)]
    await asyncio.sleep(0.02)
    assert (door.running, door.queued) == (1, 2)
    for visitor in visitors:
        visitor.cancel()
    await asyncio.gather(*visitors, return_exceptions=True)
    assert (door.running, door.queued) == (0, 0)


async def test_waiting_has_a_limit():
    """Nobody waits longer than the limit."""
    door = gate(max_wait_s=0.03)
    door.enter()
    with pytest.raises(QueueTimeout):
        await waits(door, door.enter())


async def test_waiting_ends_with_the_deadline():
    """A request whose own time is up is told so, not that the queue is slow."""
    door = gate()
    door.enter()
    with pytest.raises(DeadlineExceeded):
        await waits(door, door.enter(), Deadline(0.03))


async def test_a_draining_gate_admits_nobody():
    """After drain() the door is closed, and says for how long."""
    door = gate()
    door.drain()
    with pytest.raises(NotReady):
        door.enter()


async def test_the_eta_comes_from_what_was_seen():
    """Unknown before the first request has finished; then service time times queue length."""
    now = [0.0]
    door = AdmissionGate(limits=AdmissionLimits(2, 5, 60), clock=lambda: now[0])
    assert door.eta_s(0) is None
    ticket = door.enter()
    now[0] = 4.0
    door.leave(ticket)
    assert door.eta_s(0) == 2.0
    assert door.eta_s(3) == 8.0


@pytest.mark.parametrize("limits", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_limits_that_make_no_sense_are_refused(limits):
    """A gate that could never admit anybody cannot be built."""
    with pytest.raises(ValueError, match="limits"):
        AdmissionLimits(*limits)
