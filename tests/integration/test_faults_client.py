"""Rows 20 and 21 of the fault table: clients that leave, in every phase, and clients that do not read."""

import json
import os
import signal
import time

import pytest

from tests import pdfs
from tests.faults import QUESTION, bench, connected, raw_request, wait_until
from tests.running import receive_until

SEATS = 2


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One orchestrator for the file, with two seats at the engine."""
    with bench(
        tmp_path_factory.mktemp("client"),
        own_embedder=True,
        max_concurrent_requests=str(SEATS),
        first_token_timeout_s="30",
        stall_timeout_s="30",
        embed_wait_s="30",
    ) as made:
        yield made


@pytest.fixture
def busy(running):
    """The orchestrator, healed; after the test nothing may be left."""
    running.heal()
    yield running
    running.engine.play()
    running.nothing_left()


def question(http, *, stream: bool) -> bytes:
    body = {"question": QUESTION, "stream": stream, "degrade": False}
    return raw_request(http, "POST", "/ask", json.dumps(body).encode())


@pytest.mark.parametrize("stream", [True, False], ids=["sse", "json"])
class TestRow20Disconnect:
    """Within a second of its leaving nothing of a client is left, wherever it was."""

    def test_while_it_waits_in_the_queue(self, busy, stream):
        """A place in the queue is given back, and those with the engine go on."""
        busy.engine.play(tokens=["a"] * 1000, token_s=0.05)
        asked = question(busy.http, stream=stream)
        with connected(busy.http) as first, connected(busy.http) as second:
            first.sendall(asked)
            second.sendall(asked)
            assert wait_until(lambda: busy.engine.running == SEATS)
            with connected(busy.http) as waiting:
                waiting.sendall(asked)
                assert wait_until(lambda: busy.status()["gate"]["queued"] == 1)
            assert wait_until(lambda: busy.status()["gate"]["queued"] == 0, 1)
            assert busy.engine.running == SEATS

    def test_during_retrieval(self, busy, stream):
        """A question whose embedding hangs is given up; the embedder's lane is free again."""
        embedder = busy.embedder()
        os.kill(embedder.pid, signal.SIGSTOP)
        try:
            with connected(busy.http) as raw:
                raw.sendall(question(busy.http, stream=stream))
                assert wait_until(lambda: busy.status()["gate"]["running"] == 1)
            busy.nothing_left()
            assert busy.engine.requests == []
        finally:
            os.kill(embedder.pid, signal.SIGCONT)
        assert busy.ask().json()["degraded"] is None

    def test_before_the_first_token(self, busy, stream):
        """A prompt that is still being read is aborted at the engine."""
        busy.engine.play(first_token_s=30)
        with connected(busy.http) as raw:
            raw.sendall(question(busy.http, stream=stream))
            assert wait_until(lambda: busy.engine.running == 1)
        busy.nothing_left()

    def test_in_the_middle_of_the_answer(self, busy, stream):
        """An answer that nobody reads any more is aborted at the engine."""
        busy.engine.play(tokens=["a"] * 1000, token_s=0.02)
        with connected(busy.http) as raw:
            raw.sendall(question(busy.http, stream=stream))
            if stream:
                receive_until(raw, b"event: token")
            assert wait_until(lambda: busy.engine.running == 1)
        busy.nothing_left()


def files(busy) -> set[str]:
    folder = busy.program.log.parent
    return {
        str(p) for p in folder.rglob("*") if p.is_file() and not p.name.endswith(("-wal", "-shm"))
    }


def test_row_20_during_an_upload(busy):
    """Half a PDF leaves no file, no document and no task."""
    before, documents = files(busy), busy.status()["documents"]["total"]
    whole = pdfs.text_pdf(["half of this never comes " * 200] * 40)
    boundary = "Content-Type: multipart/form-data; boundary=b"
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="half.pdf"\r\n\r\n'
    request = raw_request(busy.http, "POST", "/upload", part + whole, boundary)
    with connected(busy.http) as raw:
        raw.sendall(request[: len(request) // 2])
        time.sleep(0.2)
    busy.nothing_left()
    assert wait_until(lambda: files(busy) == before, 1), files(busy) ^ before
    assert busy.status()["documents"]["total"] == documents


def test_row_20_many_times_leaves_no_socket(busy):
    """Twenty clients that leave cost no descriptor."""
    busy.engine.play(tokens=["a"] * 1000, token_s=0.02)
    process = busy.program.descendants()[0]
    asked = question(busy.http, stream=True)
    before = process.num_fds()
    for _ in range(20):
        with connected(busy.http) as raw:
            raw.sendall(asked)
            raw.recv(1)
    busy.nothing_left()
    assert wait_until(lambda: process.num_fds() <= before + 5, 6), (process.num_fds(), before)


class TestRow21SlowReader:
    """A client that asks for a stream and does not read it."""

    def test_is_given_up(self, busy):
        """After the write timeout its request is aborted at the engine, and memory stays flat."""
        busy.engine.play(tokens=["x" * 20_000] * 5000, token_s=0.001)
        rss_bytes = busy.program.descendants()[0].memory_info().rss
        with connected(busy.http, receive_bytes=2048) as raw:
            raw.sendall(question(busy.http, stream=True))
            assert wait_until(lambda: busy.engine.running == 1)
            grown = []

            def given_up() -> bool:
                grown.append(busy.program.descendants()[0].memory_info().rss - rss_bytes)
                return busy.engine.running == 0

            assert wait_until(given_up, 5)
        assert max(grown) < 32 * 1024 * 1024

    def test_does_not_hold_up_others(self, busy):
        """Meanwhile somebody else is answered."""
        busy.engine.play(tokens=["x" * 20_000] * 5000, token_s=0.001)
        with connected(busy.http, receive_bytes=2048) as raw:
            raw.sendall(question(busy.http, stream=True))
            assert wait_until(lambda: busy.engine.running == 1)
            busy.engine.play()
            assert busy.ask(degrade=False).status_code == 200
