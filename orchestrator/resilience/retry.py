"""
When to try the engine again: tenacity strategies under a deadline.

There is one retry layer, and it ends with the engine's first byte.
"""

from dataclasses import dataclass

from tenacity import RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base, wait_exponential_jitter

from orchestrator.errors import EngineUnavailable, OrchestratorError
from orchestrator.resilience.deadline import Deadline


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """
    How often and how soon.

    Attributes:
        attempts: Tries in all, the first one counted.
        wait_initial_s: Mean pause before the second try, in seconds.
        wait_max_s: Longest pause, in seconds.
    """

    attempts: int = 3
    wait_initial_s: float = 0.1
    wait_max_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.wait_initial_s <= 0 or self.wait_max_s < self.wait_initial_s:
            raise ValueError(f"not usable as a retry policy: {self!r}")


class _StopAtDeadline(stop_base):
    """Stops when the next pause would end after the deadline."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline

    def __call__(self, retry_state: RetryCallState) -> bool:
        return self._deadline.remaining_s() <= (retry_state.upcoming_sleep or 0.0)


class _WaitAsTold(wait_base):
    """The engine's own Retry-After where it gave one, else exponential back-off with jitter."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._max_s = policy.wait_max_s
        self._back_off = wait_exponential_jitter(
            multiplier=policy.wait_initial_s, max=policy.wait_max_s, jitter=policy.wait_initial_s
        )

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        told_s = error.retry_after_s if isinstance(error, OrchestratorError) else None
        return self._back_off(retry_state) if told_s is None else min(told_s, self._max_s)


def retry_on() -> retry_base:
    """Only what cannot have reached the model: refused, reset or 502/503 before the first byte."""
    return retry_if_exception_type(EngineUnavailable)


def stop_when(policy: RetryPolicy, deadline: Deadline) -> stop_base:
    """After `policy.attempts`, or when the deadline leaves no room for another pause."""
    return stop_after_attempt(policy.attempts) | _StopAtDeadline(deadline)


def wait_for(policy: RetryPolicy) -> wait_base:
    """The pause before the next attempt."""
    return _WaitAsTold(policy)
