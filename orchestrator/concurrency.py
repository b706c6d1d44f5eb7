"""Bounded threads for calls that block; the event loop never waits for a disk."""

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """
    At most `limit` blocking calls at once, in threads of their own.

    A call whose caller gave up keeps its thread until it returns: what hangs cannot take more than
    its share.

    Args:
        limit: Threads at most.
        name: What they are for; for metrics and stack traces.
        on_wait: Told the name, and how long a call waited for its thread, in seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limit: int,
        *,
        name: str = "threads",
        on_wait: Callable[[str, float], None] = lambda _name, _wait_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._on_wait = on_wait
        self._clock = clock
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call(*args)` returns, run in a thread; cancelling does not stop the call itself."""
        queued_s = self._clock()
        began_s: list[float] = []
        context = contextvars.copy_context()

        def begin() -> T:
            began_s.append(self._clock())
            return context.run(call, *args, **kwargs)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, begin)
        finally:
            self._on_wait(self._name, (began_s[0] if began_s else self._clock()) - queued_s)

    def close(self) -> None:
        """Take no more calls; those that run are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
