"""
Continuous batching as vLLM's scheduler does it: which sequences a step computes, and how many tokens.

A step's budget goes to the running sequences first (one token each, or the next part of a prompt),
then to those that wait, first come first served, while blocks and places suffice. A running sequence
that finds no block takes one from the sequence admitted last, which starts over later.
"""

from collections import deque
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

from model_server.simulator.kv_cache import Held, KvCache


@dataclass(slots=True, eq=False)
class Sequence:
    """
    One request inside the engine.

    Attributes:
        answer_tokens: How many it will generate.
        keys: Of the full blocks of its prompt.
        arrived_s: On the engine's clock.
        generated: Tokens of the answer so far.
        computed: Tokens in the KV cache.
        cached: Prompt tokens that the cache had when it was first admitted; None before.
        preemptions: How often it had to start over.
    """

    prompt_tokens: int
    answer_tokens: int
    keys: Listed[int] = ()
    arrived_s: float = 0.0
    generated: int = 0
    computed: int = 0
    cached: int | None = None
    preemptions: int = 0
    last_token_s: float = 0.0
    held: Held = field(default_factory=Held)
    gone: bool = False

    @property
    def to_compute(self) -> int:
        """Tokens that must be in the KV cache before the next one comes out, less those that are."""
        return self.prompt_tokens + self.generated - self.computed

    @property
    def finished(self) -> bool:
        """Whether the answer is whole."""
        return self.generated >= self.answer_tokens


@dataclass(slots=True)
class Step:
    """
    What one step computes.

    Attributes:
        work: Each sequence, and how many of its tokens.
        prefill_tokens: Of prompts, and of what preempted sequences compute again.
        decoding: Sequences that compute only their last token.
        resident_tokens: In the KV cache of those that decode.
        hit_tokens: Prompt tokens that the cache had, of the sequences admitted in this step.
        queried_tokens: Prompt tokens that were looked up in the cache.
        preempted: Sequences thrown out to make room.
    """

    work: list[tuple[Sequence, int]] = field(default_factory=list)
    prefill_tokens: int = 0
    decoding: int = 0
    resident_tokens: int = 0
    hit_tokens: int = 0
    queried_tokens: int = 0
    preempted: int = 0

    def add(self, sequence: Sequence, tokens: int, *, is_decode: bool) -> None:
        """Compute that many tokens of a sequence."""
        self.work.append((sequence, tokens))
        if is_decode:
            self.decoding += 1
            self.resident_tokens += sequence.computed
        else:
            self.prefill_tokens += tokens


class Scheduler:
    """
    The queue, the batch and the cache of one engine. Pure: no clock, no waiting.

    `schedule` and `complete` alternate; `add` and `abort` may come between any two calls.
    """

    def __init__(self, *, cache: KvCache, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.cache = cache
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free its blocks."""
        if sequence.gone:
            return
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._leave(sequence)

    def schedule(self) -> Step:
        """The next step. It is empty if nothing is running and nothing can be admitted."""
        step = Step()
        budget = self._schedule_running(step, self._max_num_batched_tokens)
        # After a preemption nobody gets in: the victim heads the queue, and finds less room than it had.
        self._admit(step, budget)
        return step

    def complete(self, step: Step) -> list[Sequence]:
        """Book what a step has computed; the sequences that have a new token, finished ones too."""
        advanced = []
        for sequence, tokens in step.work:
            if sequence.gone:
                continue
            sequence.computed += tokens
            if sequence.computed - tokens < sequence.prompt_tokens:
                whole = min(sequence.computed // self.cache.block_size, len(sequence.keys))
                self.cache.publish(sequence.held, sequence.keys[:whole])
            if sequence.to_compute:
                continue
            sequence.generated += 1
            advanced.append(sequence)
        finished = [s for s in advanced if s.finished]
        for sequence in finished:
            self._leave(sequence)
        if finished:
            self.running = [s for s in self.running if not s.gone]
        return advanced

    def _schedule_running(self, step: Step, budget: int) -> int:
        """Give each running sequence its tokens; the budget that is left."""
        place = 0
        while place < len(self.running) and budget:
            sequence = self.running[place]
            missing = sequence.to_compute
            tokens = min(missing, budget)
            while not self.cache.grow(sequence.held, sequence.computed + tokens):
                if self._preempt_last(step) is sequence:
                    return budget
            # A preempted sequence's answer so far is computed again like a prompt.
            step.add(sequence, tokens, is_decode=missing == 1 and sequence.generated > 0)
            budget -= tokens
            place += 1
        return budget

    def _preempt_last(self, step: Step) -> Sequence:
        """Throw out the sequence that was admitted last, to the head of the queue."""
        victim = self.running.pop()
        self.cache.release(victim.held)
        victim.computed = 0
        victim.preemptions += 1
        step.preempted += 1
        self.waiting.appendleft(victim)
        return victim

    def _admit(self, step: Step, budget: int) -> None:
        """Take from the queue's head while places, blocks and the budget suffice."""
        while self.waiting and budget and len(self.running) < self._max_num_seqs:
            sequence = self.waiting[0]
            keys = self._hits(sequence)
            cached = len(keys) * self.cache.block_size
            if not self._fits(sequence, keys):
                return
            self.waiting.popleft()
            self.running.append(sequence)
            self.cache.take_hits(sequence.held, keys)
            step.queried_tokens += sequence.prompt_tokens
            step.hit_tokens += cached
            if sequence.cached is None:
                sequence.cached = cached
            sequence.computed = cached
            tokens = min(sequence.to_compute, budget)
            self.cache.grow(sequence.held, sequence.computed + tokens)
            step.add(sequence, tokens, is_decode=False)
            budget -= tokens

    def _hits(self, sequence: Sequence) -> Listed[int]:
        """Keys of the leading blocks that the cache has; at least one token is left to compute."""
        most = (sequence.prompt_tokens + sequence.generated - 1) // self.cache.block_size
        found, _ = self.cache.hits(sequence.keys[:most])
        return sequence.keys[:found]

    def _fits(self, sequence: Sequence, hits: Listed[int]) -> bool:
        """Whether all that has to be computed finds room now, as vLLM's reserve of the full input."""
        _, idle = self.cache.hits(hits)
        needed = self.cache.blocks_for(sequence.prompt_tokens + sequence.generated)
        return needed - len(hits) <= self.cache.available - idle

    def _leave(self, sequence: Sequence) -> None:
        self.cache.release(sequence.held)
        sequence.gone = True
