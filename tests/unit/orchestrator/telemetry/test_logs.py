"""Log lines: JSON, complete, and never waited for."""

import io
import json
import logging
import threading
import time

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
        assert 80 <= handler.dropped <= 90, "ten wait, and ten at most are being written"
        stream.free.set()


def test_a_line_wakes_nobody_but_a_warning_is_written_at_once():
    """Lines are written some at a time, so that each does not cost the event loop its turn."""
    stream = io.StringIO()
    with json_logging("INFO", stream=stream) as handler:
        logger.info("one of many")
        assert not handler.urgent.is_set()
        logger.warning("look")
        assert handler.urgent.is_set() or "look" in stream.getvalue()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == [
        "one of many",
        "look",
    ]


def test_a_log_that_cannot_be_written_ends_nothing():
    """A full disk costs its lines, not the thread that writes the next ones."""

    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    with json_logging("INFO", stream=stream) as handler:
        logger.warning("lost")
        until_s = time.monotonic() + 5
        while handler.lines and time.monotonic() < until_s:
            time.sleep(0.01)
        stream.full = False
        logger.warning("written")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["written"]
