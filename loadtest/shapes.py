"""
How many people there are, and when. Pure: seconds in, a number of people out.

Everything is in multiples of `USERS`: whoever chooses that number as what the service takes with ease
reads 2x and 10x as overload.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Phase:
    """
    A stretch of a run with the same number of people.

    Attributes:
        name: For the tables.
        share: Of the length of the run.
        load_x: People, in multiples of those asked for.
        volley: Long questions that are sent at once as it begins, beside what people ask.
    """

    name: str
    share: float
    load_x: float
    volley: int = 0


SHAPES: Mapping[str, tuple[Phase, ...]] = MappingProxyType({
    "constant": (Phase("constant", 1.0, 1.0),),
    "step": (
        Phase("half", 0.2, 0.5),
        Phase("full", 0.2, 1.0),
        Phase("double", 0.2, 2.0),
        Phase("fourfold", 0.2, 4.0),
        Phase("tenfold", 0.2, 10.0),
    ),
    "burst": (Phase("before", 0.3, 0.75), Phase("burst", 0.3, 3.0), Phase("after", 0.4, 0.75)),
    "soak": (Phase("soak", 1.0, 2.0),),
    "attack": (Phase("before", 0.4, 0.5), Phase("attack", 0.6, 0.5, volley=10)),
})
"""
`step` goes up to where others collapse; `attack` is the loop of `curl` that brings a naive service
down, beside people who ask as always.
"""


def phase_at(phases: Sequence[Phase], at_s: float, *, seconds: float) -> tuple[int, Phase] | None:
    """
    Which phase it is, and its number; None when the run is over.

    Args:
        phases: Of the shape, in their order.
        at_s: Seconds since the start.
        seconds: Length of the whole run.
    """
    end_s = 0.0
    for number, phase in enumerate(phases):
        end_s += phase.share * seconds
        if at_s < end_s:
            return number, phase
    return None


def people(phase: Phase, users: int) -> int:
    """How many people there are in a phase: one at least."""
    return max(round(users * phase.load_x), 1)
