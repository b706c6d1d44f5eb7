"""The bytes of one response of an engine as they come, for one reader, under its timer."""

import asyncio
import math

MAX_HELD_BYTES = 256 * 1024
"""Read ahead of a slow reader; beyond it the engine's connection is left to fill up."""


class WireError(Exception):
    """There is no connection, it broke, or what came is no HTTP."""


class ResponseBody:
    """
    The bytes of one response as they come, for one reader.

    Attributes:
        ended: Whether nothing more is to come.
    """

    __slots__ = ("_alarm", "_alarm_at_s", "_error", "_held_bytes", "_loop", "_parts", "_paused",
                 "_reader", "_transport", "ended")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self.ended = False
        self._loop = loop
        self._transport = transport
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._paused = False
        self._error: WireError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at_s = 0.0

    def feed(self, part: bytes) -> None:
        """More has come."""
        self._parts.append(part)
        self._held_bytes += len(part)
        if self._held_bytes > MAX_HELD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def end(self, error: WireError | None = None) -> None:
        """Nothing more is to come; only the first call counts."""
        if not self.ended:
            self.ended, self._error = True, error
            self._wake()

    async def take(self, until_s: float = math.inf) -> bytes:
        """
        Everything that has come since the last call, at least a byte; b"" once the body has ended.

        Args:
            until_s: Give up at this time of the event loop, in seconds.

        Raises:
            TimeoutError: If nothing came until then.
            WireError: If the connection broke, after what came before it.
        """
        while not self._parts:
            if self.ended:
                if self._error is not None:
                    raise self._error
                return b""
            if self._loop.time() >= until_s:
                raise TimeoutError
            await self._news(until_s)
        taken = b"".join(self._parts) if len(self._parts) > 1 else self._parts[0]
        self._parts.clear()
        self._held_bytes = 0
        self._resume()
        return taken

    def close(self) -> None:
        """Nobody reads any longer."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._resume()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    async def _news(self, until_s: float) -> None:
        """
        Wait until something has changed, or the time is up.

        One timer a stream, armed again only when it rings too early, not one a token.
        """
        if until_s < math.inf and (self._alarm is None or self._alarm_at_s > until_s):
            self._set_alarm(until_s)
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _set_alarm(self, at_s: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at_s = at_s
        self._alarm = self._loop.call_at(at_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None  # whoever waits sees whether it is early, and sets it anew
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
