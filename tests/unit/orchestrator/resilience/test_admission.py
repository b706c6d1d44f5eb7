"""Waiting at the gate: notices, time-outs, draining, and being cancelled at any moment."""

import asyncio
import contextlib

import pytest

from orchestrator.domain import Band, Caller, Queued
from orchestrator.errors import DeadlineExceeded, NotReady, QueueFull, QueueTimeout
from orchestrator.resilience.admission import AdmissionGate, Bulkhead
from orchestrator.resilience.admission_policy import AdmissionLimits, Demand
from orchestrator.resilience.deadline import Deadline


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self):
        super().__init__()
        self.now_s = 0.0

    def time(self):
        return self.now_s

    def _run_once(self):
        timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]
        if not self._ready and timers:
            self.now_s = max(self.now_s, min(timers))
        super()._run_once()


def play(scenario):
    """What the coroutine function `scenario` returns, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario())


class CancelledAt:
    """Awaits a coroutine, and cancels the task at its k-th suspension (from 0)."""

    def __init__(self, coroutine, k):
        self._coroutine = coroutine
        self._k = k
        self.suspensions = 0

    def __await__(self):
        step = self._coroutine.__await__()
        send = step.__next__
        while True:
            try:
                waits_for = send()
            except StopIteration as end:
                return end.value
            if self.suspensions == self._k:
                asyncio.current_task().cancel()
            self.suspensions += 1
            try:
                yield waits_for
            except BaseException as exc:  # noqa: BLE001 - handed on to the coroutine
                send = lambda exc=exc: step.throw(exc)  # noqa: E731
            else:
                send = step.__next__


def now_s():
    return asyncio.get_running_loop().time()


class Bench:
    """A gate on the loop's virtual clock."""

    def __init__(self, **limits):
        facts = {"max_concurrent": 1, "max_queued": 8, "wait_target_s": 10.0} | limits
        self.gate = AdmissionGate(limits=AdmissionLimits(**facts), clock=now_s)
        self.began = []

    async def ask(self, name, *, prompt=100, grows_to=None, holds_s=1.0, within_s=100.0):
        """One request's way through the gate, as the pipeline goes it."""
        gate, deadline = self.gate, Deadline(within_s, clock=now_s)
        demand = Demand(prompt, 10, 10, 10)
        async with gate.hold(demand, deadline, Caller(name)) as ticket:
            async for _ in gate.wait(ticket, deadline):
                pass
            if grows_to is not None:
                await asyncio.sleep(0.1)
                await gate.resize(ticket, grows_to, deadline)
            self.began.append(name)
            gate.progress(ticket, 10)
            await asyncio.sleep(holds_s)
            ticket.finished = True

    def empty(self):
        gate = self.gate
        return (gate.running, gate.queued, gate.state().reserved_tokens) == (0, 0, 0)


async def after(delay_s, coroutine):
    await asyncio.sleep(delay_s)
    return await coroutine


def crowd(k):
    """
    A victim that waits, is let in, outgrows its room and waits again, cancelled at suspension k.

    Gives the number of its suspensions, and who was served.
    """

    async def scenario():
        bench = Bench(max_concurrent=2, kv_tokens=1000, safety=1.0)
        victim = CancelledAt(bench.ask("victim", grows_to=700), k)

        async def cancelled():
            with contextlib.suppress(asyncio.CancelledError):
                await victim

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.ask("first", prompt=300, holds_s=2.5))
            tasks.create_task(bench.ask("long", prompt=300, holds_s=5.0))
            tasks.create_task(after(0.1, cancelled()))
            tasks.create_task(after(0.2, bench.ask("third", prompt=200)))
            tasks.create_task(after(0.3, bench.ask("fourth", prompt=600)))
        assert bench.empty()
        return victim.suspensions, bench.began

    return play(scenario)


def test_cancelled_at_any_await_it_leaves_nothing_behind():
    """Wherever a request is cancelled, its room is free again and everybody else is served."""
    suspensions, served = crowd(k=-1)
    assert suspensions >= 7
    assert sorted(served) == ["first", "fourth", "long", "third", "victim"]
    for k in range(suspensions):
        _, served = crowd(k)
        assert {"first", "fourth", "long", "third"} <= set(served), f"cancelled at {k}"


def test_room_given_to_one_who_is_cancelled_goes_to_the_next():
    """Let in and cancelled at the same moment: the reservation does not get lost."""

    async def scenario():
        bench = Bench()
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.ask("first", holds_s=1.0))
            unlucky = tasks.create_task(after(0.1, bench.ask("unlucky")))
            tasks.create_task(after(0.2, bench.ask("lucky")))
            await asyncio.sleep(0.5)
            holder = next(iter(bench.gate._ledger.live))
            waiter = next(iter(bench.gate._ledger.queue))
            bench.gate.leave(holder)
            assert waiter.granted
            unlucky.cancel()
        assert bench.empty()
        return bench.began

    assert play(scenario) == ["first", "lucky"]


