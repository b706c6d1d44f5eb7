"""
How late the event loop is, who holds it up, and a sign of life that does not need it.

A loop that is blocked can tell nobody: the watchdog and the liveness door are threads.
"""

import asyncio
import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

logger = logging.getLogger(__name__)

DEAD_S = 30.0
"""A loop that has stood still for so long is taken for dead, in seconds."""

_CLIENT_TIMEOUT_S = 2.0


class LoopLag:
    """
    Measures how late the loop wakes a task that sleeps, and names what blocks it.

    Args:
        interval_s: How often it looks, in seconds.
        stall_s: Standstill after which the loop's stack is logged, once, in seconds.
        clock: Monotonic seconds; read from two threads.
        on_lag: Told each measurement, in seconds.
    """

    def __init__(
        self,
        *,
        interval_s: float = 0.1,
        stall_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        on_lag: Callable[[float], None] = lambda _lag_s: None,
    ) -> None:
        self._interval_s = interval_s
        self._stall_s = stall_s
        self._clock = clock
        self._on_lag = on_lag
        self._due_s: float | None = None
        self._max_s = 0.0
        self._told_s: float | None = None
        self._loop_thread = 0
        self._ticker: asyncio.Task[None] | None = None
        self._watchdog: threading.Thread | None = None
        self._closed = threading.Event()
        self.stalls = 0

    @property
    def lag_s(self) -> float:
        """How late the loop is at this moment, in seconds; 0 while it is not measured."""
        due_s = self._due_s
        return 0.0 if due_s is None else max(self._clock() - due_s, 0.0)

    def take_max_s(self) -> float:
        """The worst lag since this was last asked, in seconds."""
        worst_s, self._max_s = max(self._max_s, self.lag_s), 0.0
        return worst_s

    async def start(self) -> None:
        """Begin to measure the loop that runs this."""
        self._loop_thread = threading.get_ident()
        self.expect_tick()
        self._ticker = asyncio.create_task(self._tick(), name="loop lag")
        self._watchdog = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)
        self._watchdog.start()

    async def aclose(self) -> None:
        """Measure no more."""
        self._closed.set()
        if self._ticker is not None:
            self._ticker.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticker
        if self._watchdog is not None:
            self._watchdog.join()
        self._due_s = None

    def expect_tick(self) -> None:
        """Note when the loop should run next."""
        self._due_s = self._clock() + self._interval_s

    def ticked(self) -> None:
        """Note that the loop runs."""
        lag_s = self.lag_s
        self._max_s = max(self._max_s, lag_s)
        self._on_lag(lag_s)
        self.expect_tick()

    def look(self) -> None:
        """Log what the loop's thread does if the loop stands still; once for each standstill."""
        due_s = self._due_s
        if due_s is None or due_s == self._told_s or self.lag_s < self._stall_s:
            return
        self._told_s = due_s
        self.stalls += 1
        logger.warning(
            "the event loop has stood still for %.1f s in:\n%s",
            self.lag_s + self._interval_s,
            _stack_of(self._loop_thread),
        )

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self.ticked()

    def _watch(self) -> None:
        while not self._closed.wait(self._stall_s / 4):
            self.look()


class Liveness:
    """
    `GET /healthz` on a port and a thread of its own: 200, or 503 once the loop counts as dead.

    Args:
        port: TCP port; 0 picks a free one.
        lag: What is asked.
        host: Address to listen on.
    """

    def __init__(self, port: int, lag: LoopLag, *, host: str = "127.0.0.1") -> None:
        self._address = (host, port)
        self._lag = lag
        self._server: HTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on; 0 before the start."""
        return 0 if self._server is None else self._server.server_port

    def start(self) -> None:
        """
        Listen.

        Raises:
            OSError: If the port is taken.
        """
        self._server = HTTPServer(self._address, _handler(self._lag))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="liveness", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None


def _handler(lag: LoopLag) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One probe; whoever is slow about it is cut off, for they are served one by one."""

        timeout = _CLIENT_TIMEOUT_S
        server_version = sys_version = ""

        def do_GET(self) -> None:
            """Answer the probe."""
            if self.path != "/healthz":
                self.send_error(404)
                return
            lag_s = lag.lag_s
            body = json.dumps({"loop_lag_s": round(lag_s, 3)}).encode()
            self.send_response(200 if lag_s <= DEAD_S else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's
            """Probes are not worth a line."""

    return Handler


def _stack_of(thread: int) -> str:
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - Python has no public way
    return "".join(traceback.format_stack(frame)) if frame else "a thread that has ended"
