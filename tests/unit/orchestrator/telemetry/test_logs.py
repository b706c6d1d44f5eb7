"""Log lines: JSON, complete, and never waited for."""

import io
import json
import logging
import threading

from orchestrator.telemetry.logs import FIELDS, REQUEST_ID, json_logging

logger = logging.getLogger("tidegate.test")


class Stuck(io.StringIO):
    """A stream whose reader has stopped reading, until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, text: str) -> int:
        self.free.wait(10)
        return super().write(text)


def test_a_line_is_one_json_object_with_the_requests_id():
    """Fields, exception and the id of the request that logged are in it."""
    stream, token = io.StringIO(), REQUEST_ID.set("abc")
    try:
        with json_logging("INFO", stream=stream):
            logger.info("done", extra={FIELDS: {"status": 200}})
    finally:
        REQUEST_ID.reset(token)
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["message"], entry["request_id"], entry["status"]) == ("done", "abc", 200)


def test_a_stream_that_is_stuck_holds_nobody_up():
    """Lines are queued while the stream does not take them, and written when it does."""
    stream = Stuck()
    with json_logging("INFO", stream=stream):
        for n in range(100):
            logger.info("line %d", n)
        assert stream.getvalue() == ""
        stream.free.set()
    assert len(stream.getvalue().splitlines()) == 100


def test_lines_beyond_the_queue_are_dropped_and_counted():
    """Memory is bounded when nobody ever reads the log again."""
    stream = Stuck()
    with json_logging("INFO", stream=stream, max_lines=10) as handler:
        for n in range(100):
            logger.info("line %d", n)
        assert 85 <= handler.dropped <= 90
        stream.free.set()
