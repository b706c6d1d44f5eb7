"""The load test's own HTTP client understands an answer however the network cuts it."""

import asyncio
import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.http_client import ChunkedBody, Connection, post

BODY = (
    b'event: queued\ndata: {}\n\nevent: token\ndata: {"text": "The"}\n\n'
    b'event: token\ndata: {"text": " tide"}\n\nevent: done\ndata: {}\n\n'
)
MARK = re.compile(rb"event: token")


class FakeTransport(asyncio.Transport):
    """Remembers what was written, and whether it was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data):
        self.written += data

    def is_closing(self):
        return self.aborted

    def abort(self):
        self.aborted = True


def chunked(parts):
    sizes = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return sizes + b"0\r\n\r\n"


def split(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.integers(0, 500), max_size=12), st.lists(st.integers(0, 500), max_size=12))
def test_chunks_are_put_together_however_they_are_cut(chunk_cuts, read_cuts):
    """Any chunks in any reads give the same body, and its end is noticed exactly at the end."""
    wire = chunked(split(BODY, chunk_cuts))
    body = ChunkedBody()
    got = b""
    for part in split(wire, read_cuts):
        assert not body.done or part == b""
        got += body.feed(part)
    assert body.done
    assert got == BODY


def test_what_is_not_chunked_is_an_error():
    """A size that is no number is not guessed at."""
    with pytest.raises(ValueError, match="invalid literal"):
        ChunkedBody().feed(b"hello\r\n")


async def exchanged(*reads, mark=None, lose=False, give_up_s=5.0):
    connection, transport = Connection(), FakeTransport()
    connection.connection_made(transport)
    waiting = asyncio.create_task(
        connection.exchange(b"request", mark=mark, give_up_s=time.monotonic() + give_up_s)
    )
    await asyncio.sleep(0)
    for data in reads:
        connection.data_received(data)
    if lose:
        connection.connection_lost(None)
    return await waiting, connection, transport


@pytest.mark.parametrize("cut", [1, 5, 20, 60, 90, 120, 150])
async def test_a_stream_is_read_wherever_it_is_cut(cut):
    """Status, headers, body and each token's mark are found in any two reads, and once."""
    wire = b"HTTP/1.1 200 OK\r\nServer-Timing: total;dur=3.5\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire += chunked(split(BODY, [7, 30]))
    response, connection, transport = await exchanged(wire[:cut], wire[cut:], mark=MARK)
    assert (response.ending, response.status) == ("whole", 200)
    assert response.headers["server-timing"] == "total;dur=3.5"
    assert response.body == BODY
    assert len(response.marks_s) == len(MARK.findall(BODY)) > 1
    assert connection.usable
    assert transport.written == b"request"


async def test_a_body_of_known_length_ends_there():
    """No connection has to be closed to end a plain answer."""
    response, connection, _ = await exchanged(
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbu", b"sy"
    )
    assert (response.ending, response.status, response.body) == ("whole", 429, b"busy")
    assert connection.usable


async def test_an_empty_body_ends_at_once():
    """`Content-Length: 0` is a whole answer."""
    response, _, _ = await exchanged(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
    assert (response.ending, response.status) == ("whole", 503)


async def test_a_stream_that_is_cut_is_no_whole_answer():
    """The connection's end within a chunked body is a reset, not an end."""
    response, _, _ = await exchanged(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", lose=True
    )
    assert response.ending == "reset"


async def test_a_client_that_gives_up_hangs_up():
    """At the end of its patience the client drops the connection, so that the server sees it leave."""
    response, connection, transport = await exchanged(give_up_s=0.01)
    assert response.ending == "gave_up"
    assert transport.aborted
    assert not connection.usable


async def test_a_server_that_wants_to_close_is_not_asked_again():
    """`Connection: close` ends the connection's use."""
    response, connection, _ = await exchanged(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    )
    assert response.ending == "whole"
    assert not connection.usable


def test_a_post_says_how_long_it_is():
    """The body's length is its bytes."""
    sent = post("/ask", "é".encode(), host="h:1", headers={"Authorization": "Bearer k"})
    head, _, body = sent.partition(b"\r\n\r\n")
    assert b"Content-Length: 2" in head.split(b"\r\n")
    assert b"Authorization: Bearer k" in head
    assert body == "é".encode()
