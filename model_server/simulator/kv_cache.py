"""
A KV cache in blocks: what is free, what is held, and which full blocks of prompts can be found again.

As in vLLM, a block that nobody holds keeps its contents until it is needed, so that it counts as
free and may still be hit; the least recently held goes first, a prompt's tail before its head.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Held:
    """
    The blocks of one sequence.

    Attributes:
        shared: Keys of full prompt blocks, from the first on, that others may hold too.
        private: Number of blocks that only this sequence knows.
    """

    shared: list[int] = field(default_factory=list)
    private: int = 0

    @property
    def blocks(self) -> int:
        """All of them."""
        return len(self.shared) + self.private


class KvCache:
    """
    Counts blocks; holds no data.

    Args:
        tokens: Size. One block of it is never given out, as vLLM's null block.
    """

    def __init__(self, *, tokens: int, block_size: int) -> None:
        if tokens < 2 * block_size:
            raise ValueError(f"a KV cache of {tokens} tokens has no two blocks of {block_size}")
        self.block_size = block_size
        self.num_blocks = tokens // block_size
        self._empty = self.num_blocks - 1
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._holders: dict[int, int] = {}

    @property
    def available(self) -> int:
        """Blocks that can be given out: the empty ones, and those that only keep old contents."""
        return self._empty + len(self._idle)

    @property
    def usage(self) -> float:
        """Held share, 0 to 1."""
        return 1.0 - self.available / (self.num_blocks - 1)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def hits(self, keys: Sequence[int]) -> tuple[int, int]:
        """How many leading blocks are here, and how many of these nobody holds right now."""
        found = idle = 0
        for key in keys:
            if key in self._idle:
                idle += 1
            elif key not in self._holders:
                break
            found += 1
        return found, idle

    def take_hits(self, held: Held, keys: Sequence[int]) -> None:
        """Hold these blocks, which `hits` has found."""
        for key in keys:
            self._idle.pop(key, None)
            self._holders[key] = self._holders.get(key, 0) + 1
            held.shared.append(key)

    def grow(self, held: Held, tokens: int) -> bool:
        """Hold enough blocks for so many tokens; False, and nothing changes, if there are too few."""
        wanted = self.blocks_for(tokens) - held.blocks
        if wanted <= 0:
            return True
        if wanted > self.available:
            return False
        for _ in range(wanted - self._empty):
            self._idle.popitem(last=False)
            self._empty += 1
        self._empty -= wanted
        held.private += wanted
        return True

    def publish(self, held: Held, keys: Sequence[int]) -> None:
        """Make the first `len(keys)` blocks of a sequence, now computed, findable by their keys."""
        for key in keys[len(held.shared) :]:
            # Somebody else computed the same: vLLM keeps both; the copy stays private here.
            if key in self._holders or key in self._idle or not held.private:
                return
            self._holders[key] = 1
            held.shared.append(key)
            held.private -= 1

    def release(self, held: Held) -> None:
        """Give everything back; what can be found again stays findable until it is overwritten."""
        self._empty += held.private
        held.private = 0
        for key in reversed(held.shared):
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self._idle[key] = None
        held.shared.clear()
