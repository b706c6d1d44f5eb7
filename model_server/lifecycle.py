"""The states of an engine, what may happen in each, and how patient its keeper is. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from model_server.hang_detector import Patience


class State(StrEnum):
    """Where the engine is. FAILED: it ended unasked; it is started again unless given up."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to it."""

    LAUNCHED = "launched"
    BECAME_READY = "became_ready"
    FAILED = "failed"
    STOP_ASKED = "stop_asked"
    GONE = "gone"


_TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.STOPPED, Event.LAUNCHED): State.STARTING,
    (State.FAILED, Event.LAUNCHED): State.STARTING,
    (State.STARTING, Event.BECAME_READY): State.READY,
    (State.STARTING, Event.FAILED): State.FAILED,
    (State.READY, Event.FAILED): State.FAILED,
    (State.STARTING, Event.STOP_ASKED): State.STOPPING,
    (State.READY, Event.STOP_ASKED): State.STOPPING,
    (State.FAILED, Event.STOP_ASKED): State.STOPPING,
    (State.STOPPED, Event.STOP_ASKED): State.STOPPING,
    (State.STOPPING, Event.GONE): State.STOPPED,
}


def transition(state: State, event: Event) -> State:
    """
    The state after `event`.

    Raises:
        ValueError: If that event cannot happen in this state.
    """
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"{event} cannot happen to an engine that is {state}") from None


@dataclass(frozen=True, slots=True)
class Policy:
    """
    How patient the supervisor is; times in seconds.

    Attributes:
        start_s: What one start may take.
        stop_s: What stopping may take.
        first_pause_s: Pause before the first restart; doubles with each failure to get ready.
        longest_pause_s: Where doubling ends.
        give_up_after: Failures in a row that never got ready.
        poll_s: Between two looks at an engine that is starting.
        hang: Silence after which an engine that was ready counts as hung.
    """

    start_s: float = 900.0
    stop_s: float = 15.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    give_up_after: int = 5
    poll_s: float = 0.5
    hang: Patience = field(default_factory=Patience)

    def pause_s(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row; 0 counts as 1."""
        doublings = min(max(failures - 1, 0), 32)
        return min(self.longest_pause_s, self.first_pause_s * 2.0**doublings)


@dataclass(frozen=True, slots=True)
class Status:
    """
    What is known of the engine now.

    Attributes:
        phase: What it is doing, for people.
        restarts: Starts after the first one.
        since_s: Seconds in this state.
        pid: Process id that the engine runs below; None while there is none.
        last_error: Why it last failed.
    """

    state: State
    phase: str
    engine_url: str
    model: str
    restarts: int
    since_s: float
    pid: int | None
    kv_tokens_planned: int
    kv_tokens_reported: int | None
    last_error: str | None
