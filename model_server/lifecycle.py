"""The states of an engine, what may happen in each, and how patient its keeper is. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from model_server.hang_detector import Patience


class State(StrEnum):
    """
    Where the engine is.

    SLEEPING: it was ended because nobody asked, or on demand; it is started when somebody asks.
    FAILED: it ended unasked; it is started again unless given up.
    """

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    SLEEPING = "sleeping"
    STOPPING = "stopping"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to it."""

    LAUNCHED = "launched"
    BECAME_READY = "became_ready"
    FAILED = "failed"
    SLEEP_ASKED = "sleep_asked"
    STOP_ASKED = "stop_asked"
    GONE = "gone"


_TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.STOPPED, Event.LAUNCHED): State.STARTING,
    (State.FAILED, Event.LAUNCHED): State.STARTING,
    (State.SLEEPING, Event.LAUNCHED): State.STARTING,
    (State.STARTING, Event.BECAME_READY): State.READY,
    (State.STARTING, Event.FAILED): State.FAILED,
    (State.READY, Event.FAILED): State.FAILED,
    (State.READY, Event.SLEEP_ASKED): State.SLEEPING,
    (State.STARTING, Event.STOP_ASKED): State.STOPPING,
    (State.READY, Event.STOP_ASKED): State.STOPPING,
    (State.SLEEPING, Event.STOP_ASKED): State.STOPPING,
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
        idle_unload_s: Without a request for that long an engine is ended until somebody asks;
            None lets it run.
    """

    start_s: float = 900.0
    stop_s: float = 15.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    give_up_after: int = 5
    poll_s: float = 0.2
    hang: Patience = field(default_factory=Patience)
    idle_unload_s: float | None = None

    def pause_s(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row; 0 counts as 1."""
        doublings = min(max(failures - 1, 0), 32)
        return min(self.longest_pause_s, self.first_pause_s * 2.0**doublings)


@dataclass(frozen=True, slots=True)
class Unload:
    """
    What putting an engine to sleep gave back.

    Attributes:
        engine_bytes: What its processes held before, without the files that they map, which the
            kernel keeps as cache; None if that cannot be told.
        freed_bytes: How much more memory the device had free afterwards.
    """

    engine_bytes: int | None
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """
    What is known of the engine now.

    Attributes:
        phase: What it is doing, for people.
        starts: Starts, whatever for.
        restarts: Starts after it ended unasked.
        hangs: How often it lived and did nothing.
        wakes: Starts because somebody asked a sleeping engine.
        unloads: How often it was put to sleep.
        waking: Whether it is being started because somebody asked.
        since_s: Seconds in this state.
        start_s: Seconds that its last start took; None until it was ready once.
        pid: Process id that the engine runs below; None while there is none.
        last_unload: What its last sleep gave back.
        last_error: Why it last failed.
    """

    state: State
    phase: str
    engine_url: str
    model: str
    starts: int
    restarts: int
    hangs: int
    wakes: int
    unloads: int
    waking: bool
    since_s: float
    start_s: float | None
    pid: int | None
    kv_tokens_planned: int
    kv_tokens_reported: int | None
    last_unload: Unload | None
    last_error: str | None
