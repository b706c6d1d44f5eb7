"""One case of the before/after comparison, around a system that does what it is told."""

import asyncio

from loadtest.asking import Acts
from loadtest.before_after import observe
from loadtest.contenders import Contender
from loadtest.http_client import Response

RESET = Response(ending="reset", status=0, headers={}, body=b"")


class FakeGroup:
    def __init__(self):
        self.killed, self.kept, self.peaks_begun = 5, 100, 0

    def begin_peak(self):
        self.peaks_begun += 1

    def kills(self):
        return self.killed

    def peak_bytes(self):
        return 900

    def kept_bytes(self):
        return self.kept


class FakeSystem(Contender):
    name = "fake"
    program = None

    def __init__(self, tmp_path):
        super().__init__(FakeGroup(), tmp_path, answer_tokens=8)
        self.alive, self.ended, self.names = True, 2, ["a", "b"]

    def __enter__(self):
        return self

    def die(self):
        self.alive, self.names = False, []
        self.group.killed += 1

    def keep_up(self):
        if not self.alive:
            self.alive, self.ended = True, self.ended + 1

    def deaths(self):
        return self.ended

    def documents(self):
        return len(self.names)


def test_what_was_before_a_case_is_not_in_its_figures(tmp_path):
    """Kills and deaths are those of the case; the documents are held against what there was."""
    system, acts = FakeSystem(tmp_path), Acts(uploads=1, accepted=1)

    async def act():
        acts.responses.append(RESET)
        system.group.kept = 700
        await asyncio.sleep(0.3)
        system.group.kept = 200
        system.die()

    result = observe(system, "a case", acts, act())
    assert (result.killed, result.died, result.documents, result.expected) == (1, 1, 0, 3)
    assert (result.kept_bytes, result.peak_bytes, result.outcomes.failed) == (
        700,
        900,
        {"reset": 1},
    )
    assert system.group.peaks_begun == 1


def test_a_system_that_dies_is_up_again_while_people_still_ask(tmp_path):
    """A process manager does not wait for the end of the case."""
    system, alive = FakeSystem(tmp_path), []

    async def act():
        system.die()
        await asyncio.sleep(0.5)
        alive.append(system.alive)

    assert observe(system, "a case", Acts(), act()).died == 1
    assert alive == [True]
