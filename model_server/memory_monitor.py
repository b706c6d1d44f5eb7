"""Looks at memory every few seconds, and says when little of it is left."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from model_server.memory import human
from model_server.memory_pressure import Pressure, PressureGauge, room_bytes
from model_server.memory_watch import MemoryReading

_log = logging.getLogger(__name__)

LOOK_S = 5.0
"""
Seconds between two looks. The kernel walks a process's page tables for its share of memory, and what
fills a machine within less than that is faster than any watch.
"""


class Looking(Protocol):
    """What can look at memory: `memory_watch.MemoryWatch`, or what stands in for it in tests."""

    def look(self, pid: int | None) -> MemoryReading:
        """Everything at once, of the engine below `pid`; None while there is none."""
        ...


class MemoryMonitor:
    """
    Keeps the last look at memory, and the level of pressure.

    Args:
        watch: What looks; in a thread, for it blocks.
        engine_pid: Below which the engine runs now; None while there is none.
        planned_bytes: All that an engine which runs may take by its plan.
        reserve_bytes: What its plan leaves to others.
        on_held: Told what the engine holds, and what was planned for it, at each look that knows.

    Attributes:
        reading: The last look; None before the first, and after one that failed.
    """

    def __init__(
        self,
        *,
        watch: Looking,
        engine_pid: Callable[[], int | None],
        planned_bytes: Callable[[], int],
        reserve_bytes: Callable[[], int],
        on_held: Callable[[int, int], None] = lambda _held_bytes, _planned_bytes: None,
        gauge: PressureGauge | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self._watch = watch
        self._engine_pid = engine_pid
        self._planned_bytes = planned_bytes
        self._reserve_bytes = reserve_bytes
        self._on_held = on_held
        self._gauge = gauge or PressureGauge()
        self._look_s = look_s
        self.reading: MemoryReading | None = None

    @property
    def pressure(self) -> Pressure:
        """The level now; NONE before the first look."""
        return self._gauge.level

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._look_s)

    async def look(self) -> None:
        """Look once; a look that fails or sees nothing leaves the level as it was."""
        pid = self._engine_pid()
        planned = 0 if pid is None else self._planned_bytes()
        try:
            self.reading = await asyncio.to_thread(self._watch.look, pid)
        except Exception:  # noqa: BLE001 - whatever it is, the next look may see again
            _log.exception("memory cannot be looked at")
            self.reading = None
            return
        if self.reading.engine_bytes is not None and pid is not None and pid == self._engine_pid():
            self._on_held(self.reading.engine_bytes, planned)
        self._judge(self.reading, planned_bytes=planned)

    def _judge(self, reading: MemoryReading, *, planned_bytes: int) -> None:
        if reading.free_bytes is None:
            return
        room = room_bytes(
            reading.free_bytes, planned_bytes=planned_bytes, engine_bytes=reading.engine_bytes
        )
        before, reserve = self._gauge.level, self._reserve_bytes()
        now = self._gauge.look(room, reserve_bytes=reserve)
        if now is not before:
            _log.log(
                logging.WARNING if now.rank > before.rank else logging.INFO,
                "memory pressure: %s after %s, with %s left of a reserve of %s",
                now,
                before,
                human(room),
                human(reserve),
            )
