"""The wire to the engine, over real sockets, against an engine that misbehaves on demand."""

import asyncio
import socket
from contextlib import aclosing

import pytest

from orchestrator.domain import Message
from orchestrator.errors import (
    CircuitOpen,
    DeadlineExceeded,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from orchestrator.generation.engine_client import EngineClient, EngineRequest, EngineTimeouts
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryBudget, RetryPolicy
from tests.fake_engine import MODEL, WINDOW

REQUEST = EngineRequest(model=MODEL, messages=[Message("user", "hi")], max_tokens=7)
PATIENT = EngineTimeouts(connect_s=30, first_token_s=30, stall_s=30)
"""Where no timer is what is tested, a busy machine must not set one off."""
HASTY = EngineTimeouts(connect_s=0.5, first_token_s=0.4, stall_s=0.3)
TOLERANCE_S = 0.2
"""What a machine whose cores are taken may add to a timer; the promise itself is 0.1 s."""
LOADING = (503, {"error": {"message": "loading"}}, {})


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class WatchedBreaker(CircuitBreaker):
    """The real breaker; remembers how each call ended."""

    def __init__(self, **options) -> None:
        super().__init__(name="engine", policy=BreakerPolicy(), **options)
        self.told: list[str] = []

    def settle(self, era, result, why=""):
        kind = "abandoned" if result is None else "failed" if result.failures else "succeeded"
        self.told.append("slow" if result is not None and result.slow else kind)
        super().settle(era, result, why)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return WatchedBreaker(clock=clock)


@pytest.fixture
async def connect(breaker):
    """Makes clients that are closed in the end."""
    made: list[EngineClient] = []

    def connect(base_url: str, **options) -> EngineClient:
        defaults = {
            "timeouts": PATIENT,
            "retry": RetryPolicy(attempts=3, wait_initial_s=0.01, wait_max_s=0.05),
            "breaker": breaker,
            "budget": RetryBudget(),
            "max_concurrent": 2,
        }
        made.append(EngineClient(base_url=base_url, **{**defaults, **options}))
        return made[-1]

    yield connect
    for client in made:
        await client.aclose()


@pytest.fixture
async def client(fake_engine, connect):
    return connect(f"{fake_engine.url}/v1")


@pytest.fixture
async def hasty(fake_engine, connect):
    return connect(f"{fake_engine.url}/v1", timeouts=HASTY)


async def answer(client, deadline_s: float = 30.0):
    chunks = [chunk async for chunk in client.stream(REQUEST, Deadline(deadline_s))]
    return "".join(c.text for c in chunks), chunks


async def test_streams_text_reason_and_usage(client, fake_engine, breaker):
    """An ordinary answer arrives whole, and what was asked for went out."""
    text, chunks = await answer(client)
    assert text == "The gate closes [1]."
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"]
    assert [c.usage.completion_tokens for c in chunks if c.usage] == [3]
    assert sum(c.tokens for c in chunks) == 3
    sent = fake_engine.requests[0]
    assert (sent["max_tokens"], sent["stream"], sent["temperature"]) == (7, True, 0.0)
    assert breaker.told == ["succeeded"]


async def test_lists_models_with_their_window(client):
    """The window comes from the engine."""
    (model,) = await client.pages.models()
    assert (model.id, model.max_model_len) == (MODEL, WINDOW)


async def test_reads_metrics_as_they_are(client, fake_engine):
    """The text goes to whoever knows its names."""
    fake_engine.metrics_text = "vllm:num_requests_running 3.0\n"
    assert await client.pages.metrics_text() == "vllm:num_requests_running 3.0\n"


async def test_a_page_without_end_is_refused(client, fake_engine):
    """More than 4 MiB of metrics is nobody's."""
    fake_engine.metrics_text = "# x\n" * (1024 * 1024 + 1)
    with pytest.raises(EngineProtocolError, match="4194304 bytes"):
        await client.pages.metrics_text()


@pytest.mark.parametrize(
    ("ending", "error"),
    [
        ("cut", "without \\[DONE\\]"),
        ("error", "EngineCore died"),
        ("abort", "abort"),
        ("garbage", "not the OpenAI wire"),
        ("no_reason", "without a finish_reason"),
    ],
)
async def test_a_200_is_not_success(client, fake_engine, breaker, ending, error):
    """A stream that breaks off in any way is a failure, never a short answer."""
    fake_engine.play(ending=ending)
    with pytest.raises(EngineProtocolError, match=error):
        await answer(client)
    assert len(fake_engine.requests) == 1, "nothing is retried after the first byte"
    assert breaker.told == ["failed"]


async def test_what_came_before_a_failure_is_given(client, fake_engine):
    """Text and error in one read: the text first."""
    fake_engine.play(ending="error")
    stream = client.stream(REQUEST, Deadline(30))
    text = ""

    async def read() -> None:
        nonlocal text
        async for chunk in stream:
            text += chunk.text

    with pytest.raises(EngineProtocolError):
        await read()
    assert text == "The gate closes [1]."


async def test_a_passing_503_is_tried_again(client, fake_engine, breaker):
    """What failed before the first byte is tried again, within the attempts."""
    fake_engine.play(statuses=[LOADING] * 2)
    text, _ = await answer(client)
    assert text.startswith("The gate")
    assert len(fake_engine.requests) == 3
    assert breaker.told == ["failed", "failed", "succeeded"]


async def test_attempts_are_bounded(client, fake_engine):
    """An engine that stays down is given up after the attempts."""
    fake_engine.play(statuses=[LOADING] * 9)
    with pytest.raises(EngineUnavailable):
        await answer(client)
    assert len(fake_engine.requests) == 3


async def test_retries_of_all_requests_share_a_budget(fake_engine, connect):
    """Ten requests that fail earn one retry together, besides what was saved."""
    budget = RetryBudget(ratio=0.1, per_s=0, burst=1)
    client = connect(fake_engine.url, budget=budget)
    fake_engine.play(statuses=[LOADING, *[(429, {"error": "overloaded"}, {})] * 98])
    for _ in range(21):
        with pytest.raises((EngineUnavailable, EngineOverloaded)):
            await answer(client)
    assert 21 + 1 + 1 <= len(fake_engine.requests) <= 21 + 1 + 2


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"error": {"message": "too long"}}, EngineRejected),
        (500, {"error": {"message": "boom"}}, EngineProtocolError),
        (504, {"error": {"message": "upstream"}}, EngineTimeout),
    ],
)
async def test_a_refusal_is_not_repeated(client, fake_engine, status, body, error):
    """A wrong request and what may have reached the model go straight to the caller."""
    fake_engine.play(statuses=[(status, body, {})])
    with pytest.raises(error):
        await answer(client)
    assert len(fake_engine.requests) == 1


