"""What is taken off the plan after a bad end, how far that goes, and that it is remembered."""

import json

import pytest

from model_server.errors import CheckpointError, DoesNotFit
from model_server.memory import GIB, MIB
from model_server.planner import Goals, make_plan
from model_server.remedies import (
    MAX_EXTRA_BYTES,
    MAX_NOTCHES,
    NOTCH,
    Adjustments,
    Remedies,
)
from tests.unit.model_server.making import make_gpu, make_shape

OUT_OF_MEMORY = ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"]


def too_long(tokens):
    return [f"Based on the available memory, the estimated maximum model length is {tokens}."]


class Kernel:
    """Counts the processes that it has killed for want of memory."""

    def __init__(self):
        self.kills = 3

    def __call__(self):
        return self.kills


@pytest.fixture
def kernel():
    return Kernel()


@pytest.fixture
def make(tmp_path, kernel):
    def remedies(subject="a model on a card"):
        return Remedies(path=tmp_path / "d" / "a.json", subject=subject, oom_kills=kernel)

    return remedies


@pytest.mark.parametrize("was_ready", [True, False])
def test_out_of_memory_costs_a_notch_and_is_remembered(make, was_ready):
    """The next start, also of another program, plans for less; it says how much and where."""
    remedies = make()
    said = remedies.consider(OUT_OF_MEMORY, was_ready=was_ready)
    assert "5% less memory" in said
    assert "a.json" in said
    assert "CUDA out of memory" in said
    assert remedies.adjustments == make().adjustments == Adjustments(notches=1)


def test_a_plan_with_notches_is_smaller_by_as_much():
    """A notch is a twentieth of the budget."""
    goals = Goals()
    less = Adjustments(notches=2).applied_to(goals)
    whole, small = (
        make_plan(device=make_gpu(), shape=make_shape(), goals=g) for g in (goals, less)
    )
    assert small.sums.budget == pytest.approx(whole.sums.budget * (1 - 2 * NOTCH), abs=1)
    assert small.kv_cache_bytes < whole.kv_cache_bytes


def test_a_context_is_lowered_to_what_the_engine_says_and_never_raised():
    """A shorter wish of the settings stays."""
    known = Adjustments(max_model_len=4000)
    assert known.applied_to(Goals()).max_model_len == 4000
    assert known.applied_to(Goals(max_model_len=8000)).max_model_len == 4000
    assert known.applied_to(Goals(max_model_len=2000)).max_model_len == 2000


def test_a_shorter_context_is_taken_once_for_each_length(make):
    """What the engine says twice does not help twice."""
    remedies = make()
    assert "a context of 4000 tokens" in remedies.consider(too_long(4000), was_ready=False)
    assert "a context of 3000 tokens" in remedies.consider(too_long(3000), was_ready=False)
    with pytest.raises(DoesNotFit, match="length is 3000"):
        remedies.consider(too_long(3000), was_ready=False)


def test_a_context_that_holds_nothing_is_not_served(make):
    """Better one clear line than a service that can answer no question."""
    with pytest.raises(DoesNotFit, match="length is 100"):
        make().consider(too_long(100), was_ready=False)


def test_less_and_less_ends(make):
    """A start that fails for memory at two thirds of it will not do with half."""
    remedies = make()
    for _ in range(MAX_NOTCHES):
        assert remedies.consider(OUT_OF_MEMORY, was_ready=False)
    with pytest.raises(DoesNotFit):
        remedies.consider(OUT_OF_MEMORY, was_ready=False)
    assert remedies.consider(OUT_OF_MEMORY, was_ready=True) is None


def test_what_cannot_be_cured_ends_it_at_once_but_only_at_a_start(make):
    """An engine that has served has shown that its files are whole."""
    damaged = ["safetensors_rust.SafetensorError: Error while deserializing header"]
    with pytest.raises(CheckpointError, match="deserializing header"):
        make().consider(damaged, was_ready=False)
    assert make().consider(damaged, was_ready=True) is None


def test_a_process_that_the_kernel_killed_for_memory_leaves_no_words(make, kernel):
    """Its counter tells, and only what it counted in this life."""
    remedies = make()
    remedies.life_begins()
    assert remedies.consider(["killed"], was_ready=True) is None
    kernel.kills += 1
    assert "the kernel killed" in remedies.consider(["killed"], was_ready=True)
    remedies.life_begins()
    assert remedies.consider(["killed"], was_ready=True) is None
    assert remedies.adjustments.notches == 1


