"""Blocking calls in bounded threads, and loops that last."""

import asyncio
import contextvars
import threading

import pytest

from orchestrator import concurrency
from orchestrator.concurrency import Threads, forever


@pytest.fixture
def waits():
    return []


@pytest.fixture
def threads(waits):
    threads = Threads(1, name="store", on_wait=lambda name, wait_s: waits.append((name, wait_s)))
    yield threads
    threads.close()


class Gate:
    """A call that blocks until it is let go."""

    def __init__(self):
        self.entered = threading.Event()
        self.may_go = threading.Event()

    def __call__(self):
        self.entered.set()
        assert self.may_go.wait(10)
        return threading.current_thread().name


async def test_calls_run_elsewhere_with_their_context(threads):
    """Arguments, result, exception and context variables pass between the threads."""
    request = contextvars.ContextVar("request", default="")
    request.set("r1")
    assert await threads.run(lambda a, b: (a, b, request.get()), 1, b=2) == (1, 2, "r1")
    assert (await threads.run(lambda: threading.current_thread().name)).startswith("store")
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)


async def test_a_call_given_up_keeps_its_thread(threads):
    """What hangs takes its share and no more: the next call waits until it has returned."""
    hanging, second = Gate(), Gate()
    second.may_go.set()
    first = asyncio.create_task(threads.run(hanging))
    await asyncio.to_thread(hanging.entered.wait, 10)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    waiting = asyncio.create_task(threads.run(second))
    await asyncio.to_thread(second.entered.wait, 0.05)
    assert not second.entered.is_set()
    hanging.may_go.set()
    assert (await waiting).startswith("store")


async def test_a_call_given_up_before_its_turn_never_runs(threads):
    """Cancelled in the queue is cancelled for good."""
    hanging, late = Gate(), Gate()
    first = asyncio.create_task(threads.run(hanging))
    await asyncio.to_thread(hanging.entered.wait, 10)
    second = asyncio.create_task(threads.run(late))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    hanging.may_go.set()
    await first
    assert await threads.run(lambda: "next") == "next"
    assert not late.entered.is_set()


async def test_the_wait_for_a_thread_is_told(waits):
    """Under the name of the pool, in seconds; the call's own time is not in it."""
    now_s = [0.0]
    pool = Threads(
        1,
        name="search",
        on_wait=lambda name, wait_s: waits.append((name, wait_s)),
        clock=lambda: now_s[0],
    )
    hanging = Gate()
    first = asyncio.create_task(pool.run(hanging))
    await asyncio.to_thread(hanging.entered.wait, 10)
    second = asyncio.create_task(pool.run(lambda: None))
    await asyncio.sleep(0)
    now_s[0] = 2.5
    hanging.may_go.set()
    await asyncio.gather(first, second)
    pool.close()
    assert sorted(waits) == [("search", 0.0), ("search", 2.5)]


@pytest.fixture
def patient():
    """Three threads, of which two are for what the first leaves waiting."""
    threads = Threads(3, name="search", patience_s=0.05)
    yield threads
    threads.close()


async def test_short_calls_share_the_first_thread(patient):
    """However many come at once."""
    names = await asyncio.gather(*(patient.run(threading.get_ident) for _ in range(50)))
    assert len(set(names)) == 1


async def test_nobody_waits_for_long_behind_one_that_hangs(patient):
    """Whoever has waited gets another thread, runs once, and the hanging one still returns."""
    hanging, ran = Gate(), []
    first = asyncio.create_task(patient.run(hanging))
    await asyncio.to_thread(hanging.entered.wait, 10)
    async with asyncio.timeout(5):
        await asyncio.gather(*(patient.run(ran.append, n) for n in range(20)))
    hanging.may_go.set()
    await first
    # The first thread finds what was taken from it, and leaves it alone.
    await patient.run(lambda: None)
    assert sorted(ran) == list(range(20))


async def test_calls_that_hang_keep_their_share_and_no_more(patient):
    """With patience, too, there are never more than so many threads."""
    gates = [Gate() for _ in range(4)]
    tasks = [asyncio.create_task(patient.run(gate)) for gate in gates]
    for gate in gates[:3]:
        await asyncio.to_thread(gate.entered.wait, 10)
    await asyncio.sleep(0.2)
    assert not gates[3].entered.is_set()
    for gate in gates:
        gate.may_go.set()
    await asyncio.gather(*tasks)


async def test_closing_gives_up_those_who_wait(threads):
    """They are cancelled; nobody waits for ever for a thread that takes no more."""
    hanging = Gate()
    running = asyncio.create_task(threads.run(hanging))
    await asyncio.to_thread(hanging.entered.wait, 10)
    waiting = asyncio.create_task(threads.run(lambda: None))
    await asyncio.sleep(0)
    threads.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hanging.may_go.set()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_loop_outlasts_its_bugs(monkeypatch, caplog):
    """Each is logged with its stack; only a cancellation ends it."""
    monkeypatch.setattr(concurrency, "AFTER_BUG_S", 0.0)
    taken = asyncio.Event()
    steps = iter([ValueError("one"), KeyError("two"), None])

    async def step():
        if bug := next(steps, None):
            raise bug
        taken.set()
        await asyncio.sleep(0.001)

    loop = asyncio.create_task(forever(step, what="the gatekeeper"))
    async with asyncio.timeout(10):
        await taken.wait()
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
    assert [record.exc_info[0] for record in caplog.records] == [ValueError, KeyError]
    assert "the gatekeeper" in caplog.text
