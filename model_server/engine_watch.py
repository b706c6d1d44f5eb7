"""
Looks at a ready engine again and again, until it hangs or has had nothing to do for long enough.

What a look means is decided by `hang_detector` and `idle_clock`; here are the clock and the questions.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from model_server.hang_detector import HangDetector, Patience, Pulse, Verdict
from model_server.idle_clock import IdleClock


class Watched(Protocol):
    """What can be asked of an engine: `probe.EngineProbe`."""

    async def pulse(self) -> Pulse | None:
        """What it has got done so far; None if it does not say."""
        ...

    async def canary(self, model: str) -> bool:
        """Whether it makes one token, however long that takes."""
        ...


class EngineWatch:
    """
    Watches one life of an engine.

    Args:
        model: Name that canaries ask for.
        idle_unload_s: When an engine without requests is reported; None never does.
    """

    def __init__(
        self,
        probe: Watched,
        *,
        model: str,
        patience: Patience,
        idle_unload_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._model = model
        self._patience = patience
        self._idle_unload_s = idle_unload_s
        self._clock = clock
        self._detector = HangDetector(patience)
        self._idle = IdleClock()
        self._canary: asyncio.Task[bool] | None = None
        self._answered = 0

    async def until_hung_or_idle(self) -> str | None:
        """What is wrong, once it hangs; None once it has been idle for long enough."""
        looked_at = self._clock()
        try:
            while True:
                await asyncio.sleep(self._patience.look_s)
                self._collect_canary()
                pulse = await self._probe.pulse()
                after_s, looked_at = self._clock() - looked_at, self._clock()
                if self._is_idle(pulse, after_s):
                    return None
                verdict = self._detector.look(pulse, after_s=after_s)
                if verdict is Verdict.HUNG:
                    return (
                        f"the engine hangs: for {self._detector.silent_s:.0f} s it did nothing and "
                        "left a question of one token unanswered (MODEL_SERVER_HANG_TIMEOUT_S)"
                    )
                if verdict is Verdict.ASK:
                    self._canary = asyncio.create_task(self._probe.canary(self._model))
                    self._detector.asked()
        finally:
            if self._canary is not None:
                self._canary.cancel()

    def _collect_canary(self) -> None:
        if self._canary is None or not self._canary.done():
            return
        if self._canary.result():
            self._answered += 1
            self._detector.answered()
        else:
            self._detector.unanswered()
        self._canary = None

    def _is_idle(self, pulse: Pulse | None, after_s: float) -> bool:
        if self._idle_unload_s is None:
            return False
        own = self._answered if self._canary is None else None
        # While this program stands still nobody looks, and somebody may have asked.
        self._idle.look(pulse, after_s=self._patience.looked_s(after_s), own=own)
        return self._idle.idle_s >= self._idle_unload_s
