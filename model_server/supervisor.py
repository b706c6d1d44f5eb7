"""
Keeps one engine up: starts it, waits until it is ready, starts it again when it ends.

An exit that nobody asked for is a failure whatever its code: vLLM ends with 0 when its EngineCore
dies. Ends only when asked to, or when the engine fails five times in a row without getting ready.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from model_server.engines.base import Engine
from model_server.errors import EngineDidNotStart

_log = logging.getLogger(__name__)

_SHOWN_LINES = 15
_WORTH_SAYING = 0.01
"""Deviation between planned and reported KV tokens that deserves a warning, as a share."""


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
    """

    start_s: float = 900.0
    stop_s: float = 15.0
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    give_up_after: int = 5
    poll_s: float = 0.5

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


class Running(Protocol):
    """A started engine: `process.EngineProcess`, or what stands in for it in tests."""

    @property
    def pid(self) -> int:
        """Process id that it runs below."""
        ...

    @property
    def tail(self) -> Iterable[str]:
        """The last lines of its log."""
        ...

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        ...

    async def terminate(self, *, within_s: float, drained: asyncio.Event) -> int:
        """End it, sooner once it has `drained`; how many processes are left."""
        ...


class Probe(Protocol):
    """What an engine says over HTTP: `probe.EngineProbe`."""

    async def is_ready(self) -> bool:
        """Whether it takes requests."""
        ...

    async def kv_cache_tokens(self) -> int | None:
        """Tokens that its KV cache holds; None if it does not say."""
        ...


Launch = Callable[[Callable[[str], None]], Awaitable[Running]]
"""Starts the engine; takes what is to be called with each line of its log."""


