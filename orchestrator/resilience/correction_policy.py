"""
How our limits at an engine follow what it shows: signals in, a factor out. No clock, no I/O.

The slow loop around the reservations: down at once, up slowly, and never "idle" for "unknown".
"""

from dataclasses import dataclass

MIN_CORRECTION, UNKNOWN_CORRECTION, MAX_CORRECTION = 0.3, 0.5, 1.0
CUT, RAISE, DECAY = 0.85, 0.02, 0.9


@dataclass(frozen=True, slots=True)
class Signals:
    """
    What one look at the engine says about our limits.

    Attributes:
        known: Whether its metrics are there and fresh.
        preempted: Requests that it threw out of its cache since the last look.
        starved: Whether requests waited for room in its cache, twice in a row.
        refused: Whether it refused a request of ours since the last look.
        late: Whether an answer of ours ran out of time in it.
        slowed: Whether a token takes twice as long as it used to.
    """

    known: bool
    preempted: int = 0
    starved: bool = False
    refused: bool = False
    late: bool = False
    slowed: bool = False


def corrected(correction: float, signals: Signals) -> float:
    """
    The factor on our limits after one look at the engine, in [0.3, 1].

    Down at once on any sign of congestion, up slowly while all is quiet, so that several
    orchestrators converge on equal shares. Unknown decays to 0.5: never to "idle". Late answers
    can be the callers' own doing, so they alone do not bring it below 0.5 either.

    Source:
        Chiu and Jain 1989, additive increase and multiplicative decrease.
    """
    if signals.preempted or signals.starved or signals.refused or signals.slowed:
        return max(MIN_CORRECTION, correction * CUT)
    if signals.late:
        return max(min(correction, UNKNOWN_CORRECTION), correction * CUT)
    if not signals.known:
        return max(min(correction, UNKNOWN_CORRECTION), correction * DECAY)
    return min(MAX_CORRECTION, correction + RAISE)


def our_share(limit: float, foreign: float) -> float:
    """
    What is left of a limit beside others who use the engine; never less than half of it.

    Two who both keep half settle at half each. More than two overshoot, which the engine shows as
    congestion, and `corrected` divides.
    """
    return max(limit - foreign, limit / 2)
