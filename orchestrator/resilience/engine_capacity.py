"""
What the engine can hold of ours: its own figures, what others use, and a correction.

The reservations at the gate are quick and local; this is the slow loop around them. A figure that is
missing or old is unknown, which is neither "idle" nor "full": the limits shrink to half, and an
alarm is raised. The same goes for figures that stand still while the engine sends us tokens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.resilience.admission_policy import AdmissionLimits, Capacity
from orchestrator.resilience.correction_policy import (
    MAX_CORRECTION,
    Signals,
    corrected,
    our_share,
)

SMOOTHING = 0.3
DEADBAND = 0.1
"""Share of a limit below which others are noise: blocks half filled, a request just ended."""
FIRST_TOKEN_TARGET_S = 1.0
"""While first tokens come within this time of sending, more prompts may be with the engine."""
WIDEN, NARROW = 1.5, 0.8
MAX_WINDOW_TOKENS = 1 << 20
CROWDED = 0.8
"""Share of the cache in use from which requests that wait in the engine wait for the cache."""
SLOWED = 2.0
DOES_LESS = 1.5
"""Factor by which less gets done, prompts included, on an engine whose tokens really are slower."""


@dataclass(frozen=True, slots=True)
class EngineReading:
    """
    One look at the engine's metrics; None for what it did not say.

    Attributes:
        kv_tokens: Size of its cache.
        kv_usage: Share of it that is in use, 0 to 1.
        running: Requests in its batch.
        waiting: Requests in its queue.
        waiting_for_cache: Those of them that wait for room in the cache.
        preemptions: Requests thrown out of the cache since it started.
        generated: Tokens that it has made since it started.
        steps: Steps that brought somebody a token since it started.
        token_s: Median time between two tokens since the last look; no figure of this look alone.
    """

    kv_tokens: int | None = None
    kv_usage: float | None = None
    running: int | None = None
    waiting: int | None = None
    waiting_for_cache: int | None = None
    preemptions: int | None = None
    generated: int | None = None
    steps: int | None = None
    token_s: float | None = field(default=None, compare=False)

    @property
    def usable(self) -> bool:
        """Whether what the limits are made from is there."""
        return None not in {self.kv_usage, self.running, self.waiting}

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a figure that grows with the tokens, so that standing still says something."""
        return self.generated is not None or self.steps is not None


@dataclass(frozen=True, slots=True)
class OwnLoad:
    """
    What the gate's books say of us.

    Attributes:
        running: Requests with the engine.
        resident_tokens: What they hold of its cache.
        limit_bound: Whether others wait for them.
        received_tokens: Tokens that it has sent us since we started.
        tokens_per_s: What it gets done while they do, prompts included; None if unknown.
    """

    running: int = 0
    resident_tokens: int = 0
    limit_bound: bool = False
    received_tokens: int = 0
    tokens_per_s: float | None = None