class Supervisor:
    """
    One engine, kept up until told to stop.

    Attributes:
        reported_kv_tokens: What the engine said its KV cache holds; None until it did.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        launch: Launch,
        probe: Probe,
        require_port: Callable[[], None],
        policy: Policy,
        model: str,
        engine_url: str,
        planned_kv_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._launch = launch
        self._probe = probe
        self._require_port = require_port
        self._policy = policy
        self._model = model
        self._engine_url = engine_url
        self._planned_kv_tokens = planned_kv_tokens
        self._clock = clock
        self._stop = asyncio.Event()
        self._drained = asyncio.Event()
        self._state = State.STOPPED
        self._since = clock()
        self._phase = "not started"
        self._starts = 0
        self._was_ready = False
        self._running: Running | None = None
        self._last_error: str | None = None
        self.reported_kv_tokens: int | None = None

    def status(self) -> Status:
        """What is known of the engine now."""
        return Status(
            state=self._state,
            phase=self._phase,
            engine_url=self._engine_url,
            model=self._model,
            restarts=max(0, self._starts - 1),
            since_s=round(self._clock() - self._since, 1),
            pid=self._running.pid if self._running else None,
            kv_tokens_planned=self._planned_kv_tokens,
            kv_tokens_reported=self.reported_kv_tokens,
            last_error=self._last_error,
        )

    def request_stop(self) -> None:
        """Make `run` end the engine and return; may be called from a signal handler."""
        self._stop.set()

    async def run(self) -> None:
        """
        Keep the engine up until `request_stop`; nothing of it is left afterwards.

        Raises:
            PortInUse: If another program has the engine's port.
            EngineEnvironmentError: If the engine's process cannot be started at all.
            EngineDidNotStart: If it failed too often in a row without getting ready.
        """
        failures = 0
        while not self._stop.is_set():
            tail = await self._live_once()
            if self._stop.is_set():
                break
            failures = 0 if self._was_ready else failures + 1
            if failures >= self._policy.give_up_after:
                self._phase = f"given up after {failures} failed starts"
                raise EngineDidNotStart(self._farewell(failures, tail))
            await self._pause(self._policy.pause_s(failures))
        if self._state is not State.STOPPING:
            self._move(Event.STOP_ASKED, "stopping")
        self._move(Event.GONE, "stopped")

    async def _live_once(self) -> list[str]:
        """One life of the engine, from start to nothing left; the last lines of its log."""
        self._require_port()
        self._was_ready = False
        self._drained.clear()
        self._starts += 1
        self._move(Event.LAUNCHED, "starting the engine")
        running = self._running = await self._launch(self._hear)
        exited = asyncio.create_task(running.wait())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            if await self._gets_ready(exited, stopped):
                await self._greet()
                await asyncio.wait({exited, stopped}, return_when=asyncio.FIRST_COMPLETED)
            self._conclude(exited)
        finally:
            stopped.cancel()
            await self._end(running)
            exited.cancel()
            self._running = None
        return list(running.tail)

    async def _gets_ready(self, exited: asyncio.Task[int], stopped: asyncio.Task[bool]) -> bool:
        """Whether the engine answers before it ends, is to stop, or its time is up."""
        give_up_at = self._clock() + self._policy.start_s
        while self._clock() < give_up_at:
            done, _ = await asyncio.wait(
                {exited, stopped},
                timeout=self._policy.poll_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if done:
                return False
            if await self._probe.is_ready():
                return True
        return False

    async def _greet(self) -> None:
        """The engine is ready: say so, and hold the plan against what it reports."""
        self._was_ready = True
        took_s = self._clock() - self._since
        self._move(Event.BECAME_READY, "ready")
        _log.info("engine ready after %.1f s: %s serves %s", took_s, self._engine_url, self._model)
        reported = self.reported_kv_tokens = await self._probe.kv_cache_tokens()
        if reported is None:
            _log.warning("the engine does not report the size of its KV cache")
            return
        deviation = reported / self._planned_kv_tokens - 1
        _log.log(
            logging.WARNING if abs(deviation) > _WORTH_SAYING else logging.INFO,
            "KV cache: planned %d tokens, the engine reports %d (%+.2f %%)",
            self._planned_kv_tokens,
            reported,
            deviation * 100,
        )

    def _conclude(self, exited: asyncio.Task[int]) -> None:
        """Why this life ends: asked to, by itself, or for taking too long."""
        if self._stop.is_set():
            self._move(Event.STOP_ASKED, "stopping")
            return
        if exited.done():
            error = f"the engine exited by itself with code {exited.result()}"
        else:
            error = (
                f"the engine was not ready after {self._policy.start_s:g} s "
                f"(MODEL_SERVER_START_TIMEOUT_S), last seen {self._phase}"
            )
        self._last_error = error
        _log.error("%s, while %s", error, self._state)
        self._move(Event.FAILED, "failed")

    async def _end(self, running: Running) -> None:
        left = await running.terminate(within_s=self._policy.stop_s, drained=self._drained)
        if left:
            self._last_error = f"{left} processes of the engine could not be killed"
            _log.error(self._last_error)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next start, or until asked to stop."""
        self._phase = f"restarting in {seconds:g} s"
        _log.info("restarting the engine in %g s", seconds)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({stopped}, timeout=seconds)
        stopped.cancel()

    def _farewell(self, failures: int, tail: list[str]) -> str:
        shown = "\n".join(f"  | {line[:300]}" for line in tail[-_SHOWN_LINES:])
        return (
            f"The engine failed {failures} times in a row without getting ready; last: "
            f"{self._last_error}. Its log ends with:\n{shown}"
        )

    def _hear(self, line: str) -> None:
        """Follow the engine's log while it starts, and while it stops."""
        if self._engine.has_drained(line):
            self._drained.set()
        phase = self._engine.phase(line)
        if phase is not None and phase != self._phase and self._state is State.STARTING:
            self._phase = phase
            _log.info("engine: %s (%.0f s)", phase, self._clock() - self._since)

    def _move(self, event: Event, phase: str) -> None:
        self._state = transition(self._state, event)
        self._since = self._clock()
        self._phase = phase
        _log.info("state: %s", self._state)
