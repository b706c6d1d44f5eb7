"""
Questions to an engine that sleeps: they wait, and it is woken once for all of them.

They wait here and not in the gate's queue: what holds them up is not how much is let through, so
neither the wait target nor the order of the queue applies. Their deadline does.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from orchestrator.domain import Queued
from orchestrator.errors import EngineUnavailable, OrchestratorError, QueueFull
from orchestrator.generation.engine_keeper import EngineKeeper
from orchestrator.generation.engine_monitor import EngineMonitor
from orchestrator.resilience.deadline import Deadline

LOOK_S, NOTIFY_S = 0.25, 1.0
DEFAULT_RETRY_AFTER_S = 10.0
logger = logging.getLogger(__name__)


class Wakening:
    """
    Where questions wait for an engine to wake.

    Args:
        keeper: Who can start it; None where nobody here can.
        max_waiting: Questions that may wait; the next one is told at once.
        check_open: Raises once the service is shutting down.
        look_s: Seconds between two looks at an engine that wakes.
        notify_s: Seconds between two notices to one that waits.
    """

    def __init__(
        self,
        *,
        monitor: EngineMonitor,
        keeper: EngineKeeper | None,
        max_waiting: int,
        check_open: Callable[[], None] = lambda: None,
        look_s: float = LOOK_S,
        notify_s: float = NOTIFY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monitor = monitor
        self._keeper = keeper
        self._max_waiting = max_waiting
        self._check_open = check_open
        self._look_s = look_s
        self._notify_s = notify_s
        self._clock = clock
        self._waiting: dict[object, None] = {}
        self._waking: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Questions that wait for it to wake."""
        return len(self._waiting)

    @property
    def eta_s(self) -> float | None:
        """Seconds until it is awake, if it is woken now; None if that is not known."""
        life = self._monitor.state.life
        return life.eta_s if life else None

    async def aclose(self) -> None:
        """Stop looking."""
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.wait({self._waking})

    async def wait(self, deadline: Deadline) -> AsyncIterator[Queued]:
        """
        Notices while the engine wakes; none if it is awake, or is away for another reason.

        Raises:
            QueueFull: If too many wait.
            EngineUnavailable: If it will not be awake in time, or cannot be woken.
            DeadlineExceeded: If the time is up.
            NotReady: If the service is shutting down.
        """
        if not self._monitor.state.asleep:
            return
        waking = self._wake()
        with self._place() as place:
            while self._monitor.state.asleep:
                self._check_open()
                self._require_time(deadline)
                yield Queued(list(self._waiting).index(place) + 1, _rounded(self.eta_s))
                patience_s = min(self._notify_s, deadline.remaining_s())
                await asyncio.wait({waking}, timeout=max(patience_s, 0.001))
                deadline.check()
                if waking.done():
                    waking.result()
                    if self._monitor.state.asleep:
                        waking = self._wake()

    @property
    def unloads(self) -> int:
        """How often the engine was put to sleep, as far as it is known."""
        life = self._monitor.state.life
        return life.unloads if life else 0

    async def slept_since(self, unloads: int) -> bool:
        """
        Whether the engine sleeps, or has slept since `unloads` was read; looked at now.

        That is why it may have refused a question, though it may be awake again.
        """
        if self._keeper is None:
            return False
        state = await self._monitor.refresh()
        return state.asleep or self.unloads > unloads

    @contextmanager
    def _place(self) -> Iterator[object]:
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull(
                f"The engine is waking up, and {self._max_waiting} questions wait for it already. "
                "Try again in a moment.",
                retry_after_s=self.eta_s or DEFAULT_RETRY_AFTER_S,
            )
        place = object()
        self._waiting[place] = None
        try:
            yield place
        finally:
            del self._waiting[place]

    def _require_time(self, deadline: Deadline) -> None:
        eta_s = self.eta_s
        if eta_s is not None and eta_s >= deadline.remaining_s():
            raise EngineUnavailable(
                f"The engine was asleep and is being started: ready in about {eta_s:.0f} s, and the "
                f"request has {deadline.remaining_s():.0f} s. Ask again then, or allow more time "
                "(timeout_s).",
                retry_after_s=max(eta_s, 1.0),
            )

    def _wake(self) -> "asyncio.Task[None]":
        """The one task that wakes the engine, whoever asks for it."""
        if self._waking is None or self._waking.done():
            self._waking = asyncio.create_task(self._until_awake(), name="wake-engine")
            self._waking.add_done_callback(_looked_at)
        return self._waking

    async def _until_awake(self) -> None:
        """
        Have it started, and look until it answers, or is no longer on its way.

        Raises:
            EngineUnavailable: If the order was refused.
        """
        if self._keeper is None:
            return
        began_s = self._clock()
        logger.info("engine: woken, ready in about %s s", _rounded(self.eta_s) or "some")
        state = self._monitor.state
        while state.asleep:
            # Once more if need be: it may be put to sleep again before anybody saw it awake.
            if state.life is None or not state.life.waking:
                await self._keeper.wake()
            await asyncio.sleep(self._look_s)
            state = await self._monitor.refresh()
        if state.model is not None:
            logger.info("engine: awake after %.1f s", self._clock() - began_s)


def _looked_at(task: "asyncio.Task[None]") -> None:
    """Those who wait are told of a failure; if nobody waits any more, the log is."""
    if not task.cancelled() and isinstance(exc := task.exception(), OrchestratorError):
        logger.warning("engine not woken: %s", exc.message)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
