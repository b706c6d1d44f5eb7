"""One request at the gate, and the waking of whoever waits for it."""

import asyncio

from orchestrator.domain import Caller
from orchestrator.resilience import admission_policy as policy
from orchestrator.resilience.admission_policy import Demand, Live, Waiting


class Ticket:
    """
    One request at the gate: waiting, then holding a reservation, then released.

    Attributes:
        demand: What it needs; exact once its prompt is assembled.
        granted: Whether the reservation is held.
        sent_s: When it was handed to the engine, as far as is known.
        waited_s: Seconds between its arrival and its reservation.
        produced: Tokens of the answer so far.
        waiting: How the queue's order sees it.
        displaced: Whether its place in the queue went to somebody who goes first.
        asked: Whether the engine was asked, or is about to be.
        finished: Set by whoever saw the answer's end, so that its length is learnt.
    """

    __slots__ = (
        "_woken",
        "arrived_s",
        "asked",
        "caller",
        "deadline_s",
        "demand",
        "displaced",
        "finished",
        "granted",
        "granted_s",
        "prefilled",
        "produced",
        "route",
        "sent_s",
        "waited_s",
        "waiting",
    )

    def __init__(
        self, demand: Demand, caller: Caller, route: str, *, arrived_s: float, deadline_s: float
    ) -> None:
        self.demand = demand
        self.caller = caller
        self.route = route
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.waiting = self._in_order(deadline_s)
        self.granted_s: float | None = None
        self.sent_s = 0.0
        self.waited_s = 0.0
        self.produced = 0
        self.asked = False
        self.prefilled = False
        self.displaced = False
        self.finished = False
        self.granted = False
        self._woken = asyncio.Event()

    @property
    def live(self) -> Live:
        """What it holds of the engine's cache, and what is to come."""
        resident = self.demand.prompt_tokens + self.produced
        return resident, policy.remaining_tokens(self.produced, self.demand)

    def grant(self, now_s: float) -> None:
        """Hand the reservation over and wake the waiter."""
        if self.granted_s is None:
            self.waited_s = now_s - self.arrived_s
        self.granted, self.granted_s = True, now_s
        self.sent_s = now_s
        self._woken.set()

    def revoke(self) -> None:
        """Take the reservation back; the ticket waits again, before everybody of its tenant."""
        self.granted = False
        self._woken.clear()
        self.waiting = self._in_order(float("-inf"))

    def displace(self) -> None:
        """Tell the waiter that its place is gone."""
        self.displaced = True
        self._woken.set()

    def wake(self) -> None:
        """Wake the waiter without a reservation, so that it looks around."""
        self._woken.set()

    async def wait(self, timer_s: float) -> None:
        """Until the reservation is held or somebody wakes it, at most `timer_s` seconds."""
        try:
            async with asyncio.timeout(timer_s):
                await self._woken.wait()
        except TimeoutError:
            return

    def _in_order(self, deadline_s: float) -> Waiting:
        """How the queue's order sees it."""
        demand, caller = self.demand, self.caller
        return Waiting(caller.tenant, caller.band, deadline_s, demand.charge, demand.work_tokens)
