"""One JSON object a line, with the request's id; never a document's text."""

import json
import logging
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the running task serves; "" outside of one."""

MAX_LINES = 10_000
FLUSH_S = 2.0
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


class NeverWaits(QueueHandler):
    """
    Hands lines to a thread that writes them: a full disk or pipe must not hold up the event loop.

    Attributes:
        dropped: Lines that found the queue full.
    """

    def __init__(self, lines: "queue.Queue[logging.LogRecord]") -> None:
        super().__init__(lines)
        self.setFormatter(JsonFormatter())
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put one finished line into the queue, or count it as dropped."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Writer(QueueListener):
    """Writes the lines; at the end it is waited for, but not for ever."""

    def __init__(self, lines: "queue.Queue[logging.LogRecord]", stream: TextIO) -> None:
        super().__init__(lines, logging.StreamHandler(stream))
        self._lines: queue.Queue[object] = lines  # type: ignore[assignment]  # and the end's mark

    def stop(self) -> None:
        """Write what is queued, for `FLUSH_S` seconds at most."""
        writer, self._thread = self._thread, None
        with suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH_S)  # None is what ends a QueueListener
        if writer is not None:
            writer.join(FLUSH_S)


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
    lines: queue.Queue[logging.LogRecord] = queue.Queue(max_lines)
    handler, writer = NeverWaits(lines), _Writer(lines, stream or sys.stderr)
    writer.start()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One line for each look at the engine says nothing that /status does not.
    logging.getLogger("httpx2").setLevel(max(root.level, logging.WARNING))
    try:
        yield handler
    finally:
        writer.stop()
        root.handlers[:], level_before = before
        root.setLevel(level_before)
