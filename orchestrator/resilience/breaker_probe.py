"""
Who tries a dependency that was left alone, when nobody asks.

A breaker that is half open waits for a call to prove the dependency well. At night nobody calls, and
nobody could tell whether it is well again: so we try ourselves, with something cheap.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from orchestrator.concurrency import forever
from orchestrator.errors import OrchestratorError
from orchestrator.resilience.circuit_breaker import CircuitBreaker


class BreakerProbe:
    """
    Makes one call as soon as the breaker lets one through, and never beside another's.

    Args:
        breaker: Told how the call ended, as of any other.
        attempt: Makes it; bounds its own time.
        failures: What counts against the dependency; every other error of ours says nothing.
        worth_trying: Whether an attempt could succeed at all: while the dependency is being
            restarted, a failure would only make the breaker wait for longer.
        look_s: Seconds between two looks at the breaker.
    """

    def __init__(
        self,
        *,
        breaker: CircuitBreaker,
        attempt: Callable[[], Awaitable[object]],
        failures: tuple[type[BaseException], ...],
        worth_trying: Callable[[], bool] = lambda: True,
        look_s: float = 0.25,
    ) -> None:
        self._breaker = breaker
        self._attempt = attempt
        self._failures = failures
        self._worth_trying = worth_trying
        self._look_s = look_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look again and again, in the background."""
        name = f"probe-{self._breaker.name}"
        self._task = asyncio.create_task(forever(self._look_again, what=name), name=name)

    async def aclose(self) -> None:
        """Stop looking; a call that is out is cut off, which says nothing about anybody."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def look(self) -> None:
        """Make the call if the breaker waits for one."""
        if self._breaker.state != "half_open" or not self._worth_trying():
            return
        # If somebody else's call is out, the breaker refuses ours.
        with suppress(OrchestratorError, TimeoutError, *self._failures):
            async with self._breaker.guard(self._failures):
                await self._attempt()

    async def _look_again(self) -> None:
        await asyncio.sleep(self._look_s)
        await self.look()
