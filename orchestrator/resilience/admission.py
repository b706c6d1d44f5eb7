"""
The gate's seam: who may go to the engine, who waits, who is refused.

A permit is held from admission until the answer's stream is closed. Decisions are plain `def`s on
the event loop, so they are atomic; only waiting awaits. This cut counts requests and serves them in
order of arrival.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from orchestrator.domain import Queued
from orchestrator.errors import NotReady, QueueFull, QueueTimeout
from orchestrator.resilience.deadline import Deadline

SMOOTHING = 0.2
"""Weight of the newest service time in the running mean that ETAs are made from."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """
    What the gate lets through.

    Attributes:
        max_concurrent: Permits held at once.
        max_queued: Requests that may wait.
        max_wait_s: Longest wait, in seconds.
    """

    max_concurrent: int
    max_queued: int
    max_wait_s: float

    def __post_init__(self) -> None:
        if self.max_concurrent < 1 or self.max_queued < 0 or self.max_wait_s <= 0:
            raise ValueError(f"not usable as limits: {self!r}")


class Ticket:
    """
    One request at the gate: first waiting, then holding a permit, then released.

    Attributes:
        waited_s: Seconds between the request's arrival and its permit.
    """

    __slots__ = ("_granted", "arrived_s", "granted_s", "waited_s")

    def __init__(self, arrived_s: float) -> None:
        self.arrived_s = arrived_s
        self.granted_s: float | None = None
        self.waited_s = 0.0
        self._granted = asyncio.Event()

    @property
    def granted(self) -> bool:
        """Whether the permit is held."""
        return self._granted.is_set()

    def grant(self, now_s: float) -> None:
        """Hand the permit over and wake the waiter."""
        self.granted_s = now_s
        self.waited_s = now_s - self.arrived_s
        self._granted.set()

    async def wait(self, timer_s: float) -> bool:
        """Whether the permit came within `timer_s` seconds."""
        try:
            async with asyncio.timeout(timer_s):
                await self._granted.wait()
        except TimeoutError:
            return self.granted
        return True


class AdmissionGate:
    """
    A bounded number of permits and a bounded queue before them.

    Args:
        limits: How many of each.
        clock: Monotonic seconds.
        notify_s: Seconds between two `Queued` notices to one waiter.
    """

    def __init__(
        self,
        *,
        limits: AdmissionLimits,
        clock: Callable[[], float] = time.monotonic,
        notify_s: float = 1.0,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._notify_s = notify_s
        self._queue: OrderedDict[Ticket, None] = OrderedDict()
        self._running: set[Ticket] = set()
        self._service_s: float | None = None
        self._draining = False

    @property
    def limits(self) -> AdmissionLimits:
        """The limits in force."""
        return self._limits

    @property
    def running(self) -> int:
        """Permits that are held."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def drain(self) -> None:
        """Refuse every new request from now on; those inside go on."""
        self._draining = True

    def enter(self) -> Ticket:
        """
        A ticket, granted at once if a permit is free and nobody waits before.

        Raises:
            QueueFull: If the queue has no place.
            NotReady: If the gate is draining.
        """
        if self._draining:
            raise NotReady("The service is shutting down. Ask again in a moment.", retry_after_s=5)
        now_s = self._clock()
        ticket = Ticket(now_s)
        if len(self._running) < self._limits.max_concurrent and not self._queue:
            self._running.add(ticket)
            ticket.grant(now_s)
            return ticket
        if len(self._queue) >= self._limits.max_queued:
            raise QueueFull(
                f"All {self._limits.max_concurrent} places are taken and "
                f"{self._limits.max_queued} requests already wait. Try again later.",
                retry_after_s=self.eta_s(len(self._queue)) or 5.0,
            )
        self._queue[ticket] = None
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the ticket back, whatever its state; a second time does nothing."""
        if ticket in self._queue:
            del self._queue[ticket]
        elif ticket in self._running:
            self._running.remove(ticket)
            self._learn(ticket)
            self._hand_on()

    def eta_s(self, ahead: int) -> float | None:
        """Seconds until somebody with `ahead` waiters before it is admitted; None if unknown."""
        if self._service_s is None:
            return None
        return self._service_s * (ahead + 1) / self._limits.max_concurrent

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[Ticket]:
        """
        A ticket that is given back when the block ends, however it ends.

        Raises:
            QueueFull: If the queue has no place.
            NotReady: If the gate is draining.
        """
        ticket = self.enter()
        try:
            yield ticket
        finally:
            self.leave(ticket)

    async def wait(self, ticket: Ticket, deadline: Deadline) -> AsyncIterator[Queued]:
        """
        Notices while the ticket waits; ends once it is granted.

        Raises:
            QueueTimeout: If it waited as long as it may.
            DeadlineExceeded: If the request's own time was up first.
        """
        wait_until_s = ticket.arrived_s + self._limits.max_wait_s
        while not ticket.granted:
            deadline.check()
            left_s = wait_until_s - self._clock()
            if left_s <= 0:
                raise QueueTimeout(
                    f"No place came free within {self._limits.max_wait_s:g} s. Try again later.",
                    retry_after_s=self.eta_s(len(self._queue)) or 5.0,
                )
            ahead = list(self._queue).index(ticket)
            yield Queued(position=ahead + 1, eta_s=self.eta_s(ahead))
            await ticket.wait(min(self._notify_s, left_s, max(deadline.remaining_s(), 0.001)))

    def _learn(self, ticket: Ticket) -> None:
        if ticket.granted_s is None:
            return
        took_s = self._clock() - ticket.granted_s
        if self._service_s is None:
            self._service_s = took_s
        else:
            self._service_s += SMOOTHING * (took_s - self._service_s)

    def _hand_on(self) -> None:
        while self._queue and len(self._running) < self._limits.max_concurrent:
            ticket, _ = self._queue.popitem(last=False)
            self._running.add(ticket)
            ticket.grant(self._clock())
