"""One absolute time that a request must end by, from the door to the engine."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from orchestrator.errors import DeadlineExceeded


class Deadline:
    """
    The moment a request's time is up, on the monotonic clock.

    A deadline is only ever tightened: `tightened` gives the earlier of two.

    Attributes:
        budget_s: What the request was given in all, in seconds; for messages.
    """

    __slots__ = ("_at_s", "_clock", "budget_s")

    def __init__(self, budget_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not (budget_s > 0 and math.isfinite(budget_s)):
            raise ValueError(f"a deadline needs a positive number of seconds, not {budget_s}")
        self._clock = clock
        self._at_s = clock() + budget_s
        self.budget_s = budget_s

    def remaining_s(self) -> float:
        """Seconds that are left; never below 0."""
        return max(0.0, self._at_s - self._clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self._clock() >= self._at_s

    def tightened(self, budget_s: float) -> "Deadline":
        """The earlier of this deadline and one `budget_s` seconds from now."""
        if budget_s >= self.remaining_s():
            return self
        return Deadline(max(budget_s, 1e-6), clock=self._clock)

    def check(self) -> None:
        """
        Do nothing while there is time.

        Raises:
            DeadlineExceeded: If there is none.
        """
        if self.expired:
            raise self.error()

    def error(self) -> DeadlineExceeded:
        """The error that tells the caller its time is up."""
        return DeadlineExceeded(
            f"The request did not finish within its {self.budget_s:g} s. "
            "Ask for a shorter answer (max_tokens), or allow more time (timeout_s)."
        )

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """
        Cancel the block when the deadline passes.

        Raises:
            DeadlineExceeded: If the block was cut off.
        """
        self.check()
        timer = asyncio.timeout(self.remaining_s())
        try:
            async with timer:
                yield
        except TimeoutError as exc:
            if timer.expired():
                raise self.error() from exc
            raise
