"""What may stand before an engine: its own flags, a semaphore, or the gate."""

import math

from orchestrator.domain import Caller
from orchestrator.errors import DeadlineExceeded, Overloaded
from orchestrator.resilience.admission import AdmissionGate
from orchestrator.resilience.admission_policy import AdmissionLimits
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.engine_capacity import EngineReading
from tests.simulation.discrete_event import (
    MAX_TOKENS,
    PATIENCE_S,
    Attempt,
    Door,
    Engine,
    Refused,
    World,
)


class EngineFlags(Door):
    """The engine's own: its queue is bounded in requests or in tokens."""

    def __init__(
        self, engine: Engine, *, requests: float = math.inf, tokens: float = math.inf
    ) -> None:
        super().__init__(engine)
        self._requests, self._tokens = requests, tokens

    def offer(self, attempt: Attempt) -> None:
        waiting = self.engine.waiting
        if (
            len(waiting) >= self._requests
            or sum(a.ask.prompt_tokens for a in waiting) >= self._tokens
        ):
            raise Refused
        self.engine.submit(attempt)


class Semaphore(Door):
    """So many with the engine, so many more in a line: what a limiter of requests does."""

    def __init__(self, engine: Engine, *, permits: int = 64, queued: int = 256) -> None:
        super().__init__(engine)
        self._permits, self._queued = permits, queued
        self._inside: set[Attempt] = set()
        self._line: dict[Attempt, None] = {}

    def offer(self, attempt: Attempt) -> None:
        if len(self._line) >= self._queued:
            raise Refused
        self._line[attempt] = None
        self._next()

    def leave(self, attempt: Attempt) -> None:
        self._line.pop(attempt, None)
        self._inside.discard(attempt)
        self.engine.abort(attempt)
        self._next()

    def _next(self) -> None:
        while self._line and len(self._inside) < self._permits:
            attempt = next(iter(self._line))
            del self._line[attempt]
            self._inside.add(attempt)
            self.engine.submit(attempt)


class FixedLimit(Semaphore):
    """
    As many with the engine as somebody found out to be best, and a line that is bounded in time.

    Nobody knows that number beforehand: it is what a gate is measured by.
    """

    def __init__(self, engine: Engine, world: World, *, permits: int, wait_s: float) -> None:
        super().__init__(engine, permits=permits, queued=10**6)
        self._world, self._wait_s = world, wait_s

    def offer(self, attempt: Attempt) -> None:
        super().offer(attempt)
        if attempt in self._line:
            self._world.after(self._wait_s, lambda: self._refuse_late(attempt))

    def _refuse_late(self, attempt: Attempt) -> None:
        if attempt in self._line:
            attempt.clients.refused(attempt, Refused(should_retry=False))


class Gate(Door):
    """The real gate, asked and told as the pipeline does; events stand in for the awaits."""

    LOOK_S = 1.0

    def __init__(self, engine: Engine, world: World, limits: AdmissionLimits) -> None:
        super().__init__(engine)
        self.world = world
        self.gate = AdmissionGate(
            limits=limits, clock=world.clock, jitter=lambda: world.random.uniform(1.0, 1.5)
        )
        self._waiting: dict[Attempt, None] = {}
        self._observe()

    def offer(self, attempt: Attempt) -> None:
        ask = attempt.ask
        prompt_tokens = self.foretold(attempt)
        demand = self.gate.demand("ask", prompt_tokens=prompt_tokens, max_tokens=MAX_TOKENS)
        deadline = Deadline(PATIENCE_S, clock=self.world.clock)
        caller = Caller(ask.tenant, ask.band)
        try:
            attempt.ticket = self.gate.enter(demand, deadline, caller)
        except Overloaded as full:
            raise Refused(full.retry_after_s, should_retry=full.should_retry) from full
        self._waiting[attempt] = None
        self._dispatch()
        self._look(attempt, deadline, self.gate.patience_until_s())

    def token(self, attempt: Attempt) -> None:
        if attempt.ticket is not None:
            self.gate.progress(attempt.ticket, 1)
        if attempt.produced == 1:
            self._dispatch()

    def leave(self, attempt: Attempt) -> None:
        self._waiting.pop(attempt, None)
        self.engine.abort(attempt)
        if attempt.ticket is not None:
            attempt.ticket.finished = attempt.produced >= attempt.ask.output_tokens
            self.gate.leave(attempt.ticket)
        self._dispatch()

    def foretold(self, attempt: Attempt) -> int:
        """The prompt's length as far as it is known at the door."""
        return attempt.ask.prompt_tokens

    def settled(self, attempt: Attempt) -> bool:
        """Whether its reservation still holds now that its prompt is there."""
        return attempt.ticket is not None and attempt.ticket.granted

    def _dispatch(self) -> None:
        while let_in := [a for a in self._waiting if a.ticket and a.ticket.granted]:
            for attempt in let_in:
                if self.settled(attempt):
                    del self._waiting[attempt]
                    self.engine.submit(attempt)

    def _look(self, attempt: Attempt, deadline: Deadline, until_s: float) -> None:
        """What a waiter does each second."""
        if attempt not in self._waiting or attempt.ticket is None:
            return
        try:
            self.gate.notice(attempt.ticket, deadline, until_s)
        except Overloaded as full:
            refusal = Refused(full.retry_after_s, should_retry=full.should_retry)
            attempt.clients.refused(attempt, refusal)
        except DeadlineExceeded:
            attempt.clients.refused(attempt, Refused())
        else:
            self.world.after(self.LOOK_S, lambda: self._look(attempt, deadline, until_s))

    def reading(self) -> EngineReading | None:
        """What the engine's metrics say; None if it does not answer."""
        return self.engine.reading()

    def _observe(self) -> None:
        self.gate.observe(self.reading())
        self._dispatch()
        self.world.after(1.0, self._observe)


class EstimatingGate(Gate):
    """The gate as it is used with retrieval behind it: a prompt's length is a guess until then."""

    GUESS_TOKENS = 1500

    def foretold(self, attempt: Attempt) -> int:
        return self.GUESS_TOKENS

    def settled(self, attempt: Attempt) -> bool:
        ticket, exact = attempt.ticket, attempt.ask.prompt_tokens
        if ticket is None or not ticket.granted:
            return False
        if ticket.demand.prompt_tokens == exact:
            return True
        return self.gate._ledger.resize(ticket, exact, self.world.now_s)
