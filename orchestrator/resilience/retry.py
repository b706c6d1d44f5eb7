"""
When to try the engine again: tenacity strategies under a deadline and a budget.

There is one retry layer, and it ends with the engine's first byte.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tenacity import RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from orchestrator.errors import EngineOverloaded, EngineUnavailable, OrchestratorError
from orchestrator.resilience.deadline import Deadline

RETRIED = (EngineUnavailable, EngineOverloaded)
"""What may be tried again: it cannot have reached the model."""
SPREAD = 0.25
"""Share of a told pause that is added at random, so that those told the same do not meet again."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    How often and how soon.

    Attributes:
        attempts: Tries in all, the first one counted.
        wait_initial_s: Longest pause before the second try, in seconds; doubled for each further.
        wait_max_s: Longest pause, in seconds; an engine that asks for more is not tried again.
    """

    attempts: int = 3
    wait_initial_s: float = 0.1
    wait_max_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.wait_initial_s <= 0 or self.wait_max_s < self.wait_initial_s:
            raise ValueError(f"not usable as a retry policy: {self!r}")


REMEMBERED_S = 10.0
"""For so long requests make up for quiet seconds, and no longer."""


class RetryBudget:
    """
    How many retries all requests together may spend: a token bucket.

    Over some seconds, retries <= max(`ratio` * requests, `per_s` * seconds) + `burst`, so that a
    failing engine meets at most that much more than what was asked of it. The burst lets a short
    fault pass that hits a quiet service; it is full at the start.

    Args:
        ratio: Retries that each request earns.
        per_s: Least that a second earns, for services with few requests. What requests have earned
            is not earned once more: at a dozen requests a second that would be twice as much.
        burst: Retries that can be saved up.
        clock: Monotonic seconds.

    Source:
        Finagle's and Linkerd's retry budgets; Google SRE book, chapter 21 (10 % per client).
    """

    def __init__(
        self,
        *,
        ratio: float = 0.09,
        per_s: float = 1.0,
        burst: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if ratio < 0 or per_s < 0 or burst < 1:
            raise ValueError(f"not usable as a retry budget: {ratio=} {per_s=} {burst=}")
        self._ratio = ratio
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._saved = burst
        self._counted_at_s = clock()
        self._owed = 0.0

    def earn(self) -> None:
        """Count one request, at its first attempt."""
        self._save(self._ratio)
        self._owed -= self._ratio

    def spend(self) -> bool:
        """Whether one retry may be made; it is then counted."""
        now_s = self._clock()
        self._owed += (now_s - self._counted_at_s) * self._per_s
        self._counted_at_s = now_s
        if self._owed > 0:
            self._save(self._owed)
        self._owed = max(-REMEMBERED_S * self._per_s, min(self._owed, 0.0))
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

    def _save(self, retries: float) -> None:
        self._saved = min(self._burst, self._saved + retries)


class _StopWithoutRoom(stop_base):
    """Stops when the next pause would end after the deadline, or is longer than we wait."""

    def __init__(self, policy: RetryPolicy, deadline: Deadline) -> None:
        self._policy = policy
        self._deadline = deadline

    def __call__(self, retry_state: RetryCallState) -> bool:
        if (_told_s(retry_state) or 0.0) > self._policy.wait_max_s:
            return True
        return self._deadline.remaining_s() <= retry_state.upcoming_sleep


class _StopWithoutLeave(stop_base):
    """Stops when somebody objects, or nothing is left to spend; asked last, since asking spends."""

    def __init__(self, budget: RetryBudget, unless: Callable[[], bool]) -> None:
        self._budget = budget
        self._unless = unless

    def __call__(self, retry_state: RetryCallState) -> bool:  # noqa: ARG002 - tenacity's shape
        return self._unless() or not self._budget.spend()


class _WaitAsTold(wait_base):
    """The engine's own Retry-After where it gave one, else full jitter on an exponential."""

    def __init__(self, policy: RetryPolicy, uniform: Callable[[float, float], float]) -> None:
        self._policy = policy
        self._uniform = uniform

    def __call__(self, retry_state: RetryCallState) -> float:
        told_s = _told_s(retry_state)
        if told_s is not None:
            return told_s * self._uniform(1.0, 1.0 + SPREAD)
        doublings = retry_state.attempt_number - 1
        longest_s = min(self._policy.wait_max_s, self._policy.wait_initial_s * 2.0**doublings)
        return self._uniform(0.0, longest_s)


def retry_on() -> retry_base:
    """
    Only what cannot have reached the model.

    Refused, reset or 502/503 before the first byte, or turned away by the engine's own queue.
    """
    return retry_if_exception_type(RETRIED)


def stop_when(
    policy: RetryPolicy,
    deadline: Deadline,
    budget: RetryBudget,
    *,
    unless: Callable[[], bool] = lambda: False,
) -> stop_base:
    """After `policy.attempts`, and without time or budget for a retry, or where `unless` says so."""
    return (
        stop_after_attempt(policy.attempts)
        | _StopWithoutRoom(policy, deadline)
        | _StopWithoutLeave(budget, unless)
    )


def wait_for(
    policy: RetryPolicy,
    uniform: Callable[[float, float], float] = random.uniform,  # noqa: S311 - no secret
) -> wait_base:
    """The pause before the next attempt; `uniform` draws from a range."""
    return _WaitAsTold(policy, uniform)


def _told_s(retry_state: RetryCallState) -> float | None:
    """The pause that the failure itself asks for, in seconds."""
    error = retry_state.outcome.exception() if retry_state.outcome else None
    return error.retry_after_s if isinstance(error, OrchestratorError) else None
