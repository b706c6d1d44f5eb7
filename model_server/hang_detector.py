"""
Whether an engine that lives does nothing any more. Pure: looks in, verdicts out.

A hung vLLM answers `/health` for ever, and may count no request as running; a healthy one that is full
answers late. Neither can be told by a timeout of a probe. What tells: the engine's own count of steps
stands still, and a question of ours, one token long, is not answered meanwhile.

Time is counted in looks, each of them for no longer than a look takes. While this program or the whole
machine stands still, nobody looks, and the engine is not to blame.
"""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What to do after a look."""

    FINE = "fine"
    ASK = "ask"
    """Send a canary: a question of our own."""
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Pulse:
    """
    What an engine's metrics say.

    Attributes:
        steps: Grows with everything that it gets done.
        busy: Whether it has requests, as far as it knows.
        finished: Requests that it has ended since it started; None if it does not count them.
    """

    steps: float
    busy: bool
    finished: float | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """
    How long nothing may be seen of an engine, in seconds.

    Attributes:
        hang_s: Until it counts as hung. Longer than its longest prefill: a single long prompt is
            read without a step that vLLM counts.
        look_s: Between two looks.
        answer_s: How long an engine may take to answer a look.
    """

    hang_s: float = 60.0
    look_s: float = 1.0
    answer_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.look_s <= self.hang_s / 6:
            raise ValueError(f"not usable as patience: {self!r}")

    def looked_s(self, after_s: float) -> float:
        """What counts of the time since the look before: no more than a look takes."""
        return min(after_s, self.look_s + self.answer_s)

    @property
    def busy_s(self) -> float:
        """Silence of an engine that has requests, or does not say, before it is asked."""
        return self.hang_s / 6

    @property
    def idle_s(self) -> float:
        """The same where it has none."""
        return self.hang_s / 3

    @property
    def canary_s(self) -> float:
        """Silence after it was asked before it counts as hung."""
        return self.hang_s - self.idle_s


class HangDetector:
    """
    Follows one life of an engine, from when it was ready.

    Args:
        patience: When it is asked, and when given up.

    Attributes:
        silent_s: Seconds without a sign of life.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._steps: float | None = None
        self._silent_since_asked_s = 0.0
        self._asked = False
        self._out = False
        self.silent_s = 0.0

    def look(self, pulse: Pulse | None, *, after_s: float) -> Verdict:
        """
        Take in one look.

        Args:
            pulse: What the engine said; None if it did not answer.
            after_s: Seconds since the look before.
        """
        if pulse is not None and pulse.steps != self._steps:
            moved = self._steps is not None
            self._steps = pulse.steps
            if moved:
                self.alive()
                return Verdict.FINE
        looked_s = self._patience.looked_s(after_s)
        self.silent_s += looked_s
        self._silent_since_asked_s += looked_s if self._asked else 0.0
        return self._judge(idle=pulse is not None and not pulse.busy)

    def asked(self) -> None:
        """A canary is on its way; there is never a second one beside it."""
        if not self._asked:
            self._asked, self._silent_since_asked_s = True, 0.0
        self._out = True

    def unanswered(self) -> None:
        """The canary was refused, or its connection broke: that proves nothing, either way."""
        self._out = False

    def alive(self) -> None:
        """It did something: a step, or the canary's token."""
        self.silent_s = self._silent_since_asked_s = 0.0
        self._asked = False

    def answered(self) -> None:
        """The canary came back with its token."""
        self._out = False
        self.alive()

    def _judge(self, *, idle: bool) -> Verdict:
        if self._asked and self._silent_since_asked_s >= self._patience.canary_s:
            return Verdict.HUNG
        quiet_s = self._patience.idle_s if idle else self._patience.busy_s
        if self.silent_s < quiet_s:
            return Verdict.FINE
        if self._out:
            # It was asked before its last sign of life, and has waited in a full engine since.
            self._asked = True
            return Verdict.FINE
        return Verdict.ASK
