"""
Reads a body in a task of its own, so that whoever asks gets everything that is there at once.

A token a read costs a wake-up; twenty tokens that came in one read cost one wake-up too. And
waiting costs one timer a stream, armed again only when it rings too early, not two a token.
"""

import asyncio
from collections.abc import AsyncIterator

from orchestrator.generation.event_stream import EventStreamParser

MAX_HELD_BYTES = 256 * 1024
"""Read ahead of a slow reader; beyond it the engine's connection is left to fill up."""


class EventReader:
    """
    The events of one body.

    Args:
        body: Its bytes.
        parser: Makes events of them.
    """

    def __init__(self, body: AsyncIterator[bytes], parser: EventStreamParser) -> None:
        self._body = body
        self._parser = parser
        self._events: list[str] = []
        self._held_bytes = 0
        self._error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at_s = 0.0
        self._task = self._loop.create_task(self._pump())

    async def read(self, until_s: float) -> list[str]:
        """
        Every event that has come since the last call, at least one; none once the body has ended.

        Args:
            until_s: Give up at this time of the event loop, in seconds.

        Raises:
            TimeoutError: If no event was completed until then.
            Exception: What reading or parsing the body raised, after the events before it.
        """
        while not self._events:
            if self._task.done():
                if self._error is not None:
                    raise self._error
                return []
            if self._loop.time() >= until_s:
                raise TimeoutError
            await self._news(until_s)
        events, self._events = self._events, []
        self._held_bytes = 0
        _wake(self._writer)
        return events

    async def drain(self, timer_s: float) -> bool:
        """Whether the body ends within `timer_s` seconds; its connection can then be used again."""
        if not self._task.done():
            await asyncio.wait({self._task}, timeout=timer_s)
        return self._task.done() and self._error is None

    async def aclose(self) -> None:
        """Stop reading."""
        if self._alarm is not None:
            self._alarm.cancel()
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _pump(self) -> None:
        try:
            async for part in self._body:
                events = self._parser.feed(part)
                if events:
                    self._events += events
                    _wake(self._reader)
                    self._held_bytes += len(part)
                    if self._held_bytes > MAX_HELD_BYTES:
                        await self._room()
        except Exception as exc:  # noqa: BLE001 - handed to the reader, whatever it is
            self._error = exc
        finally:
            _wake(self._reader)

    async def _news(self, until_s: float) -> None:
        """Wait until something has changed, or the time is up."""
        if self._alarm is None or self._alarm_at_s > until_s:
            self._set_alarm(until_s)
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def _room(self) -> None:
        """Wait until everything that is held was taken."""
        self._writer = self._loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def _set_alarm(self, at_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at_s = at_s
        self._alarm = self._loop.call_at(at_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None  # whoever waits sees whether it is early, and sets it anew
        _wake(self._reader)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
