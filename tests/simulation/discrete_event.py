"""
An engine, and clients that do not wait for each other, in virtual time.

The constants of the small engine are invented; what is compared is how different doors treat the same
engine and the same clients. Nothing here sleeps and nothing reads a clock: a run is a function of
its seed.
"""

import heapq
import math
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from model_server.simulator.latency import Profile
from orchestrator.domain import Band
from orchestrator.resilience.admission_ticket import Ticket
from orchestrator.resilience.engine_capacity import EngineReading

PATIENCE_S = 30.0
"""When a client gives up an attempt."""
TTFT_SLO_S = 10.0
"""An answer whose first token came later than this is worth nothing."""
MAX_ATTEMPTS = 3
MAX_OBEYED_S = 60.0
"""A longer Retry-After is not obeyed by the openai client."""
MAX_TOKENS = 512


SMALL = Profile(
    name="small",
    provenance="invented: some 3.3 answers a second, a dozen at once",
    base_s=5e-3,
    prefill_token_s=1.2e-4,
    decoding_s=2e-4,
    resident_token_s=1.5e-7,
    render_s=0.0,
    answer_tokens=140,
    kv_cache_tokens=24_000,
    block_size=1,
    max_num_seqs=256,
    max_num_batched_tokens=1024,
    max_model_len=8192,
)


class World:
    """The virtual clock, and what will happen when."""

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.random = random.Random(seed)  # noqa: S311 - repeatable, no secret
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def clock(self) -> float:
        return self.now_s

    def after(self, delay_s: float, then: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._coming, (self.now_s + delay_s, self._count, then))

    def run(self, until_s: float) -> None:
        while self._coming[0][0] <= until_s:
            self.now_s, _, then = heapq.heappop(self._coming)
            then()
        self.now_s = until_s


@dataclass(slots=True, eq=False)
class Ask:
    """One question of one user, over all its attempts."""

    tenant: str
    band: Band
    prompt_tokens: int
    output_tokens: int
    born_s: float
    attempts: int = 0
    ttft_s: float = math.inf
    first_s: float = math.inf
    done_s: float = math.inf

    @property
    def good(self) -> bool:
        return self.done_s < math.inf and self.ttft_s <= TTFT_SLO_S

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(slots=True, eq=False)
class Attempt:
    """One try of an ask, as door and engine see it."""

    ask: Ask
    begun_s: float
    clients: "Clients"
    ticket: Ticket | None = None
    over: bool = False
    computed: int = 0
    produced: int = 0

    @property
    def needed(self) -> int:
        """Tokens that must be in the cache before the next one can be made."""
        return self.ask.prompt_tokens + self.produced


class Engine:
    """
    Continuous batching as vLLM does it: first come, first served, the newest thrown out.

    A step reads a chunk of prompts and adds a token to each sequence that is read. It takes
    fixed + per prompt token + per sequence + per token in the cache.
    """

    def __init__(self, world: World, profile: Profile = SMALL, *, slowness: float = 1.0) -> None:
        self._world = world
        self._profile = profile
        self.slowness = slowness
        self.waiting: deque[Attempt] = deque()
        self.running: list[Attempt] = []
        self.used = self.preemptions = self.prompt_tokens = self.starved = 0
        self._token_s: list[float] = []
        self._stepping = False

    def submit(self, attempt: Attempt) -> None:
        self.waiting.append(attempt)
        self._start()

    def abort(self, attempt: Attempt) -> None:
        if attempt in self.running:
            self.running.remove(attempt)
            self.used -= attempt.needed
        elif attempt in self.waiting:
            self.waiting.remove(attempt)

    def reading(self) -> EngineReading:
        token_s = statistics.median(self._token_s) if self._token_s else None
        self._token_s.clear()
        return EngineReading(
            kv_tokens=self._profile.kv_cache_tokens,
            kv_usage=self.used / self._profile.kv_cache_tokens,
            running=len(self.running),
            waiting=len(self.waiting),
            waiting_for_cache=self.starved,
            preemptions=self.preemptions,
            token_s=token_s,
        )

    def _start(self) -> None:
        if self._stepping or not (self.running or self.waiting):
            return
        self._stepping = True
        decoding = [a for a in self.running if a.computed >= a.needed]
        preempted = self._make_room(decoding)
        chunks = [] if preempted else self._admit()
        read = sum(tokens for _, tokens in chunks)
        took_s = self.slowness * (
            self._profile.step_s(
                prefill_tokens=read, decoding=len(decoding), resident_tokens=self.used
            )
        )
        self._world.after(took_s, lambda: self._finish(decoding, chunks, took_s))

    def _make_room(self, decoding: list[Attempt]) -> bool:
        preempted = False
        while self.used + len(decoding) > self._profile.kv_cache_tokens:
            victim = self.running.pop()
            if victim in decoding:
                decoding.remove(victim)
            self.used -= victim.needed
            victim.computed = 0
            self.waiting.appendleft(victim)
            self.preemptions += 1
            preempted = True
        return preempted

    def _admit(self) -> list[tuple[Attempt, int]]:
        budget, chunks = self._profile.max_num_batched_tokens, []
        for attempt in self.running:
            if budget and attempt.computed < attempt.needed:
                tokens = min(budget, attempt.needed - attempt.computed)
                budget -= tokens
                chunks.append((attempt, tokens))
        self.starved = 0
        while budget and self.waiting and len(self.running) < self._profile.max_num_seqs:
            attempt = self.waiting[0]
            if self.used + attempt.needed > self._profile.kv_cache_tokens:
                self.starved = len(self.waiting)
                break
            self.running.append(self.waiting.popleft())
            self.used += attempt.needed
            tokens = min(budget, attempt.needed)
            budget -= tokens
            chunks.append((attempt, tokens))
        return chunks

    def _finish(
        self, decoding: list[Attempt], chunks: list[tuple[Attempt, int]], took_s: float
    ) -> None:
        self._stepping = False
        self._token_s.extend([took_s] * len(decoding))
        ready = [a for a in decoding if not a.over]
        for attempt, tokens in chunks:
            self.prompt_tokens += tokens
            attempt.computed += tokens
            if attempt.computed >= attempt.needed and not attempt.over:
                ready.append(attempt)
        for attempt in ready:
            self.used += 1
            attempt.produced += 1
            attempt.computed = attempt.needed
            attempt.clients.token(attempt)
            if attempt.produced >= attempt.ask.output_tokens:
                attempt.clients.end(attempt)
        self._start()


