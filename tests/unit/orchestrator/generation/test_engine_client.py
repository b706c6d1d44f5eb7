"""The wire to the engine, over real sockets, against an engine that misbehaves on demand."""

import asyncio
from contextlib import aclosing

import pytest

from orchestrator.domain import Message
from orchestrator.errors import (
    DeadlineExceeded,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from orchestrator.generation.engine_client import EngineClient, EngineRequest, EngineTimeouts
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryPolicy
from tests.fake_engine import MODEL, WINDOW

REQUEST = EngineRequest(model=MODEL, messages=[Message("user", "hi")], max_tokens=7)


@pytest.fixture
async def client(fake_engine):
    made = EngineClient(
        base_url=f"{fake_engine.url}/v1",
        timeouts=EngineTimeouts(connect_s=0.5, first_token_s=0.4, stall_s=0.3),
        retry=RetryPolicy(attempts=3, wait_initial_s=0.01, wait_max_s=0.05),
        max_concurrent=2,
    )
    yield made
    await made.aclose()


async def answer(client, deadline_s: float = 5.0):
    chunks = [chunk async for chunk in client.stream(REQUEST, Deadline(deadline_s))]
    return "".join(c.text for c in chunks), chunks


async def test_streams_text_reason_and_usage(client, fake_engine):
    """An ordinary answer arrives whole, and what was asked for went out."""
    text, chunks = await answer(client)
    assert text == "The gate closes [1]."
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"]
    assert [c.usage.completion_tokens for c in chunks if c.usage] == [3]
    sent = fake_engine.requests[0]
    assert (sent["max_tokens"], sent["stream"], sent["temperature"]) == (7, True, 0.0)


async def test_lists_models_with_their_window(client):
    """The window comes from the engine."""
    (model,) = await client.models()
    assert (model.id, model.max_model_len) == (MODEL, WINDOW)


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
async def test_a_200_is_not_success(client, fake_engine, ending, error):
    """A stream that breaks off in any way is a failure, never a short answer."""
    fake_engine.play(ending=ending)
    with pytest.raises(EngineProtocolError, match=error):
        await answer(client)
    assert len(fake_engine.requests) == 1, "nothing is retried after the first byte"


async def test_a_passing_503_is_tried_again(client, fake_engine):
    """What failed before the first byte is tried again, within the attempts."""
    fake_engine.play(statuses=[(503, {"error": {"message": "loading"}}, {})] * 2)
    text, _ = await answer(client)
    assert text.startswith("The gate")
    assert len(fake_engine.requests) == 3


async def test_attempts_are_bounded(client, fake_engine):
    """An engine that stays down is given up after the attempts."""
    fake_engine.play(statuses=[(503, {"error": {"message": "loading"}}, {})] * 9)
    with pytest.raises(EngineUnavailable):
        await answer(client)
    assert len(fake_engine.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (429, {"error": "Model is overloaded"}, EngineOverloaded),
        (503, {"error": {"message": "The waiting queue is full"}}, EngineOverloaded),
        (400, {"error": {"message": "too long"}}, EngineRejected),
        (500, {"error": {"message": "boom"}}, EngineProtocolError),
    ],
)
async def test_a_refusal_is_not_repeated(client, fake_engine, status, body, error):
    """Overload, a wrong request and an internal error go straight to the caller."""
    fake_engine.play(statuses=[(status, body, {"Retry-After": "7"})])
    with pytest.raises(error) as raised:
        await answer(client)
    assert len(fake_engine.requests) == 1
    if error is EngineOverloaded:
        assert raised.value.retry_after_s == 7


async def test_a_silent_engine_is_given_up(client, fake_engine):
    """No first token within its timer ends the request and the engine's work."""
    fake_engine.play(first_token_s=5)
    with pytest.raises(EngineTimeout, match="first token"):
        await answer(client)
    await asyncio.sleep(0.2)
    assert fake_engine.running == 0


async def test_a_stalled_stream_is_given_up(client, fake_engine):
    """Silence between tokens has a timer of its own."""
    fake_engine.play(ending="hang")
    with pytest.raises(EngineTimeout, match="next token"):
        await answer(client)


async def test_the_deadline_ends_a_slow_drip(client, fake_engine):
    """Tokens that come just often enough do not outlive the deadline."""
    fake_engine.play(tokens=["a"] * 1000, token_s=0.05)
    with pytest.raises(DeadlineExceeded):
        await answer(client, deadline_s=0.4)


async def test_closing_the_stream_aborts_the_request(client, fake_engine):
    """The engine sees its client gone within a second."""
    fake_engine.play(tokens=["a"] * 1000, token_s=0.02)
    async with aclosing(client.stream(REQUEST, Deadline(30))) as chunks:
        async for _ in chunks:
            break
    async with asyncio.timeout(1):
        while fake_engine.running:
            await asyncio.sleep(0.01)


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


async def test_nobody_listening_is_told_in_words():
    """A refused connection names the address."""
    client = EngineClient(
        base_url="http://127.0.0.1:9",
        timeouts=EngineTimeouts(connect_s=0.5, first_token_s=0.5, stall_s=0.5),
        retry=RetryPolicy(attempts=2, wait_initial_s=0.01, wait_max_s=0.02),
        max_concurrent=1,
    )
    with pytest.raises(EngineUnavailable, match=r"127\.0\.0\.1:9"):
        await answer(client)
    await client.aclose()