async def test_a_full_engine_is_no_failing_one(client, fake_engine, breaker):
    """Overload is told to whoever sets the limits, tried again, and not held against the engine."""
    heard = []
    client.on_overload = heard.append
    fake_engine.play(statuses=[(429, {"error": "overloaded"}, {"Retry-After": "0.02"})])
    text, _ = await answer(client)
    assert text.startswith("The gate")
    assert heard == [0.02]
    assert breaker.told == ["abandoned", "succeeded"]


async def test_a_full_engine_that_wants_a_long_pause_gets_it(client, fake_engine):
    """It is not asked again before; the caller hears how long."""
    fake_engine.play(statuses=[(429, {"error": "overloaded"}, {"Retry-After": "7"})])
    with pytest.raises(EngineOverloaded) as raised:
        await answer(client)
    assert raised.value.retry_after_s == 7
    assert len(fake_engine.requests) == 1


async def test_a_silent_engine_is_given_up(hasty, fake_engine, breaker):
    """No first token within its timer ends the request and the engine's work."""
    fake_engine.play(first_token_s=20)
    with pytest.raises(EngineTimeout, match=r"first token within 0\.4 s"):
        await answer(hasty)
    async with asyncio.timeout(1):
        while fake_engine.running:
            await asyncio.sleep(0.01)
    assert breaker.told == ["failed"]


async def test_a_stalled_stream_is_given_up(hasty, fake_engine):
    """Silence between tokens has a timer of its own."""
    fake_engine.play(ending="hang")
    with pytest.raises(EngineTimeout, match=r"next token within 0\.3 s"):
        await answer(hasty)


async def test_the_deadline_ends_a_slow_drip(client, fake_engine, breaker):
    """Tokens that come just often enough do not outlive the deadline; no fault of the engine's."""
    fake_engine.play(tokens=["a"] * 1000, token_s=0.05)
    with pytest.raises(DeadlineExceeded):
        await answer(client, deadline_s=0.4)
    assert breaker.told == ["abandoned"]


async def test_the_deadline_ends_the_wait_for_the_first_token(client, fake_engine):
    """Whichever of the two timers is shorter."""
    fake_engine.play(first_token_s=20)
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(DeadlineExceeded):
        await answer(client, deadline_s=0.1)
    assert 0.1 <= asyncio.get_running_loop().time() - began_s < 0.1 + TOLERANCE_S


async def test_closing_the_stream_aborts_the_request(client, fake_engine, breaker):
    """The engine sees its client gone within a second; nobody is blamed."""
    fake_engine.play(tokens=["a"] * 1000, token_s=0.02)
    async with aclosing(client.stream(REQUEST, Deadline(30))) as chunks:
        async for _ in chunks:
            break
    async with asyncio.timeout(1):
        while fake_engine.running:
            await asyncio.sleep(0.01)
    assert breaker.told == ["abandoned"]


