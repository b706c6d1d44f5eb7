"""
How little memory is left, in three levels that do not flap. Pure: bytes in, a level out.

The plan leaves a reserve to others. What they, or an engine that outgrows its plan, take of it is
measured against it: on a GPU in what the card has free, for vLLM holds its share from the start; on a
CPU in what the tightest of system, container and memory node leaves.
"""

from dataclasses import dataclass
from enum import StrEnum

from model_server.memory import MIB


class Pressure(StrEnum):
    """How little memory is left. HIGH: take on less. CRITICAL: the next burst may be the last."""

    NONE = "none"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0, 1 or 2; as text the levels do not sort."""
        return list(Pressure).index(self)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """
    Where a level begins, as shares of the reserve, and where it ends.

    A plan that fits exactly leaves the reserve and no more, and others take and give a little all the
    time: the levels begin well below it.

    Attributes:
        high: With less than this left, others have taken half of what was meant for all of them.
        critical: Of the usual reserves a quarter is 256 MiB on a CPU and 128 MiB on a GPU: about one
            more process, or one more copy of a batch's logits (256 sequences of 128 Ki words).
        relief: A level ends only with this many times the room that it began with: what is freed by
            the first caller who is turned away must not let in the next.
        least_bytes: A smaller reserve is taken for this one: a machine with nothing left is in
            danger, also where nothing was to be left.
    """

    high: float = 0.5
    critical: float = 0.25
    relief: float = 1.5
    least_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        # With relief beyond the reserve itself, a level would stay for good after a tight plan.
        if not (0 < self.critical < self.high and self.relief >= 1 and self.high * self.relief < 1):
            raise ValueError(f"not usable as thresholds: {self!r}")


DEFAULT_THRESHOLDS = Thresholds()


def room_bytes(free_bytes: int, *, planned_bytes: int, engine_bytes: int | None) -> int:
    """
    What is left once the engine has taken all that it was planned; never below 0.

    An engine that still loads, or has not met its largest batch yet, will take more: that much is not
    free. With nobody else on the device this is at least the plan's reserve from its start to its end.

    Args:
        free_bytes: What the device has free now.
        planned_bytes: All that the engine may take by its plan; 0 while there is none.
        engine_bytes: What it has taken. None if that cannot be told: then all that it ever will.
    """
    outstanding = 0 if engine_bytes is None else max(0, planned_bytes - engine_bytes)
    return max(0, free_bytes - outstanding)


def pressure(
    room: int, *, reserve_bytes: int, thresholds: Thresholds = DEFAULT_THRESHOLDS
) -> Pressure:
    """The level that begins with `room` bytes left of a plan's reserve."""
    return _level(room, max(reserve_bytes, thresholds.least_bytes), thresholds)


def _level(room: float, reserve: int, thresholds: Thresholds) -> Pressure:
    if room < thresholds.critical * reserve:
        return Pressure.CRITICAL
    return Pressure.HIGH if room < thresholds.high * reserve else Pressure.NONE


class PressureGauge:
    """
    The level, look after look: rises at once, falls only when there is clearly more room.

    Attributes:
        level: Of the last look that saw something.
    """

    def __init__(self, thresholds: Thresholds = DEFAULT_THRESHOLDS) -> None:
        self._thresholds = thresholds
        self.level = Pressure.NONE

    def look(self, room: int | None, *, reserve_bytes: int) -> Pressure:
        """
        Take in one look, and give the level.

        Args:
            room: Bytes left (`room_bytes`); None if unknown, which changes nothing.
            reserve_bytes: What the plan leaves to others.
        """
        if room is not None:
            reserve = max(reserve_bytes, self._thresholds.least_bytes)
            begins = _level(room, reserve, self._thresholds)
            lasts = _level(room / self._thresholds.relief, reserve, self._thresholds)
            # What begins is never more than what lasts: the level stays between the two.
            self.level = min(max(self.level, begins, key=_rank), lasts, key=_rank)
        return self.level


def _rank(level: Pressure) -> int:
    return level.rank
