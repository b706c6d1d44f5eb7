"""
A breaker a dependency: after enough failures nobody asks it for a while, and then one at a time.

Decisions are plain `def`s on the event loop, so they are atomic. Rates are taken over the last
seconds, in buckets of a tenth of the window; what ended before the breaker opened or closed does
not count afterwards.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from orchestrator.errors import CircuitOpen

State: TypeAlias = Literal["closed", "open", "half_open"]

CERTAIN_CALLS = 5
"""Calls that are enough to open when every single one of them failed."""

PROBE_RETRY_S = 1.0
"""What callers are told while a probe is out: nobody knows when it ends."""

_BUCKETS = 10


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """
    When to leave a dependency alone, and for how long.

    Attributes:
        window_s: How far back results count, in seconds.
        min_calls: Results without which no rate is believed.
        failure_rate: Share of failures that opens.
        slow_rate: Share of slow successes that opens.
        in_a_row: Failures without a success between them that open at once: after healthy traffic
            a window takes half its length to show that nothing works any more.
        open_s: How long it is left alone at first, in seconds; doubled by each failed probe.
        max_open_s: Longest that it is left alone, in seconds.
    """

    window_s: float = 10.0
    min_calls: int = 10
    failure_rate: float = 0.5
    slow_rate: float = 0.8
    in_a_row: int = 10
    open_s: float = 5.0
    max_open_s: float = 60.0

    def __post_init__(self) -> None:
        rates = 0 < self.failure_rate <= 1 and 0 < self.slow_rate <= 1
        times = self.window_s > 0 and 0 < self.open_s <= self.max_open_s
        if not (rates and times and min(self.min_calls, self.in_a_row) >= 1):
            raise ValueError(f"not usable as a breaker policy: {self!r}")


@dataclass(slots=True)
class _Counts:
    """Results of one bucket, or of several together."""

    calls: int = 0
    failures: int = 0
    slow: int = 0

    def add(self, other: "_Counts", sign: int = 1) -> None:
        self.calls += sign * other.calls
        self.failures += sign * other.failures
        self.slow += sign * other.slow


class _Window:
    """The results of the last seconds; a bucket leaves as a whole when it is too old."""

    def __init__(self, width_s: float) -> None:
        self._bucket_s = width_s / _BUCKETS
        self._buckets = [_Counts() for _ in range(_BUCKETS)]
        self._newest = 0
        self.total = _Counts()

    def add(self, result: _Counts, now_s: float) -> None:
        self.advance(now_s)
        self._buckets[self._newest % _BUCKETS].add(result)
        self.total.add(result)

    def advance(self, now_s: float) -> None:
        """Forget what is too old; never more than `_BUCKETS` steps."""
        current = max(int(now_s / self._bucket_s), self._newest)
        for index in range(max(self._newest, current - _BUCKETS) + 1, current + 1):
            self.total.add(self._buckets[index % _BUCKETS], -1)
            self._buckets[index % _BUCKETS] = _Counts()
        self._newest = current


class Call:
    """
    One call that the breaker let through; the first thing that is said of it counts.

    Attributes:
        probe: Whether the breaker waits for this call alone: until it is told how the call ended,
            it refuses everybody else. Whoever holds a long stream says `succeeded` early.
    """

    __slots__ = ("_breaker", "_era", "probe")

    def __init__(self, breaker: "CircuitBreaker", era: int, *, probe: bool) -> None:
        self._breaker: CircuitBreaker | None = breaker
        self._era = era
        self.probe = probe

    def succeeded(self, *, slow: bool = False) -> None:
        """The dependency did what it is for; `slow` if it took too long over it."""
        self._tell(_Counts(calls=1, slow=int(slow)), "it was slow" if slow else "")

    def failed(self, why: str) -> None:
        """The dependency did not do what it is for; `why` is for whoever asks what happened."""
        self._tell(_Counts(calls=1, failures=1), why)

    def abandoned(self) -> None:
        """Nobody knows: the caller left, or the fault was not the dependency's."""
        self._tell(None)

    def _tell(self, result: _Counts | None, why: str = "") -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.settle(self._era, result, why)


