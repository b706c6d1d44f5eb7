"""
The engine's core: one task that takes step after step and tells each request what it has got.

Step times come from the profile; the scheduler decides what is in a step. Everything runs in one
event loop, so that a step is booked at once and nobody sees half of it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from model_server.simulator.answers import Prompt
from model_server.simulator.faults import Faults
from model_server.simulator.kv_cache import KvCache
from model_server.simulator.latency import Profile
from model_server.simulator.metrics import REJECTION_REASONS, EngineMetrics
from model_server.simulator.scheduler import Scheduler, Sequence, Step

_FROZEN_POLL_S = 0.05
_MOST_LATE_S = 0.25
"""What the clock may run ahead of the steps before they stop catching up: the machine is too slow."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """
    An engine's limits, named as vLLM's flags.

    Attributes:
        max_num_queued_reqs: Most unfinished requests; None is no limit.
        max_num_queued_tokens: Prompt tokens without a first token at which new requests are refused.
        stream_interval: Tokens a chunk.
        seed: Of answers' lengths and of faults.
        time_scale: Multiplies every duration; 0.1 is ten times as fast.
    """

    model: str
    kv_cache_tokens: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    stream_interval: int = 1
    seed: int = 0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kv_cache_tokens < self.max_model_len + 2 * self.block_size:
            raise ValueError(
                f"a KV cache of {self.kv_cache_tokens} tokens cannot hold one request of "
                f"max_model_len={self.max_model_len}"
            )
        counts = (self.max_num_seqs, self.max_num_batched_tokens, self.stream_interval)
        if min(counts) < 1:
            raise ValueError("max_num_seqs, max_num_batched_tokens, stream_interval: 1 or more")
        if self.time_scale <= 0:
            raise ValueError("time_scale: above 0")


class Generation:
    """One request inside the engine, as the one who waits for it sees it."""

    def __init__(self, sequence: Sequence, *, finish_reason: str) -> None:
        self.sequence = sequence
        self.finish_reason = finish_reason
        self.taken = 0
        self.aborted = False
        self._news = asyncio.Event()

    def tell(self) -> None:
        """Wake the one who waits."""
        self._news.set()

    async def more(self) -> tuple[int, int]:
        """The answer's next tokens, from and to; waits for them. None more come after an abort."""
        await self._news.wait()
        self._news.clear()
        start, self.taken = self.taken, self.sequence.generated
        return start, self.taken

    @property
    def ended(self) -> bool:
        """Whether all that will ever come has been taken."""
        return self.aborted or self.taken >= self.sequence.answer_tokens


