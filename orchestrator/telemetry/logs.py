"""One JSON object a line, with the request's id; never a document's text."""

import json
import logging
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the running task serves; "" outside of one."""

MAX_LINES = 10_000
FLUSH_S = 2.0
WRITE_EVERY_S = 0.1
BATCH_LINES = 1000
FIELDS = "fields"
"""Name of the `extra` that carries structured fields."""


class JsonFormatter(logging.Formatter):
    """Log records as JSON lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        entry: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            entry["request_id"] = request_id
        entry.update(getattr(record, FIELDS, {}))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class NeverWaits(logging.Handler):
    """
    Keeps lines for a thread that writes them: a full disk or pipe must not hold up the event loop.

    A line costs no lock and wakes nobody: a thread that wanted the interpreter for every line took
    it from the event loop, which on a busy machine waited milliseconds to get it back. What is a
    warning or worse is written at once.

    Attributes:
        dropped: Lines that found `max_lines` waiting.
    """

    def __init__(self, max_lines: int) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.dropped = 0
        self.lines: deque[str] = deque()
        self.urgent = threading.Event()
        self._max_lines = max_lines

    def emit(self, record: logging.LogRecord) -> None:
        """Put one finished line away, or count it as dropped."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a line that cannot be made must not end what it tells of
            self.handleError(record)
            return
        if len(self.lines) >= self._max_lines:
            self.dropped += 1
            return
        self.lines.append(line)
        if record.levelno >= logging.WARNING:
            self.urgent.set()


class _Writer(threading.Thread):
    """Writes the lines, many at a time; at the end it is waited for, but not for ever."""

    def __init__(self, handler: NeverWaits, stream: TextIO) -> None:
        super().__init__(name="log writer", daemon=True)
        self._handler = handler
        self._stream = stream
        self._stopping = False

    def run(self) -> None:
        """Write until told to stop."""
        while not self._stopping:
            self._handler.urgent.wait(WRITE_EVERY_S)
            self._handler.urgent.clear()
            self._write()
        self._write()

    def stop(self) -> None:
        """Write what is left, for `FLUSH_S` seconds at most."""
        self._stopping = True
        self._handler.urgent.set()
        self.join(FLUSH_S)

    def _write(self) -> None:
        lines = self._handler.lines
        while batch := [lines.popleft() for _ in range(min(len(lines), BATCH_LINES))]:
            with suppress(OSError, ValueError):  # a log that cannot be written ends nothing else
                self._stream.write("\n".join(batch) + "\n")
                self._stream.flush()


@contextmanager
def _lean_records() -> Iterator[None]:
    """
    Records without the place in the source, the thread and the process, which no line of ours has.

    Source:
        Python's Logging HOWTO, "Optimization".
    """
    names = ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks")
    before = {name: getattr(logging, name) for name in names if hasattr(logging, name)}
    for name in before:
        setattr(logging, name, None if name == "_srcfile" else False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(logging, name, value)


@contextmanager
def json_logging(
    level: str, *, stream: TextIO | None = None, max_lines: int = MAX_LINES
) -> Iterator[NeverWaits]:
    """
    Log JSON lines within the block; what is still queued is written at its end.

    Args:
        level: Least level that is logged.
        stream: Where to; standard error by default.
        max_lines: Lines that may wait to be written; more are dropped.
    """
    handler = NeverWaits(max_lines)
    writer = _Writer(handler, stream or sys.stderr)
    writer.start()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line for each look at the engine says nothing that /status does not.
    logging.getLogger("httpx2").setLevel(max(root.level, logging.WARNING))
    try:
        with _lean_records():
            yield handler
    finally:
        writer.stop()
        root.handlers[:], level_before = before
        root.setLevel(level_before)
