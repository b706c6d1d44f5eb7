"""Continuous batching: everybody gets the whole answer, within the budget and the cache."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from model_server.simulator.kv_cache import KvCache
from model_server.simulator.scheduler import Scheduler, Sequence

BLOCK = 4


def scheduler(*, blocks=100, seqs=8, budget=32):
    cache = KvCache(tokens=(blocks + 1) * BLOCK, block_size=BLOCK)
    return Scheduler(cache=cache, max_num_seqs=seqs, max_num_batched_tokens=budget)


def run(batch, sequences, *, most_steps=10_000):
    """Steps until everybody is done, each checked."""
    for sequence in sequences:
        batch.add(sequence)
    steps = []
    while batch.running or batch.waiting:
        step = batch.schedule()
        assert len(batch.running) <= batch._max_num_seqs
        assert step.prefill_tokens + step.decoding <= batch._max_num_batched_tokens
        assert 0 <= batch.cache.usage <= 1
        batch.complete(step)
        steps.append(step)
        assert len(steps) < most_steps
    return steps


def test_a_prompt_is_computed_in_parts_beside_those_that_decode():
    """The budget goes to the running first, the rest to the next prompt."""
    batch = scheduler(budget=8)
    first, second = Sequence(4, 3), Sequence(12, 1)
    batch.add(first)
    batch.complete(batch.schedule())
    batch.add(second)
    parts = []
    while not second.gone:
        step = batch.schedule()
        parts.append((step.decoding, step.prefill_tokens))
        batch.complete(step)
    assert parts == [(1, 7), (1, 5)]
    assert (first.generated, second.generated) == (3, 1)


def test_a_step_knows_what_decoders_hold():
    """Resident tokens are those in the cache before the step."""
    batch = scheduler()
    batch.add(Sequence(10, 5))
    batch.complete(batch.schedule())
    step = batch.schedule()
    assert (step.decoding, step.resident_tokens, step.prefill_tokens) == (1, 10, 0)


def test_first_come_first_served():
    """A small request does not pass a large one that waits for room."""
    batch = scheduler(blocks=10, budget=100)
    held, large, small = Sequence(20, 9), Sequence(30, 1), Sequence(4, 1)
    batch.add(held)
    batch.complete(batch.schedule())
    batch.add(large)
    batch.add(small)
    batch.schedule()
    assert list(batch.waiting) == [large, small]


def test_places_are_bounded():
    """No more than max_num_seqs run at once."""
    batch = scheduler(seqs=2)
    for _ in range(3):
        batch.add(Sequence(4, 4))
    batch.schedule()
    assert (len(batch.running), len(batch.waiting)) == (2, 1)


def test_a_full_cache_throws_out_the_one_admitted_last():
    """It starts over at the head of the queue, computes its answer so far again, and still ends."""
    batch = scheduler(blocks=10, budget=100)
    sequences = [Sequence(12, 12) for _ in range(3)]
    steps = run(batch, sequences)
    assert sum(step.preempted for step in steps) >= 1
    assert sequences[0].preemptions == 0
    assert sequences[2].preemptions >= 1
    assert all(s.generated == 12 for s in sequences)
    assert sum(step.prefill_tokens for step in steps) > 3 * 12
    assert batch.cache.usage == 0


def test_nobody_is_admitted_in_a_step_that_throws_out():
    """As in vLLM: the victim heads the queue, before those who came while it ran."""
    batch = scheduler(blocks=4, budget=100)
    first, victim, later = Sequence(8, 8), Sequence(8, 8), Sequence(4, 1)
    batch.add(first)
    batch.add(victim)
    batch.complete(batch.schedule())
    batch.add(later)
    step = batch.schedule()
    assert step.preempted == 1
    assert batch.running == [first]
    assert list(batch.waiting) == [victim, later]


def test_a_hit_takes_up_room_too():
    """Idle blocks that a prompt would hit are not room for the rest of it."""
    batch = scheduler(blocks=4, budget=100)
    run(batch, [Sequence(12, 1, keys=(1, 2, 3))])
    batch.add(Sequence(4, 9))
    batch.complete(batch.schedule())
    waits = Sequence(16, 1, keys=(1, 2, 3, 4))
    batch.add(waits)
    batch.schedule()
    assert list(batch.waiting) == [waits]


def test_a_known_prefix_is_not_computed_again():
    """Full blocks are hits; at least one token is always computed."""
    batch = scheduler()
    run(batch, [Sequence(8, 1, keys=(1, 2))])
    second = Sequence(8, 1, keys=(1, 2))
    batch.add(second)
    step = batch.schedule()
    assert (second.cached, step.prefill_tokens, step.hit_tokens) == (4, 4, 4)


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_an_aborted_sequence_leaves_nothing(steps_before):
    """Waiting, within a step or between two: its blocks are free, and its step is not booked."""
    batch = scheduler()
    sequence = Sequence(8, 10)
    batch.add(sequence)
    for _ in range(steps_before):
        batch.complete(batch.schedule())
    step = batch.schedule() if steps_before else None
    batch.abort(sequence)
    batch.abort(sequence)
    assert batch.cache.usage == 0
    if step:
        assert batch.complete(step) == []
    assert not batch.running
    assert not batch.waiting


@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(0, 2)),
        min_size=1,
        max_size=20,
    ),
    st.integers(13, 60),
    st.integers(1, 40),
    st.integers(1, 6),
)
def test_everybody_gets_the_whole_answer(wanted, blocks, budget, seqs):
    """Any load ends, with as many tokens as asked for, and the cache empty."""
    batch = scheduler(blocks=blocks, budget=budget, seqs=seqs)
    sequences = [
        Sequence(prompt, answer, keys=tuple((family, n) for n in range(prompt // BLOCK)))
        for prompt, answer, family in wanted
    ]
    steps = run(batch, sequences)
    assert [s.generated for s in sequences] == [answer for _, answer, _ in wanted]
    assert all(0 <= s.cached < s.prompt_tokens for s in sequences)
    assert sum(s.preemptions for s in sequences) == sum(step.preempted for step in steps)
    assert batch.cache.usage == 0
