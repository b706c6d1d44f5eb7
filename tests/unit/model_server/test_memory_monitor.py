"""The level follows the looks; whatever a look does, the watching goes on."""

import asyncio
import logging

import pytest

from model_server.memory_monitor import MemoryMonitor
from model_server.memory_pressure import Pressure
from model_server.memory_watch import MemoryReading
from tests.unit.model_server.making import GIB

ENGINE = 100


def reading(free=8 * GIB, engine=4 * GIB):
    return MemoryReading(
        total_bytes=16 * GIB,
        free_bytes=free,
        engine_bytes=engine,
        others_bytes=None,
        host_total_bytes=16 * GIB,
        host_free_bytes=free or 0,
        engine_host_bytes=engine,
    )


class Looks:
    """Gives one reading after the other, the last one for ever; raises what is an error."""

    def __init__(self, *told):
        self.told = list(told)
        self.pids = []

    def look(self, pid):
        self.pids.append(pid)
        told = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(told, Exception):
            raise told
        return told


def monitor(looks, *, pid=ENGINE, look_s=5.0):
    """One of an engine that may take 4 GiB, with a reserve of 1 GiB."""
    return MemoryMonitor(
        watch=looks,
        engine_pid=lambda: pid,
        planned_bytes=lambda: 4 * GIB,
        reserve_bytes=lambda: GIB,
        look_s=look_s,
    )


async def levels(looks, count, **more):
    watching = monitor(looks, **more)
    told = []
    for _ in range(count):
        await watching.look()
        told.append(watching.pressure)
    return told


def test_before_the_first_look_nothing_is_known():
    """No reading, and no pressure."""
    watching = monitor(Looks(reading()))
    assert watching.reading is None
    assert watching.pressure is Pressure.NONE


async def test_the_level_follows_what_is_left(caplog):
    """It rises at once and falls late; each change is one line, a warning on the way up."""
    caplog.set_level(logging.INFO)
    looks = Looks(*(reading(free=share * GIB // 8) for share in (8, 3, 1, 2, 5, 7)))
    told = await levels(looks, 6)
    assert told == ["none", "high", "critical", "critical", "high", "none"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2 + ["INFO"] * 2
    assert "critical after high, with 128 MiB left of a reserve of 1.00 GiB" in caplog.text


async def test_what_the_engine_still_will_take_is_not_free():
    """5 GiB free while it loads, and 4 of them spoken for: enough. With 4.3 it is not."""
    looks = Looks(reading(free=5 * GIB, engine=0), reading(free=int(4.3 * GIB), engine=0))
    assert await levels(looks, 2) == ["none", "high"]


async def test_an_engine_that_sleeps_will_take_nothing():
    """Without an engine only what is free counts, and the look is told that there is none."""
    looks = Looks(reading(free=int(1.5 * GIB), engine=0))
    assert await levels(looks, 1, pid=None) == ["none"]
    assert looks.pids == [None]


@pytest.mark.parametrize("blind", [reading(free=None, engine=None), OSError("no more files")])
async def test_a_look_that_sees_nothing_leaves_the_level(blind, caplog):
    """A card that is lost, a look that fails: unknown is not well; and the next one counts again."""
    looks = Looks(reading(free=0), blind, reading())
    assert await levels(looks, 3) == ["critical", "critical", "none"]


async def test_a_failed_look_is_told_and_shows_no_old_figures(caplog):
    """The page must not go on showing what was."""
    watching = monitor(Looks(reading(), OSError("no more files")))
    await watching.look()
    assert watching.reading == reading()
    await watching.look()
    assert watching.reading is None
    assert "no more files" in caplog.text


async def test_it_looks_until_cancelled():
    """Also after a look that failed."""
    looks = Looks(OSError(), reading(free=0))
    watching = monitor(looks, look_s=0.001)
    running = asyncio.create_task(watching.run())
    async with asyncio.timeout(10):
        while watching.pressure is not Pressure.CRITICAL:
            await asyncio.sleep(0.001)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_what_the_engine_holds_is_told_beside_its_plan():
    """Only of an engine that is there still, and only what is known."""
    told, pids = [], [ENGINE, ENGINE, ENGINE, ENGINE, None, None]
    watching = MemoryMonitor(
        watch=Looks(reading(engine=5 * GIB), reading(engine=None), reading(engine=6 * GIB)),
        engine_pid=lambda: pids.pop(0),
        planned_bytes=lambda: 4 * GIB,
        reserve_bytes=lambda: GIB,
        on_held=lambda *pair: told.append(pair),
    )
    for _ in range(4):
        await watching.look()
    assert told == [(5 * GIB, 4 * GIB)]
