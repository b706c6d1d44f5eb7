"""
The gate's books: who holds what, who waits, what each tenant was charged, what was learnt.

A reservation is made before anything is spent on a request, and given back exactly once. Every
method is a plain `def`, so on one event loop each is atomic. Time comes in as a number, decisions
come from `admission_policy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.domain import Band
from orchestrator.resilience import admission_policy as policy
from orchestrator.resilience.admission_policy import (
    Action,
    AdmissionLimits,
    Bound,
    Capacity,
    Decision,
    Demand,
    Load,
    Standing,
)
from orchestrator.resilience.admission_ticket import Ticket
from orchestrator.resilience.answer_limit import AnswersInTime
from orchestrator.resilience.engine_capacity import EngineCapacity, OwnLoad
from orchestrator.resilience.load_estimates import (
    DrainMeter,
    Forecasts,
    OutputLengths,
    RefusalStreak,
)
from orchestrator.resilience.tenant_charges import TenantCharges

SERVICE_SMOOTHING = 0.1
LATE_SMOOTHING = 0.05
LATE_SHARE = 0.1
"""Answers that may run out of time before it is a sign of congestion: there are always long ones."""


@dataclass(frozen=True, slots=True)
class GateState:
    """
    The books at one moment, for `/status` and the metrics.

    Attributes:
        reserved_tokens: Most tokens of cache that the live requests will hold at once.
        capacity_tokens: Tokens that may be reserved; None if the engine's cache is unknown.
        concurrent: Requests that may be live.
        waits_for: What keeps the next one from the engine; None if nobody waits.
        eta_s: Predicted wait of whoever came last; None if unknown.
        forecast_ratio: Retry-After over the wait that then would have served, median.
    """

    running: int
    queued: int
    reserved_tokens: int
    capacity_tokens: int | None
    concurrent: int
    waits_for: Bound | None
    correction: float
    brownout: bool
    sustained_overload: bool
    drain_tokens_per_s: float | None
    eta_s: float | None
    forecast_ratio: float | None
    forecasts: int


class AdmissionLedger:
    """
    Reservations of the engine's cache, and the queue before them.

    Args:
        limits: How much of each.
        capacity: What the engine can hold, as it shows.
    """

    def __init__(self, *, limits: AdmissionLimits, capacity: EngineCapacity) -> None:
        self._limits = limits
        self._capacity = capacity
        self._queue: dict[Ticket, None] = {}
        self._live: dict[Ticket, None] = {}
        self._charges = TenantCharges()
        self._outputs: dict[str, OutputLengths] = {}
        self._drain = DrainMeter()
        self._forecasts = Forecasts()
        self._refusals = RefusalStreak()
        self._finish_s = self._late_share = 0.0
        self._received_tokens = 0
        self._in_time = AnswersInTime()
        self._places: dict[Ticket, tuple[int, int]] | None = None
        self.service_s = 0.0
        self.brownout = False

    @property
    def live(self) -> Mapping[Ticket, None]:
        """Those that hold a reservation, in the order in which they got it."""
        return self._live

    @property
    def queue(self) -> Mapping[Ticket, None]:
        """Those that wait, in the order in which they came."""
        return self._queue

    def demand(self, route: str, *, prompt_tokens: int, max_tokens: int) -> Demand:
        """What a request will need, its answer's length foretold from those of its route."""
        q80, mean = self._outputs.setdefault(route, OutputLengths()).predict(max_tokens)
        return Demand(prompt_tokens, q80, mean, max_tokens)

    def enter(self, ticket: Ticket, *, remaining_s: float, now_s: float) -> Decision:
        """Decide about an arrival, and write it down unless it is refused."""
        self._places = None
        present = {t.caller.tenant for t in (*self._queue, *self._live)}
        self._charges.arrive(ticket.caller.tenant, present)
        tickets = list(self._queue)
        waiting = [t.waiting for t in tickets]
        standing = policy.standing(ticket.waiting, waiting, self._charges.charged)
        decision = self._decide(ticket, standing, remaining_s, now_s)
        if decision.action is Action.REFUSE:
            self._refuse(ticket, decision, standing.ahead_tokens, now_s)
            return decision
        if decision.action is Action.DISPLACE and standing.before is not None:
            self._displace(tickets[standing.before], now_s)
        if decision.action is Action.ADMIT:
            self._admit(ticket, now_s)
            self.dispatch(now_s)  # its tenant was charged: somebody else may be next now
        else:
            self._queue[ticket] = None
            self._drain.busy(now_s)
            self._follow(now_s)
        return decision

    def leave(self, ticket: Ticket, now_s: float) -> None:
        """Give the ticket back, whatever its state; a second time does nothing."""
        self._places = None
        if ticket in self._queue:
            del self._queue[ticket]
            self._left_queue(ticket, now_s)
        elif ticket in self._live:
            del self._live[ticket]
            if not (ticket.asked or ticket.prefilled):
                # Nothing to search, or nothing found: its work is done, and the engine was not slow.
                self._drain.done(ticket.demand.work_tokens, now_s)
            self._settle(ticket, now_s)
        else:
            return
        self.dispatch(now_s)
        if not self._live and not self._queue:
            self._charges.forget()

    def progress(self, ticket: Ticket, tokens: int, now_s: float) -> None:
        """The engine has sent this many more tokens; the first ones end the prompt's reading."""
        if ticket not in self._live:
            return
        ticket.produced += tokens
        self._received_tokens += tokens
        self._in_time.produced(tokens, now_s)
        if ticket.prefilled:
            self._drain.done(tokens, now_s)
            return
        ticket.prefilled = True
        self._drain.done(tokens + ticket.demand.prompt_tokens, now_s)
        self._capacity.first_token(now_s - ticket.sent_s)
        if ticket.granted_s is not None:
            took_s = now_s - ticket.granted_s
            self.service_s += SERVICE_SMOOTHING * (took_s - self.service_s)
        self.dispatch(now_s)

    def resize(self, ticket: Ticket, prompt_tokens: int, now_s: float) -> bool:
        """Whether the reservation is still held with the prompt's exact length; else it waits."""
        self._places = None
        grown = prompt_tokens > ticket.demand.prompt_tokens
        ticket.asked = True
        self._charge(ticket, -1)
        ticket.demand = replace(ticket.demand, prompt_tokens=prompt_tokens)
        del self._live[ticket]
        if not grown or self._fits(ticket):
            self._charge(ticket)
            self._live[ticket] = None
            ticket.sent_s = now_s
            self.dispatch(now_s)
            return True
        ticket.revoke()
        self._in_time.taken_back(ticket)
        self._queue[ticket] = None
        self._forecasts.left(-ticket.demand.work_tokens, now_s)  # it will leave once more
        self._drain.busy(now_s)
        self.dispatch(now_s)  # what it gave back may be enough for somebody else
        return ticket.granted

    def dispatch(self, now_s: float) -> None:
        """Let in whoever is next, as long as the next one fits."""
        self._in_time.live(len(self._live), now_s)
        self._in_time.look(now_s, self._live, self._drain)
        while self._queue:
            ticket = self._next()
            if not self._fits(ticket):
                return
            self._places = None
            del self._queue[ticket]
            self._admit(ticket, now_s)
            self._left_queue(ticket, now_s)

    def place(self, ticket: Ticket, now_s: float) -> tuple[int, float | None]:
        """(position from 1, predicted wait in seconds) of one that waits."""
        if self._places is None:
            self._places = self._all_places()
        position, ahead = self._places[ticket]
        return position, self._eta_s(ahead, ticket.demand.work_tokens, now_s)

    def sustained_overload(self, now_s: float) -> bool:
        """Whether requests have been refused for so long that a retry only adds to the load."""
        return self._refusals.sustained(now_s)

    def own_load(self) -> OwnLoad:
        """What is with the engine by the books, to be compared with what the engine says."""
        return OwnLoad(
            running=len(self._live),
            # A prompt counts as read: what is not yet there must not look like somebody else's.
            resident_tokens=sum(t.live[0] for t in self._live),
            limit_bound=bool(self._queue),
            received_tokens=self._received_tokens,
            tokens_per_s=self._drain.last_tokens_per_s,
        )

    def state(self, now_s: float) -> GateState:
        """The books, now."""
        current = self._room()
        return GateState(
            running=len(self._live),
            queued=len(self._queue),
            reserved_tokens=policy.future_peak_tokens(t.live for t in self._live),
            capacity_tokens=current.kv_tokens,
            concurrent=current.concurrent if current.in_time is None else current.in_time,
            waits_for=self._bound(self._next()) if self._queue else None,
            correction=self._capacity.correction,
            brownout=self.brownout,
            sustained_overload=self.sustained_overload(now_s),
            drain_tokens_per_s=self._drain.tokens_per_s(now_s),
            eta_s=self._queue_eta_s(now_s),
            forecast_ratio=self._forecasts.median_ratio(),
            forecasts=self._forecasts.count,
        )

    def _decide(
        self, ticket: Ticket, standing: Standing, remaining_s: float, now_s: float
    ) -> Decision:
        ahead = standing.ahead_tokens
        fits_now = not ahead and self._fits(ticket)
        return policy.decide(
            fits_now=fits_now,
            anyone_ahead=bool(ahead),
            num_waiting=len(self._queue),
            goes_before_last=standing.before is not None,
            turn_s=0.0 if fits_now else self._eta_s(ahead, 0, now_s),
            eta_s=0.0 if fits_now else self._eta_s(ahead, ticket.demand.work_tokens, now_s),
            remaining_s=remaining_s,
            service_s=self.service_s,
            limits=self._limits,
        )

    def _refuse(self, ticket: Ticket, decision: Decision, ahead: int, now_s: float) -> None:
        self._refusals.refused(now_s)
        if decision.eta_s is not None and decision.retry_after_s is not None:
            work = ahead + ticket.demand.work_tokens
            self._forecasts.promised(decision.retry_after_s, work, now_s)

    def _displace(self, ticket: Ticket, now_s: float) -> None:
        del self._queue[ticket]
        ticket.displace()
        self._left_queue(ticket, now_s)

    def _fits(self, ticket: Ticket) -> bool:
        return self._bound(ticket) is None

    def _bound(self, ticket: Ticket) -> Bound | None:
        unread = sum(t.demand.prompt_tokens for t in self._live if not t.prefilled)
        band = ticket.caller.band
        peers = sum(t.caller.band <= band for t in self._live)
        load = Load([t.live for t in self._live], unread, peers)
        return policy.bound(ticket.demand, band, load, self._room(), self._limits)

    def _room(self) -> Capacity:
        """What the engine can hold of ours, and no more than can end in time."""
        current = self._capacity.current()
        if self._in_time.limit >= current.concurrent:
            return current
        return replace(current, in_time=round(self._in_time.limit))

    def _all_places(self) -> dict[Ticket, tuple[int, int]]:
        """Position and work ahead of everybody who waits; kept until the queue changes."""
        places, ahead = {}, 0
        for position, ticket in enumerate(self._in_order(), start=1):
            places[ticket] = (position, ahead)
            ahead += ticket.demand.work_tokens
        return places

    def _next(self) -> Ticket:
        return next(iter(self._queue)) if len(self._queue) == 1 else self._in_order()[0]

    def _in_order(self) -> list[Ticket]:
        tickets = list(self._queue)
        order = policy.serving_order([t.waiting for t in tickets], self._charges.charged)
        return [tickets[index] for index in order]

    def _eta_s(self, ahead: int, own: int, now_s: float) -> float | None:
        return policy.predicted_wait_s(ahead, own, self._drain.tokens_per_s(now_s))

    def _queue_eta_s(self, now_s: float) -> float | None:
        """Predicted wait of whoever waits longest."""
        if not self._queue:
            return 0.0
        return self._eta_s(sum(t.demand.work_tokens for t in self._queue), 0, now_s)

    def _admit(self, ticket: Ticket, now_s: float) -> None:
        self._charge(ticket)
        self._live[ticket] = None
        self._in_time.let_in(ticket, now_s)
        self._in_time.live(len(self._live), now_s)
        ticket.grant(now_s)

    def _left_queue(self, ticket: Ticket, now_s: float) -> None:
        self._forecasts.left(ticket.demand.work_tokens, now_s)
        self._follow(now_s)
        if not self._queue:
            self._drain.idle(now_s)
            self._forecasts.emptied()

    def _charge(self, ticket: Ticket, sign: int = 1) -> None:
        self._charges.charge(ticket.caller.tenant, sign * ticket.demand.charge)

    def _settle(self, ticket: Ticket, now_s: float) -> None:
        """The tenant is charged what was produced instead of what was foretold."""
        self._charge(ticket, -1)
        used = ticket.demand.prompt_tokens + policy.OUTPUT_WEIGHT * ticket.produced
        self._charges.charge(ticket.caller.tenant, used)
        took_s = 0.0 if ticket.granted_s is None else now_s - ticket.granted_s
        self._in_time.ended(ticket, now_s)
        if ticket.finished:
            self._outputs.setdefault(ticket.route, OutputLengths()).learn(ticket.produced)
            self._finish_s += SERVICE_SMOOTHING * (took_s - self._finish_s)
            self._late_share -= LATE_SMOOTHING * self._late_share
        elif now_s >= ticket.deadline_s and took_s > self._finish_s:
            # It had more time than the others need; one that had less has itself to blame.
            self._late_share += LATE_SMOOTHING * (1.0 - self._late_share)
            if self._late_share > LATE_SHARE:
                self._capacity.late()

    def _follow(self, now_s: float) -> None:
        """Batch work waits rather than spoil the answers of those who sit before a screen."""
        work = sum(t.demand.work_tokens for t in self._queue if t.caller.band is not Band.BATCH)
        eta_s = self._eta_s(work, 0, now_s) if work else 0.0
        self.brownout = policy.brownout(self.brownout, eta_s, self._limits)
        if self.brownout:
            self._refusals.queue_stands(now_s)
