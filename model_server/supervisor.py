"""
Keeps one engine up: starts it, waits until it is ready, starts it again when it ends.

An exit that nobody asked for is a failure whatever its code: vLLM ends with 0 when its EngineCore
dies. Ends only when asked to, or when the engine fails five times in a row without getting ready.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from model_server.engines.base import Engine
from model_server.errors import DoesNotFit, EngineDidNotStart
from model_server.hang_detector import HangDetector, Pulse, Verdict
from model_server.lifecycle import Event, Policy, State, Status, transition

_log = logging.getLogger(__name__)

_SHOWN_LINES = 50
_WORTH_SAYING = 0.01
"""Deviation between planned and reported KV tokens that deserves a warning, as a share."""


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

    async def pulse(self) -> Pulse | None:
        """What it has got done so far; None if it does not say."""
        ...

    async def canary(self, model: str) -> bool:
        """Whether it makes one token, however long that takes."""
        ...


class Remedies(Protocol):
    """What is changed after the engine ended: `remedies.Remedies`."""

    def life_begins(self) -> None:
        """An engine is about to be started."""
        ...

    def consider(self, tail: Sequence[str], *, was_ready: bool) -> str | None:
        """What was changed for the next start, in words; None if nothing was."""
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
        remedies: Remedies,
        require_port: Callable[[], None],
        policy: Policy,
        model: str,
        engine_url: str,
        planned_kv_tokens: Callable[[], int],
        jitter: Callable[[], float] = lambda: random.uniform(0.75, 1.25),  # noqa: S311 - spreads starts
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._launch = launch
        self._probe = probe
        self._remedies = remedies
        self._require_port = require_port
        self._policy = policy
        self._model = model
        self._engine_url = engine_url
        self._planned_kv_tokens = planned_kv_tokens
        self._jitter = jitter
        self._clock = clock
        self._stop = asyncio.Event()
        self._drained = asyncio.Event()
        self._watching = asyncio.Event()
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
            kv_tokens_planned=self._planned_kv_tokens(),
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
            ModelServerError: If its log says that it would fail the same way again.
        """
        failures = 0
        while not self._stop.is_set():
            tail = await self._live_once()
            if self._stop.is_set():
                break
            if changed := self._remedies.consider(tail, was_ready=self._was_ready):
                _log.warning("%s", changed)
                failures = 0  # another plan is another engine; there are only so many of them
            else:
                failures = 0 if self._was_ready else failures + 1
            if failures >= self._policy.give_up_after:
                self._phase = f"given up after {failures} failed starts"
                raise EngineDidNotStart(self._farewell(failures, tail))
            await self._pause(self._policy.pause_s(failures) * self._jitter())
        if self._state is not State.STOPPING:
            self._move(Event.STOP_ASKED, "stopping")
        self._move(Event.GONE, "stopped")

    async def _live_once(self) -> list[str]:
        """One life of the engine, from start to nothing left; the last lines of its log."""
        self._require_port()
        self._was_ready = False
        self._drained.clear()
        self._watching.clear()
        self._starts += 1
        self._remedies.life_begins()
        self._move(Event.LAUNCHED, "starting the engine")
        try:
            running = self._running = await self._launch(self._hear)
        except DoesNotFit as exc:
            # It did when this program began: somebody has taken memory, and may give it back.
            self._fail(exc.message)
            return []
        exited = asyncio.create_task(running.wait())
        stopped = asyncio.create_task(self._stop.wait())
        hangs = asyncio.create_task(self._watch_for_hang())
        try:
            if await self._gets_ready(exited, stopped):
                await self._greet()
                self._watching.set()
                await asyncio.wait({exited, stopped, hangs}, return_when=asyncio.FIRST_COMPLETED)
            self._conclude(exited, hangs)
        finally:
            stopped.cancel()
            hangs.cancel()
            # What hangs does not hear a polite word.
            await self._end(running, within_s=0.0 if hangs.done() else self._policy.stop_s)
            exited.cancel()
            self._running = None
        return list(running.tail)

    async def _watch_for_hang(self) -> str:
        """Look at a ready engine again and again; returns what is wrong once it hangs."""
        await self._watching.wait()
        detector, canary = HangDetector(self._policy.hang), None
        looked_at = self._clock()
        try:
            while True:
                await asyncio.sleep(self._policy.hang.look_s)
                if canary is not None and canary.done():
                    (detector.answered if canary.result() else detector.unanswered)()
                    canary = None
                pulse = await self._probe.pulse()
                after_s, looked_at = self._clock() - looked_at, self._clock()
                verdict = detector.look(pulse, after_s=after_s)
                if verdict is Verdict.HUNG:
                    return (
                        f"the engine hangs: for {detector.silent_s:.0f} s it did nothing and left a "
                        "question of one token unanswered (MODEL_SERVER_HANG_TIMEOUT_S)"
                    )
                if verdict is Verdict.ASK:
                    canary = asyncio.create_task(self._probe.canary(self._model))
                    detector.asked()
        finally:
            if canary is not None:
                canary.cancel()

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
        planned = self._planned_kv_tokens()
        deviation = reported / planned - 1
        _log.log(
            logging.WARNING if abs(deviation) > _WORTH_SAYING else logging.INFO,
            "KV cache: planned %d tokens, the engine reports %d (%+.2f %%)",
            planned,
            reported,
            deviation * 100,
        )

    def _conclude(self, exited: asyncio.Task[int], hangs: asyncio.Task[str]) -> None:
        """Why this life ends: asked to, by itself, for hanging, or for taking too long."""
        if self._stop.is_set():
            self._move(Event.STOP_ASKED, "stopping")
            return
        if exited.done():
            error = f"the engine exited by itself with code {exited.result()}"
        elif hangs.done():
            error = hangs.result()
        else:
            error = (
                f"the engine was not ready after {self._policy.start_s:g} s "
                f"(MODEL_SERVER_START_TIMEOUT_S), last seen {self._phase}"
            )
        self._fail(error)

    def _fail(self, error: str) -> None:
        self._last_error = error
        _log.error("%s, while %s", error, self._state)
        self._move(Event.FAILED, "failed")

    async def _end(self, running: Running, *, within_s: float) -> None:
        left = await running.terminate(within_s=within_s, drained=self._drained)
        if left:
            self._last_error = f"{left} processes of the engine could not be killed"
            _log.error(self._last_error)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next start, or until asked to stop."""
        self._phase = f"restarting in {seconds:.3g} s"
        _log.info("restarting the engine in %.3g s", seconds)
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