class EngineCapacity:
    """
    The limits as corrected by what the engine shows.

    Attributes:
        correction: Factor on all limits, 0.3 to 1.

    Args:
        limits: Where the correction starts from.
        stale_s: Age at which a reading is unknown, in seconds.
        starved_from: Requests waiting for cache that count as congestion.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        *,
        stale_s: float = 3.0,
        starved_from: int = 5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._stale_s = stale_s
        self._starved_from = starved_from
        self._clock = clock
        self._last = EngineReading()
        self._read_s: float | None = None
        self._still_since_s: float | None = None
        self._suspect = self._frozen = False
        self._received_tokens = 0
        self._kv_tokens = limits.kv_tokens
        self._starved_before = False
        self._refused = self._late = False
        self._token_floor_s: float | None = None
        self._slow_before = False
        self._floor_running = 0
        self._best_tokens_per_s = 0.0
        self._window_tokens = float(limits.prefill_window_tokens)
        self._first_tokens_s: list[float] = []
        self.correction = MAX_CORRECTION
        self.foreign_requests = 0.0
        self.foreign_tokens = 0.0

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that the engine's cache holds; None if nobody said."""
        return self._kv_tokens

    @property
    def stale(self) -> bool:
        """Whether the engine had metrics once, and they are missing, old or standing still now."""
        if self._read_s is None:
            return False
        return self._frozen or self._clock() - self._read_s > self._stale_s

    def current(self) -> Capacity:
        """What may be with the engine now."""
        limits = self._limits
        concurrent = our_share(limits.max_concurrent * self.correction, self.foreign_requests)
        kv_tokens = None
        if self._kv_tokens is not None:
            budget = self._kv_tokens * limits.safety * self.correction
            kv_tokens = int(our_share(budget, self.foreign_tokens))
        return Capacity(kv_tokens, max(1, int(concurrent)), int(self._window_tokens))

    def refused(self) -> None:
        """The engine itself refused a request of ours."""
        self._refused = True

    def first_token(self, took_s: float) -> None:
        """The engine began an answer of ours so long after it was sent."""
        self._first_tokens_s.append(took_s)

    def late(self) -> None:
        """An answer of ours ran out of time although it had more than they need as a rule."""
        self._late = True

    def observe(self, reading: EngineReading | None, own: OwnLoad) -> None:
        """Take one look into account; None if there was no answer, or none that could be read."""
        now_s = self._clock()
        self._fit_window(own)
        self._watch_for_frost(reading, own, now_s)
        if reading is not None and reading.usable and not self._frozen:
            signals = self._compare(reading, own)
            self._last, self._read_s = reading, now_s
        else:
            # An engine that never had metrics has explicit limits: nothing is unknown about it.
            known = self._read_s is None or not self.stale
            signals = Signals(known=known, refused=self._refused, late=self._late)
        self._refused = self._late = False
        self.correction = corrected(self.correction, signals)

    def _watch_for_frost(self, reading: EngineReading | None, own: OwnLoad, now_s: float) -> None:
        """
        Find figures out that stand still while the engine works for us.

        An idle engine's stand still too, and so do those of one that reads a long prompt: neither
        sends us tokens. What we receive was made before, and may have waited in a buffer; hence it
        counts only after they have stood still for as long as makes them old. It may also be newer
        than this look; hence only the next one proves it. Once found out, the same figures are not
        believed again, also while nobody asks.
        """
        received = own.received_tokens > self._received_tokens
        self._received_tokens = own.received_tokens
        if reading is None:
            return
        if reading != self._last or not reading.counts_tokens:
            self._still_since_s, self._suspect, self._frozen = None, False, False
            return
        self._frozen = self._frozen or self._suspect
        if self._still_since_s is None:
            self._still_since_s = now_s
        self._suspect = received and now_s - self._still_since_s >= self._stale_s

    def _compare(self, reading: EngineReading, own: OwnLoad) -> Signals:
        last = self._last
        if reading.kv_tokens is not None and reading.kv_tokens > 0:
            self._kv_tokens = reading.kv_tokens
        self._see_others(reading, own)
        crowded = (reading.kv_usage or 0.0) >= CROWDED  # else they wait for their prompts' turn
        starved_now = crowded and (reading.waiting_for_cache or 0) > self._starved_from
        starved, self._starved_before = starved_now and self._starved_before, starved_now
        preempted = (reading.preemptions or 0) - (last.preemptions or 0)
        # A crowd that we are not in does not get smaller by our staying away.
        ours = own.running > 0
        return Signals(
            known=True,
            # The first reading says what happened before us; a smaller one, that it restarted.
            preempted=max(0, preempted) if ours and last.preemptions is not None else 0,
            starved=ours and starved,
            refused=self._refused,
            late=self._late,
            slowed=self._slowed(reading.token_s, own),
        )

    def _see_others(self, reading: EngineReading, own: OwnLoad) -> None:
        requests = (reading.running or 0) + (reading.waiting or 0) - own.running
        self.foreign_requests = _smoothed(
            self.foreign_requests, requests, self._limits.max_concurrent * DEADBAND
        )
        if self._kv_tokens is not None:
            tokens = (reading.kv_usage or 0.0) * self._kv_tokens - own.resident_tokens
            self.foreign_tokens = _smoothed(self.foreign_tokens, tokens, self._kv_tokens * DEADBAND)

    def _fit_window(self, own: OwnLoad) -> None:
        """
        Let more prompts in while the engine begins answers at once, fewer when it does not.

        How fast it reads is in no metric: what it has read is what we let in.
        """
        seen, self._first_tokens_s = self._first_tokens_s, []
        if not seen or not own.limit_bound:
            return
        took_s = sum(seen) / len(seen)
        if took_s < FIRST_TOKEN_TARGET_S:
            self._window_tokens = min(self._window_tokens * WIDEN, MAX_WINDOW_TOKENS)
        elif took_s > 2 * FIRST_TOKEN_TARGET_S:
            least = self._limits.prefill_window_tokens
            self._window_tokens = max(self._window_tokens * NARROW, least)

    def _slowed(self, token_s: float | None, own: OwnLoad) -> bool:
        """
        Whether a token takes twice as long as it used to under a full load.

        Twice in a row: one look can fall on the reading of long prompts. A larger batch may be
        slower in proportion, and where prompts are read between tokens, as much gets done as ever.
        The floor follows: one cut for each slowdown. An engine that has become slower for good is
        not cured by giving it less and less to do.
        """
        if token_s is None or not own.limit_bound:
            return False
        rate = own.tokens_per_s
        self._best_tokens_per_s = max(self._best_tokens_per_s, rate or 0.0)
        does_less = rate is None or rate * DOES_LESS < self._best_tokens_per_s
        if self._token_floor_s is None or token_s < self._token_floor_s:
            self._token_floor_s, self._slow_before = token_s, False
            self._floor_running = own.running
            return False
        grown = max(1.0, own.running / max(1, self._floor_running))
        slow_now = does_less and token_s > SLOWED * grown * self._token_floor_s
        slow, self._slow_before = slow_now and self._slow_before, slow_now
        if slow:
            self._token_floor_s, self._slow_before = token_s, False
            self._floor_running = own.running
            self._best_tokens_per_s = rate or 0.0
        return slow


def _smoothed(before: float, now: float, deadband: float) -> float:
    seen = now if now > deadband else 0.0
    return before + SMOOTHING * (seen - before)
