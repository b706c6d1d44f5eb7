"""Bounded threads, so that the event loop never waits for a disk; and loops that outlast a bug."""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

AFTER_BUG_S = 1.0

logger = logging.getLogger(__name__)


async def forever(step: Callable[[], Awaitable[object]], *, what: str) -> NoReturn:
    """
    Take the step again and again, until cancelled.

    A task that ends by a bug ends in silence, and what it did is done by nobody until the next start:
    so it is logged, and the next step follows after a pause.

    Args:
        step: One round; it waits by itself for something to do.
        what: Who takes it, for the log.
    """
    while True:
        try:
            await step()
        except Exception:
            logger.exception("%s met a bug, and goes on in %g s", what, AFTER_BUG_S)
            await asyncio.sleep(AFTER_BUG_S)


class Threads:
    """
    At most `limit` blocking calls at once, in threads of their own.

    A call whose caller gave up keeps its thread until it returns: what hangs cannot take more than
    its share.

    Args:
        limit: Threads at most.
        name: What they are for; for metrics and stack traces.
        patience_s: How long a call waits for the first thread before it may have another, in
            seconds. Short calls that are mostly Python gain nothing from running side by side:
            each holds up the other, and the event loop, at every step, and finds the caches cold.
            0 uses whichever thread is free.
        on_wait: Told the name, and how long a call waited for its thread, in seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limit: int,
        *,
        name: str = "threads",
        patience_s: float = 0.0,
        on_wait: Callable[[str, float], None] = lambda _name, _wait_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._patience_s = patience_s
        self._on_wait = on_wait
        self._clock = clock
        sizes = [1, limit - 1] if patience_s and limit > 1 else [limit]
        self._pools = [ThreadPoolExecutor(size, thread_name_prefix=name) for size in sizes]
        self._pending: set[_Pending[Any]] = set()

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call(*args)` returns, run in a thread; cancelling does not stop the call itself."""
        queued_s = self._clock()
        context = contextvars.copy_context()
        pending = _Pending(partial(context.run, call, *args, **kwargs), self._clock)
        first, *others = self._pools
        first.submit(pending.run)
        self._pending.add(pending)
        more = [pending.loop.call_later(self._patience_s, p.submit, pending.run) for p in others]
        try:
            return await pending.future
        finally:
            for timer in more:
                timer.cancel()
            self._pending.discard(pending)
            pending.give_up()
            began_s = self._clock() if pending.began_s is None else pending.began_s
            self._on_wait(self._name, began_s - queued_s)

    def close(self) -> None:
        """Take no more calls; those that run are not waited for, those that wait are given up."""
        for pending in self._pending:
            pending.give_up()
            pending.future.cancel()
        for pool in self._pools:
            pool.shutdown(wait=False)


class _Pending(Generic[T]):
    """
    A call that the first thread to come to it runs.

    Attributes:
        future: What it gives.
        began_s: When it began; None while it waits.
    """

    __slots__ = ("_call", "_clock", "_tickets", "began_s", "future", "loop")

    def __init__(self, call: Callable[[], T], clock: Callable[[], float]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self.began_s: float | None = None
        self._call = call
        self._clock = clock
        self._tickets = [True]

    def run(self) -> None:
        """Run it, unless somebody does or did, or nobody wants it any longer."""
        try:
            self._tickets.pop()  # atomic: of two threads one gets it
        except IndexError:
            return
        self.began_s = self._clock()
        try:
            result = self._call()
        except BaseException as exc:  # noqa: BLE001 - the caller gets it, whatever it is
            self._tell(self._failed, exc)
        else:
            self._tell(self._succeeded, result)

    def give_up(self) -> None:
        """Nobody waits: if it has not begun, it never does."""
        self._tickets.clear()

    def _tell(self, how: Callable[..., None], what: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(how, what)

    def _succeeded(self, result: T) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def _failed(self, exc: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(exc)
