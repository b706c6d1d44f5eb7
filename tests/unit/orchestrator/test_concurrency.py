"""Blocking calls in bounded threads."""

import asyncio
import contextvars
import threading

import pytest

from orchestrator.concurrency import Threads


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
