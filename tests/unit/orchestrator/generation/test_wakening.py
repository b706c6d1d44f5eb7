"""Questions to a sleeping engine: one wake for all, a notice each, and an end in time."""

import asyncio
from dataclasses import replace

import pytest

from orchestrator.errors import DeadlineExceeded, EngineUnavailable, NotReady, QueueFull
from orchestrator.generation.engine_client import EngineModel
from orchestrator.generation.engine_keeper import EngineLife
from orchestrator.generation.engine_monitor import EngineState
from orchestrator.generation.wakening import Wakening
from orchestrator.resilience.deadline import Deadline

AWAKE = EngineState(EngineModel("m", None))
ASLEEP = EngineState(None, life=EngineLife(asleep=True, eta_s=20.0))
DOWN = EngineState(None, life=EngineLife())


class FakeKeeper:
    """Counts the orders; refuses them if told to."""

    def __init__(self) -> None:
        self.orders = 0
        self.refuses: EngineUnavailable | None = None
        self.monitor: FakeMonitor | None = None

    async def wake(self) -> None:
        self.orders += 1
        if self.refuses:
            raise self.refuses
        if self.monitor is not None:
            life = replace(self.monitor.state.life, waking=True)
            self.monitor.state = replace(self.monitor.state, life=life)


class FakeMonitor:
    """Asleep until the test says otherwise."""

    def __init__(self) -> None:
        self.state = ASLEEP
        self.looks = 0

    async def refresh(self) -> EngineState:
        self.looks += 1
        return self.state


class Bed:
    """A sleeping engine, and where its questions wait."""

    def __init__(self, **options) -> None:
        self.keeper, self.monitor = FakeKeeper(), FakeMonitor()
        self.keeper.monitor = self.monitor
        self.wakening = Wakening(
            monitor=self.monitor,
            keeper=self.keeper,
            max_waiting=options.pop("max_waiting", 100),
            look_s=0.001,
            notify_s=0.005,
            **options,
        )

    async def ask(self, within_s: float = 60.0):
        return [notice async for notice in self.wakening.wait(Deadline(within_s))]


@pytest.fixture
async def bed():
    made = Bed()
    yield made
    await made.wakening.aclose()


@pytest.mark.parametrize("state", [AWAKE, DOWN, EngineState(None)])
async def test_an_engine_that_does_not_sleep_is_not_woken(bed, state):
    """Ready, failed, or nobody knows: nothing to wait for here."""
    bed.monitor.state = state
    assert await bed.ask() == []
    assert bed.keeper.orders == bed.monitor.looks == 0


async def test_fifty_questions_wake_it_once(bed):
    """All wait, each with its place and the time that it takes, and all go on together."""
    asked = [asyncio.create_task(bed.ask()) for _ in range(50)]
    await asyncio.sleep(0.02)
    assert bed.wakening.waiting == 50
    assert bed.keeper.orders == 1, "the keeper says from then on that it is on its way"
    bed.monitor.state = AWAKE
    notices = await asyncio.gather(*asked)
    assert bed.keeper.orders == 1
    assert bed.wakening.waiting == 0
    assert sorted(given[0].position for given in notices) == list(range(1, 51))
    assert {notice.eta_s for given in notices for notice in given} == {20.0}


async def test_an_engine_that_is_put_to_sleep_again_is_woken_again(bed):
    """Nobody has seen it awake in between; while it is on its way no order is repeated."""
    bed.monitor.state = EngineState(None, life=EngineLife(asleep=True, waking=True))
    asked = asyncio.create_task(bed.ask())
    await asyncio.sleep(0.02)
    assert bed.keeper.orders == 0
    bed.monitor.state = ASLEEP
    await asyncio.sleep(0.02)
    assert bed.keeper.orders >= 1
    bed.monitor.state = AWAKE
    await asked


async def test_a_start_that_fails_lets_everybody_go(bed):
    """Who waits goes on as soon as the engine is no longer on its way: others know what to say."""
    asked = asyncio.create_task(bed.ask())
    await asyncio.sleep(0.01)
    bed.monitor.state = DOWN
    assert await asyncio.wait_for(asked, 1)


async def test_an_order_that_is_refused_is_told():
    """Each of those who wait is told why, and the next question tries again."""
    bed = Bed()
    bed.keeper.refuses = EngineUnavailable("the control key is wrong")
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="control key"):
            await bed.ask()
    assert bed.keeper.orders == 2
    assert bed.wakening.waiting == 0


async def test_who_has_too_little_time_is_told_at_once_and_wakes_it_all_the_same(bed):
    """The time left is held against the time a start takes; the next one finds it awake."""
    with pytest.raises(EngineUnavailable, match="ready in about 20 s") as told:
        await bed.ask(within_s=5)
    assert told.value.retry_after_s == 20
    await asyncio.sleep(0.01)
    assert bed.keeper.orders == 1
    assert bed.wakening.waiting == 0


async def test_a_deadline_ends_the_wait(bed):
    """Where nobody knows how long it takes, the request's own time ends it."""
    bed.monitor.state = EngineState(None, life=EngineLife(asleep=True))
    with pytest.raises(DeadlineExceeded):
        await bed.ask(within_s=0.02)
    assert bed.wakening.waiting == 0


async def test_too_many_are_told():
    """The place after the last one is refused, with a time to come back."""
    bed = Bed(max_waiting=2)
    asked = [asyncio.create_task(bed.ask()) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(QueueFull) as told:
        await bed.ask()
    assert told.value.retry_after_s == 20
    bed.monitor.state = AWAKE
    await asyncio.gather(*asked)
    await bed.wakening.aclose()


async def test_shutting_down_ends_the_wait():
    """Whoever waits is told when the service closes."""
    closed = False

    def check_open():
        if closed:
            raise NotReady("shutting down")

    bed = Bed(check_open=check_open)
    asked = asyncio.create_task(bed.ask())
    await asyncio.sleep(0.01)
    closed = True
    with pytest.raises(NotReady):
        await asyncio.wait_for(asked, 1)
    await bed.wakening.aclose()


async def test_who_leaves_frees_the_place(bed):
    """A question whose caller hung up waits no longer; the others do."""
    asked = [asyncio.create_task(bed.ask()) for _ in range(2)]
    await asyncio.sleep(0.01)
    asked[0].cancel()
    await asyncio.wait({asked[0]})
    assert bed.wakening.waiting == 1
    bed.monitor.state = AWAKE
    await asked[1]


async def test_whether_it_fell_asleep_is_looked_at_now(bed):
    """The state of the last look is not believed; without a keeper nobody sleeps."""
    bed.monitor.state = AWAKE
    assert not await bed.wakening.slept_since(0)
    bed.monitor.state = ASLEEP
    assert await bed.wakening.slept_since(0)
    bed.monitor.state = EngineState(EngineModel("m", None), life=EngineLife(unloads=3))
    assert bed.wakening.unloads == 3
    assert await bed.wakening.slept_since(2), "it is awake again"
    assert not await bed.wakening.slept_since(3)
    alone = Wakening(monitor=bed.monitor, keeper=None, max_waiting=1)
    assert not await alone.slept_since(2)
