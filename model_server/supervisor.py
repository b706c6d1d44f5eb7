"""
Keeps one engine up: starts it, waits until it is ready, starts it again when it ends.

An exit that nobody asked for is a failure whatever its code: vLLM ends with 0 when its EngineCore
dies. Ends only when asked to, or when the engine fails five times in a row without getting ready.

An engine that nobody asks is ended as well, if so wished, and started again when somebody does.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from model_server.collaborators import Launch, Memory, Probe, Remedies, Running
from model_server.engine_watch import EngineWatch
from model_server.engines.base import Engine
from model_server.errors import DoesNotFit, EngineDidNotStart
from model_server.lifecycle import Event, Policy, State, Status, Unload, transition
from model_server.memory import human

_log = logging.getLogger(__name__)

_SHOWN_LINES = 50
_MEMORY_BACK_S, _MEMORY_LOOK_S, _MEMORY_BACK_SHARE = 30.0, 0.25, 0.95
_BROKEN_S = 2.5
"""What an engine without its core gets to tell its callers, before it is killed; most of it is for killing."""
_BROKEN_LOOK_S = 1.0
_WORTH_SAYING = 0.01
"""Deviation between planned and reported KV tokens that deserves a warning, as a share."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """
    How a life ends.

    Attributes:
        error: Why; None if it was asked to, or nobody asks any more.
        within_s: What the engine gets to end by itself, in seconds.
    """

    error: str | None
    within_s: float


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
        memory: Memory,
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
        self._memory = memory
        self._require_port = require_port
        self._policy = policy
        self._model = model
        self._engine_url = engine_url
        self._planned_kv_tokens = planned_kv_tokens
        self._jitter = jitter
        self._clock = clock
        self._stop = asyncio.Event()
        self._sleep_asked = asyncio.Event()
        self._wake_asked = asyncio.Event()
        self._drained = asyncio.Event()
        self._state = State.STOPPED
        self._since = clock()
        self._phase = "not started"
        self._starts = 0
        self._hangs = 0
        self._wakes = 0
        self._unloads = 0
        self._waking = False
        self._was_ready = False
        self._start_s: float | None = None
        self._running: Running | None = None
        self._last_unload: Unload | None = None
        self._free_before = 0
        self._last_error: str | None = None
        self.reported_kv_tokens: int | None = None

    def status(self) -> Status:
        """What is known of the engine now."""
        return Status(
            state=self._state,
            phase=self._phase,
            engine_url=self._engine_url,
            model=self._model,
            starts=self._starts,
            restarts=max(0, self._starts - 1 - self._wakes),
            hangs=self._hangs,
            wakes=self._wakes,
            unloads=self._unloads,
            waking=self._waking,
            since_s=round(self._clock() - self._since, 1),
            start_s=None if self._start_s is None else round(self._start_s, 1),
            pid=self._running.pid if self._running else None,
            kv_tokens_planned=self._planned_kv_tokens(),
            kv_tokens_reported=self.reported_kv_tokens,
            last_unload=self._last_unload,
            last_error=self._last_error,
        )

    def request_stop(self) -> None:
        """Make `run` end the engine and return; may be called from a signal handler."""
        self._stop.set()

    def request_sleep(self) -> bool:
        """Give the engine's memory back until somebody asks; False unless it is ready."""
        if self._state is not State.READY:
            return False
        self._sleep_asked.set()
        return True

    def request_wake(self) -> None:
        """Start a sleeping engine, once, however many ask; does nothing to any other."""
        if self._state is State.SLEEPING:
            self._wake_asked.set()

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
            if self._state is State.SLEEPING:
                failures = 0
                await self._sleep()
                continue
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
        self._sleep_asked.clear()
        self._wake_asked.clear()
        self._starts += 1
        self._remedies.life_begins()
        self._move(Event.LAUNCHED, "starting the engine")
        self.reported_kv_tokens = None  # the last one's cache went with it
        try:
            running = self._running = await self._launch(self._hear)
        except DoesNotFit as exc:
            # It did when this program began: somebody has taken memory, and may give it back.
            self._fail(exc.message)
            return []
        exited = asyncio.create_task(running.wait())
        stopped = asyncio.create_task(self._stop.wait())
        ending = _Ending(None, self._policy.stop_s)
        try:
            ending = await self._until_over(running, exited, stopped)
            self._conclude(ending.error)
        finally:
            stopped.cancel()
            await self._end(running, within_s=ending.within_s)
            exited.cancel()
            self._running = None
        return list(running.tail)

    async def _until_over(
        self, running: Running, exited: asyncio.Task[int], stopped: asyncio.Task[bool]
    ) -> "_Ending":
        """Why this life has to end, and how."""
        patient = self._policy.stop_s
        if await self._gets_ready(exited, stopped):
            await self._greet()
            return await self._while_ready(running, exited, stopped)
        if self._stop.is_set():
            return _Ending(None, patient)
        if exited.done():
            return _Ending(_exited(exited), patient)
        return _Ending(
            f"the engine was not ready after {self._policy.start_s:g} s "
            f"(MODEL_SERVER_START_TIMEOUT_S), last seen {self._phase}",
            patient,
        )

    async def _while_ready(
        self, running: Running, exited: asyncio.Task[int], stopped: asyncio.Task[bool]
    ) -> "_Ending":
        """The same of an engine that is ready: it breaks, hangs, is idle, or somebody wants its end."""
        sleep = asyncio.create_task(self._sleep_asked.wait())
        watch = asyncio.create_task(self._watch())
        broken = asyncio.create_task(self._until_broken(running))
        ours = {sleep, watch, broken}
        try:
            await asyncio.wait({exited, stopped, *ours}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ours:
                task.cancel()
        if self._stop.is_set():
            return _Ending(None, self._policy.stop_s)
        if exited.done():
            return _Ending(_exited(exited), self._policy.stop_s)
        if broken.done():
            return _Ending(broken.result(), _BROKEN_S)
        if watch.done() and (hangs := watch.result()) is not None:
            self._hangs += 1
            return _Ending(hangs, 0.0)  # what hangs does not hear a polite word
        return _Ending(None, self._policy.stop_s)

    async def _until_broken(self, running: Running) -> str:
        """
        Why the engine cannot go on though it has not ended: a process of it has, and it says so.

        vLLM takes some 5 s to end after its core died; nobody is served meanwhile. A helper that has
        done its work ends, too: then the engine is well.
        """
        async for name in running.deaths():
            give_up_at = self._clock() + _BROKEN_LOOK_S
            while self._clock() < give_up_at:
                if await self._probe.is_well() is False:  # no answer in time is no answer
                    return f"a process of the engine ended by itself ({name})"
                await asyncio.sleep(self._policy.poll_s)
        raise RuntimeError("deaths() ended")  # pragma: no cover - it never does

    async def _watch(self) -> str | None:
        watch = EngineWatch(
            self._probe,
            model=self._model,
            patience=self._policy.hang,
            idle_unload_s=self._policy.idle_unload_s,
            clock=self._clock,
        )
        return await watch.until_hung_or_idle()

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
        """The engine is ready: hold the plan against what it reports, and say so."""
        took_s = self._start_s = self._clock() - self._since
        # Before anybody is told: whoever waited for it looks at its KV cache first.
        reported = self.reported_kv_tokens = await self._probe.kv_cache_tokens()
        self._was_ready = True
        self._waking = False
        self._move(Event.BECAME_READY, "ready")
        _log.info("engine ready after %.1f s: %s serves %s", took_s, self._engine_url, self._model)
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

    def _conclude(self, error: str | None) -> None:
        """Say what becomes of the engine: stopped, asleep, or failed."""
        if self._stop.is_set():
            self._move(Event.STOP_ASKED, "stopping")
        elif error is not None:
            self._fail(error)
        else:
            self._move(Event.SLEEP_ASKED, "giving its memory back")

    def _fail(self, error: str) -> None:
        self._last_error = error
        self._waking = False
        _log.error("%s, while %s", error, self._state)
        self._move(Event.FAILED, "failed")

    async def _end(self, running: Running, *, within_s: float) -> None:
        """End what is left of a life; what it held is remembered if it falls asleep."""
        asleep = self._state is State.SLEEPING
        if asleep:
            # In threads: the kernel takes seconds to count the pages of an engine that works.
            held = await asyncio.to_thread(self._memory.returnable_bytes, running.pid)
            self._free_before = await asyncio.to_thread(self._memory.free_bytes)
            self._last_unload = Unload(held, 0)
        left = await running.terminate(within_s=within_s, drained=self._drained)
        self._unloads += asleep
        if left:
            self._last_error = f"{left} processes of the engine could not be killed"
            _log.error(self._last_error)

    async def _sleep(self) -> None:
        """Return when somebody asks, or the program is to end."""
        self._phase = "asleep: its memory is given back; the next question wakes it"
        woken = asyncio.create_task(self._wake_asked.wait())
        stopped = asyncio.create_task(self._stop.wait())
        measuring = asyncio.create_task(self._measure_unload())
        await asyncio.wait({woken, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in (woken, stopped, measuring):
            task.cancel()
        if not self._stop.is_set():
            self._wakes += 1
            self._waking = True

    async def _measure_unload(self) -> None:
        """
        Follow what the device has free until what was held is back.

        That takes a moment: a driver is slow, and the kernel keeps some freed pages at each core.
        """
        give_up_at = self._clock() + _MEMORY_BACK_S
        held = self._last_unload.engine_bytes if self._last_unload else None
        wanted = math.inf if held is None else _MEMORY_BACK_SHARE * held
        freed = 0
        while freed < wanted and self._clock() < give_up_at:
            free = await asyncio.to_thread(self._memory.free_bytes)
            freed = max(freed, free - self._free_before)
            self._last_unload = Unload(held, freed)
            await asyncio.sleep(_MEMORY_LOOK_S)
        _log.info(
            "asleep: %s given back; the engine held %s",
            human(freed),
            "an unknown part of it" if held is None else human(held),
        )

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


def _exited(exited: asyncio.Task[int]) -> str:
    return f"the engine exited by itself with code {exited.result()}"