class CircuitBreaker:
    """
    Lets calls through while they mostly succeed.

    Closed: everybody. Open: nobody, for a while. Half open: one probe at a time; its success
    closes, its failure (or slowness) opens again for twice as long.

    Args:
        name: What it guards; for messages and metrics.
        policy: When it opens.
        clock: Monotonic seconds.
        on_change: Told the name, the new state, and why the last failed call failed.

    Attributes:
        last_failure: Why the last call failed that did, in words.
    """

    def __init__(
        self,
        *,
        name: str,
        policy: BreakerPolicy,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, State, str], None] = lambda _name, _state, _why: None,
    ) -> None:
        self.name = name
        self.last_failure = ""
        self._policy = policy
        self._clock = clock
        self._on_change = on_change
        self._state: State = "closed"
        self._window = _Window(policy.window_s)
        self._era = 0
        self._open_s = policy.open_s
        self._open_until_s = 0.0
        self._probing = False
        self._in_a_row = 0

    @property
    def state(self) -> State:
        """The state at this moment: an open breaker whose time is up is half open."""
        if self._state == "open" and self._clock() >= self._open_until_s:
            return "half_open"
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a call may be let through; 0 if one would be now."""
        if self.state == "open":
            return max(self._open_until_s - self._clock(), 0.0)
        return PROBE_RETRY_S if self._probing else 0.0

    def require(self) -> None:
        """
        Do nothing if a call would be let through now; takes no place.

        Raises:
            CircuitOpen: If it would not.
        """
        retry_after_s = self.retry_after_s
        if retry_after_s > 0:
            raise CircuitOpen(
                f"The {self.name} failed too often of late and is left alone. "
                f"Try again in {max(retry_after_s, 0.1):.1f} s.",
                retry_after_s=retry_after_s,
            )

    def enter(self) -> Call:
        """
        A call that may be made; whoever takes it says how it ended.

        Raises:
            CircuitOpen: If the dependency is left alone now.
        """
        self.require()
        if self._state == "closed":
            return Call(self, self._era, probe=False)
        if self._state == "open":
            self._change("half_open")
        self._probing = True
        return Call(self, self._era, probe=True)

    def try_soon(self) -> None:
        """
        The dependency came back, as somebody says who looks at it: the next call tries it.

        Its word alone does not close the breaker; but an engine that loaded for half a minute would
        otherwise be left alone for as long again, since every call meanwhile doubled the time.
        """
        if self._state == "open":
            self._open_until_s = min(self._open_until_s, self._clock())

    def forget(self) -> None:
        """
        The dependency was ended on purpose, or begins anew: what failed before says nothing of it.

        Calls that are still out belong to what was before, and are not counted.
        """
        was = self._state
        self._begin_era()
        self._open_s = self._policy.open_s
        if was != "closed":
            self._change("closed")

    @asynccontextmanager
    async def guard(
        self, failures: tuple[type[BaseException], ...], *, slow_s: float | None = None
    ) -> AsyncIterator[Call]:
        """
        One call for the length of the block.

        Args:
            failures: What counts against the dependency; any other exception, and being cancelled,
                says nothing about it.
            slow_s: A success that took longer is slow, in seconds; None means never.

        Raises:
            CircuitOpen: If the dependency is left alone now.
        """
        call = self.enter()
        began_s = self._clock()
        try:
            yield call
        except failures as exc:
            call.failed(str(exc))
            raise
        except BaseException:
            call.abandoned()
            raise
        call.succeeded(slow=slow_s is not None and self._clock() - began_s > slow_s)

    def settle(self, era: int, result: _Counts | None, why: str = "") -> None:
        """Take a call's result in; for `Call` alone. Results of an earlier era say nothing."""
        if era != self._era:
            return
        self.last_failure = why or self.last_failure
        if self._state == "half_open":
            self._settle_probe(result)
            return
        if result is None:
            return
        self._window.add(result, self._clock())
        self._in_a_row = self._in_a_row + 1 if result.failures else 0
        if self._tripped():
            self._open(self._policy.open_s)

    def _settle_probe(self, result: _Counts | None) -> None:
        self._probing = False
        if result is None:
            return
        if result.failures or result.slow:
            self._open(min(2 * self._open_s, self._policy.max_open_s))
        else:
            self._begin_era()
            self._change("closed")

    def _tripped(self) -> bool:
        total, policy = self._window.total, self._policy
        if total.calls >= CERTAIN_CALLS and total.failures == total.calls:
            return True
        if self._in_a_row >= policy.in_a_row:
            return True
        return total.calls >= policy.min_calls and (
            total.failures >= policy.failure_rate * total.calls
            or total.slow >= policy.slow_rate * total.calls
        )

    def _open(self, open_s: float) -> None:
        self._begin_era()
        self._open_s = open_s
        self._open_until_s = self._clock() + open_s
        self._change("open")

    def _begin_era(self) -> None:
        """Calls that are still out belong to the past: the picture they give is old."""
        self._era += 1
        self._window = _Window(self._policy.window_s)
        self._probing = False
        self._in_a_row = 0

    def _change(self, state: State) -> None:
        self._state = state
        self._on_change(self.name, state, self.last_failure)
