"""Streams to clients that hang up, fall silent or read nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.requests import Request

from orchestrator.api import sse
from orchestrator.api.sse import KEEP_ALIVE, MAX_HELD_CHARS, EventStream, StreamTimers, frame
from orchestrator.errors import ClientClosed, EngineTimeout, QueueTimeout


class Client:
    """Receives what is sent; reads only while it is told to, and hangs up when told to."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.headers: dict[str, str] = {}
        self.complete = False
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = asyncio.Event()

    async def send(self, message):
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        elif message["body"]:
            self.bodies.append(message["body"].decode())
        self.complete = not message.get("more_body", True)

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}


class Source:
    """Frames, as the test pushes them; knows whether it was closed, and how often."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.closed = 0
        self.running = False

    async def frames(self) -> AsyncIterator[str]:
        self.running = True
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.running = False

    async def close(self) -> None:
        self.closed += 1

    def push(self, *items):
        for item in items:
            self.queue.put_nowait(item)


async def settle():
    """Let everything run that can run without time passing."""
    for _ in range(500):
        await asyncio.sleep(0)


@pytest.fixture
async def passing(monkeypatch):
    """Makes time pass at once for the event loop, and lets its timers ring."""
    loop, offset_s, real_s = asyncio.get_running_loop(), [0.0], asyncio.get_running_loop().time

    async def passing(seconds: float) -> None:
        offset_s[0] += seconds
        await settle()

    monkeypatch.setattr(loop, "time", lambda: real_s() + offset_s[0])
    return passing


@pytest.fixture
async def client():
    return Client()


@pytest.fixture
async def source():
    return Source()


@pytest.fixture
async def streaming(client, source):
    """Starts the stream, with the timers given, in a task that the test may watch."""
    tasks = []

    def start(keep_alive_s: float = 60, write_timeout_s: float = 60, **options):
        request = Request({"type": "http", "state": {}, "headers": []})
        timers = StreamTimers(keep_alive_s, write_timeout_s)
        stream = EventStream(
            source.frames(), request=request, close=source.close, timers=timers, **options
        )
        task = asyncio.create_task(stream({"type": "http"}, client.receive, client.send))
        task.request = request  # type: ignore[attr-defined]
        tasks.append(task)
        return task

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await settle()
    left = [t for t in asyncio.all_tasks() if t.get_coro().cr_code.co_filename == sse.__file__]
    assert not left


async def test_sends_frames_and_closes_the_source(client, source, streaming):
    """An ordinary stream arrives, ends, and its source is closed once."""
    source.push("a", "b", None)
    await streaming(headers={"X-Tidegate-Degraded": "L1"})
    assert "".join(client.bodies) == "ab"
    assert client.complete
    assert source.closed == 1
    assert client.headers["x-tidegate-degraded"] == "L1"
    assert client.headers["content-type"].startswith("text/event-stream")


async def test_frames_that_are_ready_go_out_together(client, source, streaming):
    """What gathered while the client was written to is one send."""
    client.reads.clear()
    task = streaming()
    source.push("a", "b", "c")
    await settle()
    client.reads.set()
    await settle()
    source.push("d", None)
    await task
    assert client.bodies == ["abc", "d"]


async def test_silence_is_bridged_by_comments(client, source, streaming, passing):
    """A source that takes its time is not cancelled; comments go out until it speaks."""
    task = streaming(keep_alive_s=10)
    await passing(0)
    for _ in range(3):
        await passing(10.1)
    assert client.bodies == [KEEP_ALIVE] * 3
    assert source.running
    source.push("late", None)
    await task
    assert client.bodies[-1] == "late"


async def test_a_talkative_source_needs_no_comments(client, source, streaming, passing):
    """Frames that come often enough put the comment off."""
    streaming(keep_alive_s=10)
    await passing(0)
    for _ in range(8):
        source.push("a")
        await passing(0)
        await passing(6)
    assert client.bodies == ["a"] * 8
    await passing(6)
    assert client.bodies[8:] == [KEEP_ALIVE]


async def test_a_client_that_reads_nothing_is_given_up(client, source, streaming, passing):
    """A send that stays blocked ends the stream and frees its source."""
    client.reads.clear()
    task = streaming(write_timeout_s=30)
    source.push("a")
    await passing(0)
    await passing(29)
    assert not task.done()
    await passing(2)
    assert task.done()
    assert source.closed == 1
    assert not source.running
    assert task.request.state.outcome == ClientClosed.code
    assert not client.complete


async def test_a_client_that_reads_slowly_is_not_given_up(client, source, streaming, passing):
    """Each write has its own time, however long all of them take."""
    task = streaming(write_timeout_s=30)
    for n in range(6):
        client.reads.clear()
        source.push(str(n))
        await passing(20)
        client.reads.set()
        await passing(0)
    assert not task.done()
    source.push(None)
    await passing(0)
    assert client.bodies == list("012345")
    assert client.complete


async def test_a_write_that_begins_late_has_its_whole_time(client, source, streaming, passing):
    """Neither what came before it nor a silence of the source is taken from it."""
    task = streaming(write_timeout_s=30, keep_alive_s=1000)
    source.push("a")
    await passing(25)
    client.reads.clear()
    source.push("b")
    await passing(0)
    await passing(29)
    assert not task.done()
    await passing(2)
    assert task.done()
    assert task.request.state.outcome == ClientClosed.code


async def test_what_is_gathered_for_a_slow_client_is_bounded(client, source, streaming):
    """The source waits once enough is held."""
    client.reads.clear()
    streaming()
    piece = "x" * 1024
    source.push(*[piece] * 200)
    await settle()
    taken = (200 - source.queue.qsize()) * len(piece)
    assert MAX_HELD_CHARS < taken <= MAX_HELD_CHARS + 2 * len(piece)
    client.reads.set()
    source.push(None)
    while not client.complete:
        await asyncio.sleep(0)
    assert sum(map(len, client.bodies)) == 200 * len(piece), "nothing is lost"


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_client_that_hangs_up_ends_its_stream(client, source, streaming, deaf):
    """Whether it was being written to or waited for, its source is closed at once."""
    task = streaming()
    source.push("a")
    await settle()
    if deaf:
        client.reads.clear()
        source.push("b")
        await settle()
    client.gone.set()
    done, _ = await asyncio.wait({task}, timeout=1)
    assert done
    assert source.closed == 1
    assert not source.running


async def test_hanging_up_is_not_being_cancelled(client, source, streaming):
    """Whoever cancels the request itself is not kept waiting by the stream."""
    task = streaming()
    source.push("a")
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed == 1


async def test_the_end_of_an_answer_cancels_nobody(client, source, streaming):
    """Servers report the client gone once an answer is complete; that comes too late to matter."""
    send = client.send

    async def last(message):
        await send(message)
        if not message.get("more_body", True):
            client.gone.set()

    client.send = last
    source.push("a", None)
    task = streaming()
    await task
    await settle()
    assert not task.cancelled()


@pytest.mark.parametrize(
    ("error", "code", "retry_after_s"),
    [
        (QueueTimeout("too long", retry_after_s=7.25), "queue_timeout", "7.25"),
        (QueueTimeout("too long"), "queue_timeout", "5"),
        (EngineTimeout("silent"), "engine_timeout", "null"),
        (ValueError(), "internal_error", "null"),
    ],
)
async def test_errors_after_the_first_byte_are_frames(
    client, source, streaming, error, code, retry_after_s
):
    """What came before is kept; the error is the last event, says when to come back, is logged."""
    source.push(frame({"text": "a"}, "token"), error)
    task = streaming()
    await task
    text = "".join(client.bodies)
    assert text.startswith('event: token\ndata: {"text":"a"}\n\nevent: error\n')
    assert f'"code":"{code}"' in text
    assert text.endswith(f'"retry_after_s":{retry_after_s}}}}}\n\n')
    assert client.complete
    assert task.request.state.outcome == code
    assert source.closed == 1
