"""Engines, proxies and networks that break in ways no web framework can be told to."""

import asyncio
import json
import socket
import struct
import threading
from contextlib import asynccontextmanager, contextmanager

import pytest

from orchestrator.domain import Message
from orchestrator.errors import (
    DeadlineExceeded,
    EngineError,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from orchestrator.generation.engine_client import END_S, EngineClient, EngineRequest, EngineTimeouts
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryBudget, RetryPolicy

REQUEST = EngineRequest(model="m", messages=[Message("user", "hi")], max_tokens=7)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CONNECT_S, FIRST_TOKEN_S, STALL_S = 0.25, 0.5, 0.2
TOLERANCE_S = 0.2
"""What a machine whose cores are taken may add to a timer; the promise itself is 0.1 s."""


def event(payload) -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {text}\n\n".encode()


def delta(text: str | None = None, reason: str | None = None, **more) -> bytes:
    content = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": content | more, "finish_reason": reason}]})


def chunked(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


WHOLE = delta("fine") + delta(None, "stop") + event("[DONE]")
END = b"0\r\n\r\n"


@asynccontextmanager
async def speaking(talk):
    """A server that reads each request and then says what `talk` writes; yields its address."""
    visits = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(1)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await talk(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", visits


def reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST, as a process that is killed with data unread."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def connected(url: str):
    """A client that leaves nothing running."""
    client = EngineClient(
        base_url=url,
        timeouts=EngineTimeouts(connect_s=CONNECT_S, first_token_s=FIRST_TOKEN_S, stall_s=STALL_S),
        retry=RetryPolicy(attempts=2, wait_initial_s=0.01, wait_max_s=0.02),
        breaker=CircuitBreaker(name="engine", policy=BreakerPolicy()),
        budget=RetryBudget(),
        max_concurrent=1,
    )
    try:
        yield client
    finally:
        await client.aclose()
        assert not [t for t in asyncio.all_tasks() if "_pump" in repr(t)]


async def ask(talk):
    """What the client gives, how it failed, and how many connections it took."""
    text = ""
    async with speaking(talk) as (url, visits), connected(url) as client:
        try:
            async for chunk in client.stream(REQUEST, Deadline(5)):
                text += chunk.text
        except EngineError as exc:
            return text, exc, len(visits)
    return text, None, len(visits)


def says(*parts: bytes, pause_s: float = 0.0, end: bytes = END):
    """Writes the parts one after another, in chunks of HTTP, and ends the body."""

    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for part in parts:
            writer.write(chunked(part))
            await writer.drain()
            await asyncio.sleep(pause_s)
        writer.write(end)
        await writer.drain()

    return talk


async def test_a_reset_before_the_first_byte_is_tried_again():
    """Nothing came back, so nothing can come twice."""

    async def talk(writer):
        reset(writer)

    text, error, visits = await ask(talk)
    assert (text, visits) == ("", 2)
    assert isinstance(error, EngineUnavailable)


async def test_a_reset_mid_answer_is_the_answers_end():
    """What came is kept, the rest is an error, and nothing is tried again."""

    async def talk(writer):
        writer.write(HEAD + chunked(delta("half")))
        await writer.drain()
        await asyncio.sleep(0.05)
        reset(writer)

    text, error, visits = await ask(talk)
    assert (text, visits) == ("half", 1)
    assert isinstance(error, EngineProtocolError)
    assert "broke mid-answer" in str(error)


async def test_accepting_and_then_silence_ends_with_the_first_token_timer():
    """A half-open connection waits no longer than that."""

    async def talk(writer):
        await asyncio.sleep(3)

    began_s = asyncio.get_running_loop().time()
    _, error, visits = await ask(talk)
    took_s = asyncio.get_running_loop().time() - began_s
    assert isinstance(error, EngineTimeout)
    assert FIRST_TOKEN_S <= took_s < FIRST_TOKEN_S + TOLERANCE_S
    assert visits == 1, "it may be computing: a second request would double its work"


@contextmanager
def silent_resolver():
    """No name is resolved until the block ends; whoever asks sits in a thread."""
    over = threading.Event()

    def resolve(*_: object, **__: object) -> None:
        over.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        try:
            yield
        finally:
            over.set()


async def test_a_silent_resolver_is_waited_for_as_long_as_the_connect_timer_says():
    """Looking a name up is a part of connecting, although a thread does it."""
    now_s = asyncio.get_running_loop().time
    async with connected("http://engine.invalid:8000") as client:
        with silent_resolver():
            began_s = now_s()
            with pytest.raises(EngineTimeout):
                await client.pages.models()
            assert CONNECT_S <= now_s() - began_s < CONNECT_S + TOLERANCE_S
            began_s = now_s()
            with pytest.raises(EngineUnavailable, match="no connection within"):
                await anext(client.stream(REQUEST, Deadline(5)))
            # Tried twice, for nothing has reached an engine.
            assert 2 * CONNECT_S <= now_s() - began_s < 2 * (CONNECT_S + TOLERANCE_S)


async def test_the_first_token_timer_is_one_for_headers_and_token():
    """Headers, a role and comments are no token: they do not start the timer anew."""

    async def talk(writer):
        await asyncio.sleep(FIRST_TOKEN_S / 2)
        writer.write(HEAD + chunked(delta("", role="assistant")))
        for _ in range(20):
            writer.write(chunked(b": still here\n\n"))
            await asyncio.sleep(0.1)

    began_s = asyncio.get_running_loop().time()
    _, error, _ = await ask(talk)
    assert isinstance(error, EngineTimeout)
    assert "first token" in str(error)
    assert asyncio.get_running_loop().time() - began_s < FIRST_TOKEN_S + TOLERANCE_S


async def test_a_role_may_come_long_before_the_first_token():
    """An engine that greets at once and then reads a long prompt is not stalled."""

    async def talk(writer):
        writer.write(HEAD + chunked(delta("", role="assistant")))
        await asyncio.sleep(STALL_S * 1.5)
        writer.write(chunked(WHOLE) + END)

    assert (await ask(talk))[:2] == ("fine", None)


async def test_comments_do_not_hide_a_stall():
    """A proxy's keep-alive is not the engine's."""
    _, error, _ = await ask(says(delta("a"), *[b": ping\n\n"] * 40, pause_s=0.05))
    assert isinstance(error, EngineTimeout)
    assert "next token" in str(error)


async def test_an_event_that_drips_is_a_stall():
    """A byte now and then is no event."""
    drops = [bytes([byte]) for byte in delta("never")]
    _, error, _ = await ask(says(delta("a"), *drops, pause_s=0.05))
    assert isinstance(error, EngineTimeout)


async def test_thoughts_keep_a_stream_alive():
    """A model that thinks aloud works, though there is nothing to show yet."""
    thoughts = [delta(None, reasoning_content="hm")] * 4
    text, error, _ = await ask(says(*thoughts, WHOLE, pause_s=STALL_S / 2))
    assert (text, error) == ("fine", None)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([WHOLE.replace(b"\n", b"\r\n")], id="CRLF"),
        pytest.param([WHOLE.replace(b"\n", b"\r")], id="CR"),
        pytest.param([b"\xef\xbb\xbf" + WHOLE], id="byte order mark"),
        pytest.param([WHOLE[i : i + 1] for i in range(len(WHOLE))], id="bytes one by one"),
        pytest.param([b": hello\n\nevent: x\nid: 1\nretry: 5\n" + WHOLE], id="other fields"),
        pytest.param([WHOLE.replace(b", ", b",\ndata: ")], id="data over several lines"),
        pytest.param([WHOLE + delta("too late")], id="words after the end"),
    ],
)
async def test_every_spelling_of_a_stream_is_read(parts):
    """Whatever the standard allows."""
    assert (await ask(says(*parts)))[:2] == ("fine", None)


@pytest.mark.parametrize("cut", range(1, 5))
async def test_a_character_may_be_cut_anywhere(cut):
    """Four bytes of one character in two reads."""
    payload = json.dumps(
        {"choices": [{"delta": {"content": "🌊"}, "finish_reason": "stop"}]}, ensure_ascii=False
    )
    data = event(payload)
    at = data.index("🌊".encode()) + cut
    text, error, _ = await ask(says(data[:at], data[at:] + event("[DONE]"), pause_s=0.01))
    assert (text, error) == ("🌊", None)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(b"data: " + b"x" * 1_100_000, "1048576 bytes", id="a line of a megabyte"),
        pytest.param(event("[" * 100_000), "not the OpenAI wire", id="deep nesting"),
        pytest.param(event("null"), "not the OpenAI wire", id="null"),
        pytest.param(event({"choices": [{}]}), "not the OpenAI wire", id="no delta"),
        pytest.param(event({"choices": 5}), "not the OpenAI wire", id="a number of choices"),
        pytest.param(delta("", [1]), "not the OpenAI wire", id="a list as reason"),  # type: ignore[arg-type]
        pytest.param(delta(7), "not the OpenAI wire", id="a number as text"),  # type: ignore[arg-type]
        pytest.param(
            event({"choices": [], "usage": {"prompt_tokens": "many"}}),
            "not the OpenAI wire",
            id="usage in words",
        ),
        pytest.param(event({"error": {"message": "died", "code": 500}}), "died", id="error"),
        pytest.param(delta(None, "abort"), "abort", id="abort"),
        pytest.param(b"<html>hello</html>\n\n", r"without \[DONE\]", id="HTML"),
        pytest.param(bytes(range(256)) * 50, r"without \[DONE\]", id="noise"),
        pytest.param(b"", r"without \[DONE\]", id="nothing"),
    ],
)
async def test_garbage_is_told_as_such(data, told):
    """After good text, anything: the text is given, and the error is ours."""
    text, error, visits = await ask(says(delta("good"), data))
    assert (text, visits) == ("good", 1)
    with pytest.raises(EngineProtocolError, match=told):
        raise error


