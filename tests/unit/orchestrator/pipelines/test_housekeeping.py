"""Indexes are saved when they are at rest, let go when cold, and a full disk only delays that."""

import asyncio

import pytest

from orchestrator.concurrency import Threads
from orchestrator.pipelines import housekeeping
from orchestrator.pipelines.housekeeping import Housekeeper


class FakeIndexes:
    """Counts what it is asked for; the first so many saves fail."""

    def __init__(self):
        self.saves = []
        self.unloads = 0
        self.failures = 0

    def save(self, *, quiet_s):
        self.saves.append(quiet_s)
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")

    def unload_idle(self):
        self.unloads += 1

    def renew_outgrown(self):
        pass


@pytest.fixture
def indexes():
    return FakeIndexes()


async def look_on(indexes, times):
    keeper = Housekeeper(indexes=indexes, threads=Threads(1), look_s=0.01)
    await keeper.start()
    async with asyncio.timeout(10):
        while len(indexes.saves) < times:
            await asyncio.sleep(0.01)
    await keeper.aclose()


async def test_it_looks_again_and_again_and_once_more_at_the_end(indexes):
    """While running it leaves alone what changes; at the end everything is saved."""
    await look_on(indexes, 3)
    assert set(indexes.saves[:-1]) == {housekeeping.QUIET_S}
    assert indexes.saves[-1] == 0
    assert indexes.unloads >= 3


async def test_a_full_disk_is_logged_and_tried_again(indexes, monkeypatch, caplog):
    """The service goes on; so does the housekeeper, after a longer pause."""
    monkeypatch.setattr(housekeeping, "AFTER_FAILURE_S", 0.05)
    indexes.failures = 2
    await look_on(indexes, 4)
    assert caplog.text.count("could not be saved") == 2


async def test_the_heap_is_given_back_after_documents_and_not_otherwise(indexes):
    """Once for each look that finds new ones done."""
    done, given_back = [0], []
    keeper = Housekeeper(
        indexes=indexes,
        threads=Threads(1),
        finished=lambda: done[0],
        give_back=lambda: given_back.append(done[0]),
        look_s=0.01,
    )
    await keeper.start()
    for count in (2, 5):
        done[0], seen = count, len(indexes.saves)
        async with asyncio.timeout(10):
            while len(indexes.saves) < seen + 4:
                await asyncio.sleep(0.01)
    await keeper.aclose()
    assert given_back == [2, 5]
