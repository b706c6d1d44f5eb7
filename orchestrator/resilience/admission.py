"""
The gate: waiting, on top of the books.

Whoever enters holds a reservation or a place in the queue until the block ends, however it ends.
Only waiting awaits; everything that changes the books is in `admission_ledger`.
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from orchestrator.domain import Caller, Queued
from orchestrator.errors import NotReady, Overloaded, QueueFull, QueueTimeout
from orchestrator.resilience import admission_policy as policy
from orchestrator.resilience.admission_ledger import AdmissionLedger, GateState
from orchestrator.resilience.admission_policy import Action, AdmissionLimits, Decision, Demand
from orchestrator.resilience.admission_ticket import Ticket
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.engine_capacity import EngineCapacity, EngineReading

MAX_WAIT_FACTOR = 2.0
"""A prediction can be wrong: nobody waits longer than this times the wait target."""
DRAIN_RETRY_AFTER_S = 5.0


class AdmissionGate:
    """
    Who may go to the engine, who waits, who is refused.

    Args:
        limits: How much is let through.
        capacity: What the engine can hold, as it shows; by default the limits alone.
        clock: Monotonic seconds.
        notify_s: Seconds between two `Queued` notices to one waiter.
        jitter: Factor on each Retry-After, so that the refused do not come back together.
    """

    def __init__(
        self,
        *,
        limits: AdmissionLimits,
        capacity: EngineCapacity | None = None,
        clock: Callable[[], float] = time.monotonic,
        notify_s: float = 1.0,
        jitter: Callable[[], float] = lambda: random.uniform(1.0, 1.5),  # noqa: S311 - no secret
    ) -> None:
        self.limits = limits
        self.capacity = capacity or EngineCapacity(limits, clock=clock)
        self._ledger = AdmissionLedger(limits=limits, capacity=self.capacity)
        self._clock = clock
        self._notify_s = notify_s
        self._jitter = jitter
        self._draining = False

    @property
    def running(self) -> int:
        """Requests that hold a reservation."""
        return len(self._ledger.live)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._ledger.queue)

    @property
    def brownout(self) -> bool:
        """Whether answers are degraded, so that fewer have to be refused."""
        return self._ledger.brownout

    def state(self) -> GateState:
        """The books, now."""
        return self._ledger.state(self._clock())

    def demand(self, route: str, *, prompt_tokens: int, max_tokens: int) -> Demand:
        """What a request will need, its answer's length foretold from those of its route."""
        return self._ledger.demand(route, prompt_tokens=prompt_tokens, max_tokens=max_tokens)

    def observe(self, reading: EngineReading | None) -> None:
        """Take one look at the engine into account; None if it did not say anything."""
        self.capacity.observe(reading, self._ledger.own_load())
        if not self._draining:
            self._ledger.dispatch(self._clock())

    def drain(self) -> None:
        """Refuse every new request from now on, and those that wait; those inside go on."""
        self._draining = True
        for ticket in self._ledger.queue:
            ticket.wake()

    def check_open(self) -> None:
        """
        Do nothing while requests are let in.

        Raises:
            NotReady: If the gate is draining.
        """
        if self._draining:
            raise NotReady(
                "The service is shutting down. Ask again in a moment.",
                retry_after_s=DRAIN_RETRY_AFTER_S,
            )

    def enter(
        self, demand: Demand, deadline: Deadline, caller: Caller, *, route: str = "ask"
    ) -> Ticket:
        """
        A ticket, with its reservation if there is room and nobody goes first.

        Raises:
            Overloaded: If it would wait too long, or the queue has no place.
            NotReady: If the gate is draining.
        """
        self.check_open()
        now_s, remaining_s = self._clock(), deadline.remaining_s()
        ticket = Ticket(demand, caller, route, arrived_s=now_s, deadline_s=now_s + remaining_s)
        decision = self._ledger.enter(ticket, remaining_s=remaining_s, now_s=now_s)
        if decision.action is Action.REFUSE:
            raise self._refusal(decision, remaining_s)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give the ticket back, whatever its state; a second time does nothing."""
        self._ledger.leave(ticket, self._clock())

    def progress(self, ticket: Ticket, tokens: int) -> None:
        """The engine has sent this many more tokens of the answer."""
        self._ledger.progress(ticket, tokens, self._clock())

    async def resize(self, ticket: Ticket, prompt_tokens: int, deadline: Deadline) -> None:
        """
        Set the prompt's exact length; waits once more, first of its tenant, if it outgrew its room.

        Raises:
            DeadlineExceeded: If no room came free in time.
            QueueTimeout: If it waited as long as it may.
            NotReady: If the gate is draining.
        """
        if not self._ledger.resize(ticket, prompt_tokens, self._clock()):
            async for _ in self.wait(ticket, deadline):
                pass

    async def wait(self, ticket: Ticket, deadline: Deadline) -> AsyncIterator[Queued]:
        """
        Notices while the ticket waits; ends once it is granted.

        Raises:
            QueueFull: If its place went to somebody who goes first.
            QueueTimeout: If it waited as long as it may.
            DeadlineExceeded: If the time that is left cannot suffice any more.
            NotReady: If the gate is draining.
        """
        until_s = self.patience_until_s()
        while not ticket.granted:
            yield self.notice(ticket, deadline, until_s)
            left_s = min(until_s - self._clock(), deadline.remaining_s() - self._ledger.service_s)
            await ticket.wait(max(min(self._notify_s, left_s), 0.001))

    def patience_until_s(self) -> float:
        """When whoever starts to wait now has waited as long as it may, on the gate's clock."""
        return self._clock() + self.limits.wait_target_s * MAX_WAIT_FACTOR

    def notice(self, ticket: Ticket, deadline: Deadline, until_s: float) -> Queued:
        """
        Where a waiting ticket stands, if it may wait on.

        Raises:
            QueueFull: If its place went to somebody who goes first.
            QueueTimeout: If it waited as long as it may, which is until `until_s`.
            DeadlineExceeded: If the time that is left cannot suffice any more.
            NotReady: If the gate is draining.
        """
        self.check_open()
        if ticket.displaced:
            raise self._displaced()
        if deadline.remaining_s() <= self._ledger.service_s:
            raise deadline.error()
        now_s = self._clock()
        position, eta_s = self._ledger.place(ticket, now_s)
        if now_s >= until_s:
            raise self._timed_out(eta_s)
        return Queued(position, None if eta_s is None else round(eta_s, 1))

    @asynccontextmanager
    async def hold(
        self, demand: Demand, deadline: Deadline, caller: Caller, *, route: str = "ask"
    ) -> AsyncIterator[Ticket]:
        """
        A ticket that is given back when the block ends, however it ends.

        Raises:
            Overloaded: If it would wait too long, or the queue has no place.
            NotReady: If the gate is draining.
        """
        ticket = self.enter(demand, deadline, caller, route=route)
        try:
            yield ticket
        finally:
            self.leave(ticket)

    def _refusal(self, decision: Decision, remaining_s: float) -> Overloaded:
        base_s = decision.retry_after_s or policy.MIN_RETRY_AFTER_S
        wait_s = min(base_s * self._jitter(), policy.MAX_RETRY_AFTER_S)
        sustained = self._ledger.sustained_overload(self._clock())
        kind = QueueFull if decision.reason == "queue_full" else Overloaded
        return kind(
            f"The service is full: {self._why(decision, remaining_s)}. "
            f"Try again in {wait_s:.0f} s.",
            retry_after_s=wait_s,
            should_retry=not sustained and wait_s < remaining_s,
        )

    def _why(self, decision: Decision, remaining_s: float) -> str:
        if decision.reason == "queue_full" or decision.eta_s is None:
            return f"{self.queued} requests wait, and {self.limits.max_queued} may"
        if decision.reason == "deadline_too_short":
            begins_s = decision.eta_s + self._ledger.service_s
            return f"the answer would begin in about {begins_s:.0f} s, and the request has {remaining_s:.0f} s"
        limit_s = self.limits.wait_target_s
        return f"the wait would be about {decision.eta_s:.0f} s, and the limit is {limit_s:g} s"

    def _displaced(self) -> QueueFull:
        wait_s = policy.retry_after_s(self.state().eta_s or self.limits.wait_target_s)
        return QueueFull(
            f"The service is full: {self.limits.max_queued} requests may wait, and others went "
            f"before this one. Try again in {wait_s:.0f} s.",
            retry_after_s=wait_s,
            should_retry=not self._ledger.sustained_overload(self._clock()),
        )

    def _timed_out(self, eta_s: float | None) -> QueueTimeout:
        waited_s = self.limits.wait_target_s * MAX_WAIT_FACTOR
        return QueueTimeout(
            f"No place came free within {waited_s:g} s. Try again later.",
            retry_after_s=policy.retry_after_s(eta_s or self.limits.wait_target_s),
            should_retry=not self._ledger.sustained_overload(self._clock()),
        )


class Bulkhead:
    """
    At most `limit` at once of what must not crowd out the rest; the next one is told at once.

    Attributes:
        used: Places that are taken.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0

    @contextmanager
    def hold(self, full: Callable[[], Exception]) -> Iterator[None]:
        """
        A place until the block ends.

        Raises:
            Exception: What `full` makes, if there is no place.
        """
        if self.used >= self._limit:
            raise full()
        self.used += 1
        try:
            yield
        finally:
            self.used -= 1