class Refused(Exception):
    """The door said no; what it told the client about trying again."""

    def __init__(self, retry_after_s: float | None = None, *, should_retry: bool | None = None):
        super().__init__()
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry


class Door:
    """What stands between clients and engine: nothing here; others override what they change."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def offer(self, attempt: Attempt) -> None:
        self.engine.submit(attempt)

    def token(self, attempt: Attempt) -> None:
        """The engine sent one."""

    def leave(self, attempt: Attempt) -> None:
        self.engine.abort(attempt)


class Clients:
    """
    Users who ask at random, give up after 30 s, and try again as the openai client does.

    Args:
        door: What they come to.
    """

    def __init__(self, world: World, door: Door) -> None:
        self.world, self._door = world, door
        self.asks: list[Ask] = []

    def stream(
        self,
        per_s: Callable[[float], float],
        *,
        tenant: str = "one",
        band: Band = Band.NORMAL,
    ) -> None:
        """Arrivals of a Poisson process whose rate, at a time, is `per_s` of it."""
        rate = per_s(self.world.now_s)
        gap_s = self.world.random.expovariate(rate)

        def arrive() -> None:
            prompt, output = self.size()
            ask = Ask(tenant, band, prompt, output, self.world.now_s)
            self.asks.append(ask)
            self._attempt(ask)
            self.stream(per_s, tenant=tenant, band=band)

        self.world.after(gap_s, arrive)

    def size(self) -> tuple[int, int]:
        """Prompts of 1500 tokens in the mean, answers of 140."""
        draw = self.world.random.lognormvariate
        prompt = draw(math.log(1500) - 0.5 * 0.6**2, 0.6)
        output = draw(math.log(140) - 0.5 * 0.7**2, 0.7)
        return int(min(max(prompt, 100), 6000)), int(min(max(output, 4), MAX_TOKENS))

    def _attempt(self, ask: Ask) -> None:
        ask.attempts += 1
        attempt = Attempt(ask, self.world.now_s, self)
        try:
            self._door.offer(attempt)
        except Refused as refusal:
            self._again(attempt, refusal)
        else:
            self.world.after(PATIENCE_S, lambda: self._give_up(attempt))

    def token(self, attempt: Attempt) -> None:
        if attempt.produced == 1:
            attempt.ask.first_s = self.world.now_s
            attempt.ask.ttft_s = self.world.now_s - attempt.begun_s
        self._door.token(attempt)

    def end(self, attempt: Attempt) -> None:
        attempt.over = True
        attempt.ask.done_s = self.world.now_s
        self._door.leave(attempt)

    def refused(self, attempt: Attempt, refusal: Refused) -> None:
        """The door changed its mind about one that it had let wait."""
        attempt.over = True
        self._door.leave(attempt)
        self._again(attempt, refusal)

    def _give_up(self, attempt: Attempt) -> None:
        if not attempt.over:
            self.refused(attempt, Refused())

    def _again(self, attempt: Attempt, refusal: Refused) -> None:
        ask = attempt.ask
        if ask.attempts >= MAX_ATTEMPTS or refusal.should_retry is False:
            return
        told_s = refusal.retry_after_s
        if told_s is not None and 0 < told_s <= MAX_OBEYED_S:
            delay_s = told_s
        else:
            backoff_s = min(0.5 * 2 ** (ask.attempts - 1), 8.0)
            delay_s = backoff_s * (1 - 0.25 * self.world.random.random())
        self.world.after(delay_s, lambda: self._attempt(ask))