async def test_half_characters_are_not_passed_on():
    """JSON can spell what no UTF-8 can; a client's socket could not take it."""
    half = b'data: {"choices":[{"delta":{"content":"a\\ud83d"},"finish_reason":"stop"}]}\n\n'
    text, error, _ = await ask(says(half + event("[DONE]")))
    assert (text, error) == ("a\N{REPLACEMENT CHARACTER}", None)


async def test_a_page_in_place_of_a_stream_is_told_in_words():
    """A proxy's 200 with HTML names its type and its beginning."""

    async def talk(writer):
        page = b"<html>Sign in</html>"
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(page), page)
        )

    _, error, visits = await ask(talk)
    assert isinstance(error, EngineProtocolError)
    assert "text/html" in str(error)
    assert "Sign in" in str(error)
    assert visits == 1


async def test_what_is_no_http_is_no_engine():
    """Some other program at the address."""

    async def talk(writer):
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        writer.close()

    _, error, _ = await ask(talk)
    assert isinstance(error, EngineUnavailable)


async def test_a_broken_chunk_breaks_the_answer():
    """The encoding of the body itself can be wrong."""
    text, error, _ = await ask(says(delta("a"), end=b"zz\r\n"))
    assert text == "a"
    assert isinstance(error, EngineProtocolError)