def test_an_unknown_end_changes_nothing(make, tmp_path):
    """Nor is anything written."""
    assert make().consider(["anything"], was_ready=False) is None
    assert not (tmp_path / "d").exists()


def test_another_model_or_card_begins_anew(make):
    """What one could not hold says nothing of another."""
    make().consider(OUT_OF_MEMORY, was_ready=True)
    assert make("another").adjustments == Adjustments()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"subject": "a model on a card", "notches": "many"}',
        '{"subject": "a model on a card", "notches": 99}',
        '{"subject": "a model on a card", "max_model_len": 0}',
        '{"subject": "a model on a card", "who": 1}',
    ],
)
def test_a_file_that_makes_no_sense_counts_as_none(make, tmp_path, text):
    """Whoever wrote it, the engine starts."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.json").write_text(text)
    assert make().adjustments == Adjustments()


def test_a_disk_that_takes_nothing_costs_only_the_memory_of_it(make, tmp_path):
    """The next start is smaller all the same."""
    remedies = make()
    (tmp_path / "d").write_text("a file where the folder should be")
    assert remedies.consider(OUT_OF_MEMORY, was_ready=True)
    assert remedies.adjustments.notches == 1
    assert make().adjustments == Adjustments()


def test_what_is_remembered_is_whole(make, tmp_path):
    """JSON with the subject, for whoever looks into it."""
    make().consider(OUT_OF_MEMORY, was_ready=True)
    known = json.loads((tmp_path / "d" / "a.json").read_text())
    assert known == {
        "subject": "a model on a card",
        "max_model_len": None,
        "notches": 1,
        "extra_bytes": 0,
    }
    assert not list((tmp_path / "d").glob("*.tmp"))


class TestHeldBeyondThePlan:
    """An engine that holds more than was planned for it is planned larger, before it runs short."""

    def test_the_next_plan_has_room_for_it_and_remembers(self, make, caplog):
        """Rounded up, said once, in the file for the next program; a plan takes it off the cache."""
        remedies = make()
        remedies.life_begins()
        for held in (4 * GIB, 4 * GIB + 100 * MIB, 4 * GIB + 90 * MIB):
            remedies.learn(held_bytes=held, planned_bytes=4 * GIB)
        assert remedies.adjustments == make().adjustments == Adjustments(extra_bytes=128 * MIB)
        assert caplog.text.count("were planned") == 1
        usual, larger = (
            make_plan(device=make_gpu(), shape=make_shape(), goals=goals)
            for goals in (Goals(), remedies.adjustments.applied_to(Goals()))
        )
        assert larger.sums.runtime - usual.sums.runtime == 128 * MIB
        assert larger.kv_cache_bytes < usual.kv_cache_bytes
        assert larger.total_bytes <= larger.sums.budget

    def test_a_next_life_adds_to_what_its_own_plan_had(self, make):
        """What was planned for is not learnt twice; what comes on top of it is."""
        remedies = make()
        remedies.learn(held_bytes=4 * GIB + 64 * MIB, planned_bytes=4 * GIB)
        remedies.life_begins()
        remedies.learn(held_bytes=4 * GIB + 64 * MIB, planned_bytes=4 * GIB + 64 * MIB)
        assert remedies.adjustments.extra_bytes == 64 * MIB
        remedies.learn(held_bytes=4 * GIB + 65 * MIB, planned_bytes=4 * GIB + 64 * MIB)
        assert remedies.adjustments.extra_bytes == 128 * MIB

    def test_a_leak_is_not_planned_for(self, make):
        """The extra has an end; and a file with more in it is none."""
        remedies = make()
        remedies.learn(held_bytes=40 * GIB, planned_bytes=4 * GIB)
        assert remedies.adjustments.extra_bytes == MAX_EXTRA_BYTES

    def test_less_than_planned_teaches_nothing(self, make, tmp_path):
        """The formulas err upwards; nothing is written."""
        make().learn(held_bytes=GIB, planned_bytes=4 * GIB)
        assert not (tmp_path / "d" / "a.json").exists()