def test_the_order_is_kept_through_a_crowd():
    """Fifty at once go one after the other, in the order in which they came."""

    async def scenario():
        bench = Bench(max_queued=50, wait_target_s=100.0)
        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                tasks.create_task(bench.ask("one", within_s=200 + number, holds_s=0.5))
        assert bench.empty()
        return len(bench.began), now_s()

    assert play(scenario) == (50, pytest.approx(25.0))


def test_a_waiter_hears_of_its_place_each_second():
    """A notice at once and then one a second, and the wait is measured."""

    async def scenario():
        bench = Bench()
        deadline = Deadline(100, clock=now_s)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.ask("first", holds_s=2.5))
            await asyncio.sleep(0)
            async with bench.gate.hold(Demand(1, 1, 1, 1), deadline, Caller()) as ticket:
                heard = [(now_s(), notice) async for notice in bench.gate.wait(ticket, deadline)]
                return heard, ticket.waited_s

    heard, waited_s = play(scenario)
    assert heard == [(second, Queued(1, None)) for second in (0.0, 1.0, 2.0)]
    assert waited_s == 2.5


def test_whoever_is_let_in_at_once_hears_nothing():
    """No notice, no wait."""

    async def scenario():
        bench = Bench()
        deadline = Deadline(100, clock=now_s)
        async with bench.gate.hold(Demand(1, 1, 1, 1), deadline, Caller()) as ticket:
            assert [n async for n in bench.gate.wait(ticket, deadline)] == []
            assert (ticket.granted, ticket.waited_s) == (True, 0.0)
        assert bench.empty()

    play(scenario)


@pytest.mark.parametrize(
    ("within_s", "error", "at_s"), [(100.0, QueueTimeout, 20.0), (7.5, DeadlineExceeded, 7.5)]
)
def test_waiting_ends_on_time(within_s, error, at_s):
    """At twice the wait target or at the deadline, to the moment, with nothing left behind."""

    async def scenario():
        bench = Bench()
        deadline = Deadline(60, clock=now_s)
        async with bench.gate.hold(Demand(1, 1, 1, 1), deadline, Caller()):
            with pytest.raises(error):
                await bench.ask("late", within_s=within_s)
            assert now_s() == pytest.approx(at_s, abs=0.01)
            assert bench.gate.queued == 0

    play(scenario)


def test_a_drain_wakes_those_who_wait():
    """They are told at once and not at their next notice; who is inside finishes."""

    async def scenario():
        bench = Bench()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.ask("inside", holds_s=5.0))
            waits = tasks.create_task(after(0.1, until_refused(bench)))
            await asyncio.sleep(0.55)
            bench.gate.drain()
            assert await waits == pytest.approx(0.55)
        assert bench.empty()
        return bench.began

    async def until_refused(bench):
        with pytest.raises(NotReady):
            await bench.ask("waits")
        return now_s()

    assert play(scenario) == ["inside"]


def test_one_whose_place_is_taken_is_told_at_once():
    """The last in a full queue makes room for a higher band, and hears it at that moment."""

    async def scenario():
        bench = Bench(max_queued=1)
        deadline = Deadline(100, clock=now_s)

        async def loses():
            with pytest.raises(QueueFull):
                await bench.ask("loses")
            return now_s()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.ask("first", holds_s=5.0))
            loser = tasks.create_task(after(0.1, loses()))
            await asyncio.sleep(0.45)
            person = Caller("person", Band.INTERACTIVE)
            async with bench.gate.hold(Demand(1, 1, 1, 1), deadline, person):
                assert await loser == pytest.approx(0.45)
                assert bench.gate.queued == 1
        assert bench.empty()

    play(scenario)


def test_an_outgrown_room_is_waited_for_first_of_its_tenant():
    """It goes before its tenant's other requests, because work was already spent on it."""

    async def scenario():
        bench = Bench(max_concurrent=3, kv_tokens=1000, safety=1.0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bench.ask("one", prompt=300, holds_s=3.0))
            tasks.create_task(bench.ask("one", prompt=100, grows_to=800))
            tasks.create_task(after(0.05, bench.ask("one", prompt=750, within_s=20.0)))
            await asyncio.sleep(2)
            assert (bench.gate.running, bench.gate.queued) == (1, 2)
            await asyncio.sleep(1.5)
            assert [t.demand.prompt_tokens for t in bench.gate._ledger.live] == [800]
        assert bench.empty()

    play(scenario)


def test_a_block_that_fails_gives_its_room_back():
    """Whatever ends the block, the reservation ends with it."""

    async def scenario():
        bench = Bench()
        deadline = Deadline(100, clock=now_s)
        with pytest.raises(ZeroDivisionError):
            async with bench.gate.hold(Demand(1, 1, 1, 1), deadline, Caller()):
                raise ZeroDivisionError
        assert bench.empty()

    play(scenario)


def test_a_bulkhead_has_so_many_places():
    """One more is told at once; a place comes free when its block ends, however it ends."""
    bulkhead = Bulkhead(1)

    def fail():
        with bulkhead.hold(RuntimeError):
            raise ZeroDivisionError

    with bulkhead.hold(RuntimeError):
        assert bulkhead.used == 1
        with pytest.raises(RuntimeError):
            fail()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert bulkhead.used == 0
