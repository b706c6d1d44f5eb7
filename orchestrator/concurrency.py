"""Bounded threads for calls that block; the event loop never waits for a disk."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """At most `limit` blocking calls at once, in threads of their own."""

    def __init__(self, limit: int) -> None:
        self.limiter = CapacityLimiter(limit)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call(*args)` returns, run in a thread; cancelling does not stop the call itself."""
        if kwargs:
            return await to_thread.run_sync(lambda: call(*args, **kwargs), limiter=self.limiter)
        return await to_thread.run_sync(call, *args, limiter=self.limiter)