async def test_an_error_page_without_end_is_read_to_a_limit():
    """A refusal is judged by its beginning."""

    async def talk(writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            writer.write(b"no " * 10_000)
            await writer.drain()

    _, error, _ = await ask(talk)
    assert isinstance(error, EngineRejected)
    assert len(str(error)) < 1000


async def test_a_fast_engine_waits_for_a_slow_reader():
    """What is read ahead is bounded; nothing is lost, and the pause is not held against it."""
    piece, count = "x" * 1000, 20_000
    written = 0

    async def talk(writer):
        nonlocal written
        writer.write(HEAD)
        for _ in range(count):
            writer.write(chunked(delta(piece)))
            await writer.drain()
            written += 1
        writer.write(chunked(WHOLE) + END)

    async with speaking(talk) as (url, _), connected(url) as client:
        stream = client.stream(REQUEST, Deadline(30))
        read = len((await anext(stream)).text)
        await asyncio.sleep(2 * STALL_S)
        assert written < count
        async for chunk in stream:
            read += len(chunk.text)
    assert read == count * len(piece) + len("fine")


async def test_the_deadline_ends_a_flood():
    """An engine that never lets anybody wait does not outlive the deadline either."""

    async def talk(writer):
        writer.write(HEAD)
        while True:
            writer.write(chunked(delta("x" * 1000)))
            await writer.drain()

    async with speaking(talk) as (url, _), connected(url) as client:
        now_s = [0.0]
        stream = client.stream(REQUEST, Deadline(30, clock=lambda: now_s[0]))
        await anext(stream)
        await asyncio.sleep(0.05)  # for more to be there, so that nobody has to wait
        now_s[0] = 31.0
        with pytest.raises(DeadlineExceeded):
            await anext(stream)


async def test_a_body_that_ends_late_leaves_its_connection():
    """The end of the body may come in a read of its own, after [DONE]: no answer waits for it."""

    async def talk(writer):
        writer.write(HEAD + chunked(WHOLE))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(END)

    async with speaking(talk) as (url, visits), connected(url) as client:
        for _ in range(3):
            assert [c.text async for c in client.stream(REQUEST, Deadline(5))] == ["fine"]
            await asyncio.sleep(0.05)
        assert client._wire.open_connections == 1
    assert len(visits) == 1


async def test_a_body_that_does_not_end_costs_its_connection():
    """An engine that keeps the body open after [DONE] holds up nobody, and nothing is left."""

    async def talk(writer):
        writer.write(HEAD + chunked(WHOLE))
        await writer.drain()
        await asyncio.sleep(30)

    async with speaking(talk) as (url, _), connected(url) as client:
        async with asyncio.timeout(END_S / 2):
            assert [c.text async for c in client.stream(REQUEST, Deadline(5))] == ["fine"]
        await asyncio.sleep(2 * END_S)
        assert client._wire.open_connections == 0