async def test_being_cancelled_aborts_the_request(client, fake_engine, breaker):
    """A caller that goes away while it waits leaves nothing behind."""
    fake_engine.play(first_token_s=20)
    task = asyncio.create_task(answer(client))
    async with asyncio.timeout(1):
        while not fake_engine.running:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(1):
        while fake_engine.running:
            await asyncio.sleep(0.01)
    assert breaker.told == ["abandoned"]
    assert not [t for t in asyncio.all_tasks() if "_pump" in repr(t)]


async def test_requests_out_are_bounded(client, fake_engine):
    """The semaphore holds the rest back."""
    fake_engine.play(token_s=0.03)
    await asyncio.gather(*(answer(client) for _ in range(6)))
    assert fake_engine.peak == 2


async def test_a_connection_serves_one_answer_after_another(client, fake_engine):
    """An answer that ended well leaves its connection to the next one."""
    for _ in range(3):
        await answer(client)
    assert len(set(fake_engine.client_ports)) == 1


async def test_the_kernel_watches_the_connection(client, fake_engine):
    """A machine that vanished is noticed by TCP itself."""
    await answer(client)
    ((connection, _),) = client._wire._idle
    raw = connection._transport.get_extra_info("socket")
    assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


async def test_many_tokens_in_one_read_are_one_chunk(client, fake_engine):
    """A busy engine costs one wake-up a read, not one a token."""
    fake_engine.play(tokens=["ab"] * 500)
    text, chunks = await answer(client)
    assert text == "ab" * 500
    assert sum(c.tokens for c in chunks) == 500
    assert len(chunks) < 400


async def test_a_late_first_token_is_slow(fake_engine, connect, breaker):
    """Late but whole: a success that counts as slow."""
    fake_engine.play(first_token_s=0.1)
    await answer(connect(fake_engine.url, slow_first_token_s=0.05))
    fake_engine.play()
    await answer(connect(fake_engine.url, slow_first_token_s=0.3))
    assert breaker.told == ["slow", "succeeded"]


async def test_an_engine_that_always_fails_is_left_alone(client, fake_engine, breaker):
    """The breaker opens; requests are then refused without asking the engine."""
    fake_engine.play(statuses=[LOADING] * 99)
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            await answer(client)
    asked = len(fake_engine.requests)
    assert asked == 5, "the sixth attempt, a retry, met an open breaker"
    with pytest.raises(CircuitOpen):
        await answer(client)
    assert len(fake_engine.requests) == asked


async def test_the_probe_is_never_a_retry(client, fake_engine, breaker, clock):
    """A half-open breaker lets one request ask once; its failure is told as it is."""
    for _ in range(5):
        breaker.enter().failed("why")
    clock.now_s += 6
    fake_engine.play(statuses=[LOADING])
    with pytest.raises(EngineUnavailable, match="loading"):
        await answer(client)
    assert len(fake_engine.requests) == 1
    assert breaker.state == "open"


async def test_a_retry_does_not_become_the_probe(fake_engine, connect, breaker, clock):
    """An attempt that comes back to a half-open breaker gives way to a fresh request."""

    def opened(_error):
        for _ in range(4):
            breaker.enter().failed("why")
        clock.now_s += 6

    client = connect(fake_engine.url, on_retry=opened)
    fake_engine.play(statuses=[LOADING])
    with pytest.raises(EngineUnavailable, match="loading"):
        await answer(client)
    assert breaker.state == "half_open"
    assert len(fake_engine.requests) == 1


async def test_a_long_probe_closes_the_breaker_early(client, fake_engine, breaker, clock):
    """Some tokens prove enough: nobody waits for the end of a long answer."""
    for _ in range(5):
        breaker.enter().failed("why")
    clock.now_s += 6
    fake_engine.play(tokens=["a"] * 20, token_s=0.01)
    states = [breaker.state async for _ in client.stream(REQUEST, Deadline(30))]
    assert (states[0], states[-2]) == ("half_open", "closed")


async def test_nobody_listening_is_told_in_words(connect, breaker):
    """A refused connection names the address and is tried again."""
    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:9"):
        await answer(connect("http://127.0.0.1:9"))
    assert breaker.told == ["failed"] * 3


async def test_an_unknown_host_is_an_unavailable_engine(connect):
    """A name that nobody knows is told like an address where nobody listens."""
    with pytest.raises(EngineUnavailable, match=r"nowhere\.invalid"):
        await answer(connect("http://nowhere.invalid:8000", retry=RetryPolicy(attempts=1)))
    with pytest.raises(EngineUnavailable):
        await connect("http://nowhere.invalid:8000").pages.models()
