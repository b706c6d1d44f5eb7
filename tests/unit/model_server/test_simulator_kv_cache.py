"""The simulated KV cache: no block is given out twice, none is lost."""

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from model_server.simulator.kv_cache import Held, KvCache

BLOCK = 4
BLOCKS = 12
PROMPTS = st.sampled_from([(1, 2, 3), (1, 2, 9), (1,), (7, 8), ()])


class Holders(RuleBasedStateMachine):
    """Sequences that come, grow, publish their prompts and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KvCache(tokens=BLOCKS * BLOCK, block_size=BLOCK)
        self.live: list[Held] = []

    sequences = Bundle("sequences")

    @rule(target=sequences, keys=PROMPTS)
    def come(self, keys):
        held = Held()
        found, _ = self.cache.hits(keys)
        self.cache.take_hits(held, keys[:found])
        self.live.append(held)
        return held, keys

    @rule(sequence=sequences, blocks=st.integers(0, BLOCKS + 2))
    def grow(self, sequence, blocks):
        held, keys = sequence
        before = self.cache.available
        missing = max(0, blocks - held.blocks)
        grown = self.cache.grow(held, blocks * BLOCK)
        assert grown == (missing <= before)
        assert self.cache.available == before - (missing if grown else 0)
        self.cache.publish(held, keys[: held.blocks])

    @rule(sequence=consumes(sequences))
    def go(self, sequence):
        held, _ = sequence
        self.cache.release(held)
        self.live.remove(held)
        assert held.blocks == 0

    @invariant()
    def books_balance(self):
        shared = {key for held in self.live for key in held.shared}
        used = len(shared) + sum(held.private for held in self.live)
        assert self.cache.available == BLOCKS - 1 - used
        assert 0 <= self.cache.usage <= 1


TestHolders = Holders.TestCase


def test_what_was_released_is_found_again_until_it_is_overwritten():
    """Idle blocks are hits, and room: the one held longest ago goes first, tails before heads."""
    cache = KvCache(tokens=5 * BLOCK, block_size=BLOCK)
    first = Held()
    assert cache.grow(first, 3 * BLOCK)
    cache.publish(first, (1, 2, 3))
    cache.release(first)
    assert cache.usage == 0
    assert cache.hits((1, 2, 3)) == (3, 3)
    assert cache.grow(Held(), 2 * BLOCK)
    assert cache.hits((1, 2, 3)) == (2, 2)


def test_held_by_two_counts_once():
    """A shared prefix takes its blocks a single time, and stays while either holds it."""
    cache = KvCache(tokens=9 * BLOCK, block_size=BLOCK)
    first, second = Held(), Held()
    cache.grow(first, 2 * BLOCK)
    cache.publish(first, (1, 2))
    cache.take_hits(second, (1, 2))
    assert cache.usage == 2 / 8
    cache.release(first)
    assert cache.usage == 2 / 8
    assert cache.hits((1, 2)) == (2, 0)


def test_a_cache_of_one_block_is_refused():
    """One block is never given out, so one is none."""
    with pytest.raises(ValueError, match="no two blocks"):
        KvCache(tokens=BLOCK, block_size=BLOCK)