class Engine:
    """
    A vLLM without a model.

    Args:
        clock: Seconds, monotonic.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        *,
        config: EngineConfig,
        profile: Profile,
        faults: Faults,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.config = config
        self.profile = profile
        self.metrics = EngineMetrics()
        self.cache = KvCache(tokens=config.kv_cache_tokens, block_size=config.block_size)
        self._scheduler = Scheduler(
            cache=self.cache,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self._faults = faults
        self._clock = clock
        self._sleep = sleep
        self._unfinished: dict[Sequence, Generation] = {}
        self._queued_tokens = 0
        self._work = asyncio.Event()

    @property
    def unfinished(self) -> int:
        """Requests that run or wait."""
        return len(self._unfinished)

    def refusal(self) -> str | None:
        """Which of the two limits forbids one more request, counted as a refusal; None if neither."""
        requests, tokens = self.config.max_num_queued_reqs, self.config.max_num_queued_tokens
        reason = None
        if requests is not None and self.unfinished + 1 > requests:
            reason = REJECTION_REASONS[0]
        elif tokens is not None and self._queued_tokens >= tokens:
            reason = REJECTION_REASONS[1]
        if reason:
            self.metrics.rejections[reason] += 1
        return reason

    def start(self, prompt: Prompt, *, answer_tokens: int, finish_reason: str) -> Generation:
        """Queue a request; its tokens come through what is returned."""
        sequence = Sequence(
            prompt_tokens=prompt.tokens,
            answer_tokens=answer_tokens,
            keys=prompt.keys,
            arrived_s=self._clock(),
        )
        generation = Generation(sequence, finish_reason=finish_reason)
        self._unfinished[sequence] = generation
        self._queued_tokens += prompt.tokens
        self._scheduler.add(sequence)
        self._work.set()
        return generation

    def abort(self, generation: Generation) -> None:
        """Forget a request whose caller has left; nothing happens if it is finished."""
        if generation.sequence not in self._unfinished:
            return
        # vLLM counts no ending of a request whose caller has left, not even "abort".
        self._scheduler.abort(generation.sequence)
        self._forget(generation)
        generation.aborted = True
        generation.tell()

    async def run(self) -> None:
        """Take steps for as long as there is work, and wait for work; ends only by being cancelled."""
        due_s = self._clock()
        while True:
            if not self._unfinished:
                self._report()
                self._work.clear()
                await self._work.wait()
                due_s = self._clock()
            await self._thawed()
            step = self._scheduler.schedule()
            due_s = max(due_s, self._clock() - _MOST_LATE_S) + self._duration_s(step)
            await self._sleep(max(0.0, due_s - self._clock()))
            await self._thawed()
            self._book(step)

    async def _thawed(self) -> None:
        while self._faults.of_engine("freeze"):
            await self._sleep(_FROZEN_POLL_S)

    def _duration_s(self, step: Step) -> float:
        slower = self._faults.of_engine("latency_factor")
        seconds = self.profile.step_s(
            prefill_tokens=step.prefill_tokens,
            decoding=step.decoding,
            resident_tokens=step.resident_tokens,
        )
        return seconds * self.config.time_scale * (slower.factor if slower else 1.0)

    def _book(self, step: Step) -> None:
        """Count what the step did, and tell those who wait."""
        now_s = self._clock()
        advanced = self._scheduler.complete(step)
        metrics = self.metrics
        metrics.preemptions += step.preempted
        metrics.prefix_queries += step.queried_tokens
        metrics.prefix_hits += step.hit_tokens
        metrics.generation_tokens += len(advanced)
        tokens = len(advanced)
        # Nearly all of a step had their last token at the same time: they are counted together.
        since_s: Counter[float] = Counter()
        for sequence in advanced:
            if sequence.generated == 1:
                self._book_first_token(sequence, now_s)
                tokens += sequence.prompt_tokens
            else:
                since_s[sequence.last_token_s] += 1
            sequence.last_token_s = now_s
            self._hand_out(sequence, now_s)
        for last_s, times in since_s.items():
            metrics.inter_token_s.observe(now_s - last_s, times)
        if advanced:
            # As vLLM: no observation for a step that brings nobody anything.
            metrics.iteration_tokens.observe(tokens)
        self._report()

    def _book_first_token(self, sequence: Sequence, now_s: float) -> None:
        self.metrics.first_token_s.observe(now_s - sequence.arrived_s)
        self.metrics.prompt_tokens += sequence.prompt_tokens
        self.metrics.prompt_tokens_cached += sequence.cached or 0
        self._queued_tokens -= sequence.prompt_tokens

    def _hand_out(self, sequence: Sequence, now_s: float) -> None:
        generation = self._unfinished[sequence]
        if sequence.finished:
            self._forget(generation)
            self.metrics.finished[generation.finish_reason] += 1
            self.metrics.e2e_s.observe(now_s - sequence.arrived_s)
            generation.tell()
        elif (sequence.generated - 1) % self.config.stream_interval == 0:
            generation.tell()

    def _forget(self, generation: Generation) -> None:
        del self._unfinished[generation.sequence]
        if not generation.sequence.generated:
            self._queued_tokens -= generation.sequence.prompt_tokens

    def _report(self) -> None:
        """Set the gauges, as the core does after each step."""
        gauges = self.metrics.gauges
        gauges.running = len(self._scheduler.running)
        gauges.waiting = len(self._scheduler.waiting)
        gauges.kv_usage = self.cache.usage
