"""Connections to an engine, over real sockets: heads, bodies, what is kept and what is not."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from orchestrator.generation.engine_wire import MAX_HEAD_BYTES, EngineWire
from orchestrator.generation.response_body import MAX_HELD_BYTES, WireError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"


@asynccontextmanager
async def saying(*answers: bytes, close: bool = False):
    """A server that gives these answers, one a request; yields a wire to it, and the heads it read."""
    left, heads = list(answers), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while left:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readexactly(2)
                writer.write(left.pop(0))
                await writer.drain()
                if close:
                    break
            if not close:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        wire = EngineWire(
            base_url=f"http://127.0.0.1:{port}/prefix",
            headers={"Authorization": "Bearer key"},
            connect_s=1,
            keepalive_s=4,
            socket_options=[],
        )
        try:
            yield wire, heads
        finally:
            wire.close()


async def whole(response) -> bytes:
    body = b""
    async with asyncio.timeout(2):
        while part := await response.body.take():
            body += part
    return body


async def test_one_request_after_another_on_one_connection():
    """Path, host, key and length go out; a whole response leaves its connection to the next."""
    async with saying(OK, OK) as (wire, heads):
        for _ in range(2):
            response = await wire.post("/v1/x", b"{}")
            assert (response.status, await whole(response)) == (200, b"fine")
            response.close()
        assert wire.open_connections == 1
    lines = heads[0].decode().split("\r\n")
    assert lines[0] == "POST /prefix/v1/x HTTP/1.1"
    assert {"Authorization: Bearer key", "Content-Length: 2"} <= set(lines)
    assert any(line.startswith("Host: 127.0.0.1:") for line in lines)


async def test_a_response_that_is_not_read_to_its_end_costs_its_connection():
    """Closing it early is how a request is aborted."""
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfine") as (wire, _):
        response = await wire.post("/", b"{}")
        response.close()
        assert wire.open_connections == 0


async def test_an_engine_that_says_so_is_not_asked_again_on_that_connection():
    """`Connection: close` is obeyed."""
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nfine"
    async with saying(answer) as (wire, _):
        response = await wire.post("/", b"{}")
        assert await whole(response) == b"fine"
        response.close()
        assert wire.open_connections == 0


async def test_a_second_response_that_nobody_asked_for_costs_the_connection():
    """It must not be taken for the answer to the next request."""
    other = b"HTTP/1.1 500 Oh\r\nContent-Length: 3\r\n\r\nbad"
    async with saying(OK + other) as (wire, _):
        response = await wire.post("/", b"{}")
        assert (response.status, await whole(response)) == (200, b"fine")
        response.close()
        assert wire.open_connections == 0


async def test_an_idle_connection_that_the_engine_closes_is_not_used():
    """The next request opens one of its own instead of finding out."""
    async with saying(OK, OK, close=True) as (wire, _):
        for _ in range(2):
            response = await wire.post("/", b"{}")
            assert await whole(response) == b"fine"
            response.close()
            await asyncio.sleep(0.05)
        assert wire.open_connections == 0


async def test_an_old_connection_is_let_go():
    """Before the engine's own limit for idle ones closes it under a request."""
    now_s = [0.0]
    async with saying(OK, OK) as (wire, _):
        wire._clock = lambda: now_s[0]
        response = await wire.post("/", b"{}")
        assert await whole(response) == b"fine"
        response.close()
        now_s[0] = 4.0
        assert wire._kept() is None


async def test_a_head_that_only_announces_another_one_is_passed_over():
    """100 Continue and its like are no response."""
    async with saying(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK) as (wire, _):
        response = await wire.post("/", b"{}")
        assert (response.status, await whole(response)) == (200, b"fine")
        assert "link" not in response.headers


async def test_a_body_without_a_length_ends_with_its_connection():
    """HTTP/1.0 style: the end of the connection is the end of the body, and no fault."""
    async with saying(b"HTTP/1.1 200 OK\r\n\r\nfine", close=True) as (wire, _):
        response = await wire.post("/", b"{}")
        assert await whole(response) == b"fine"
        response.close()
        assert wire.open_connections == 0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "broke"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2 * MAX_HEAD_BYTES, "head"),
    ],
)
async def test_what_is_no_head_is_an_error(answer, why):
    """Silence, half a head, another protocol, a head without end; and no connection is left."""
    async with saying(answer, close=True) as (wire, _):
        with pytest.raises(WireError, match=why):
            await wire.post("/", b"{}")
        assert wire.open_connections == 0


async def test_half_a_body_is_an_error_after_what_came():
    """What came is given first."""
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfine", close=True) as (wire, _):
        response = await wire.post("/", b"{}")
        assert await response.body.take() == b"fine"
        with pytest.raises(WireError, match="broke"):
            await response.body.take()


async def test_nobody_there_is_an_error():
    """A port that nobody listens on is told with the system's words."""
    wire = EngineWire(
        base_url="http://127.0.0.1:9", headers={}, connect_s=1, keepalive_s=4, socket_options=[]
    )
    with pytest.raises(WireError, match="no connection"):
        await wire.post("/", b"{}")


async def test_a_slow_reader_holds_the_engine_up_and_loses_nothing():
    """More than the bound is not read ahead; taking it lets the rest in, and the connection is kept."""
    size = 40 * MAX_HELD_BYTES
    body = b"x" * size
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body) as (wire, _):
        response = await wire.post("/", b"{}")
        await asyncio.sleep(0.1)
        held = len(await response.body.take())
        assert held < size / 4
        assert held + len(await whole(response)) == size
        response.close()
        assert wire.open_connections == 1


async def test_a_reader_that_waits_is_told_when_its_time_is_up():
    """Nothing came until then."""
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n") as (wire, _):
        response = await wire.post("/", b"{}")
        with pytest.raises(TimeoutError):
            await response.body.take(asyncio.get_running_loop().time() + 0.02)
