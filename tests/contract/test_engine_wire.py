"""What the orchestrator relies on of an engine: the same cases for the fake and for real vLLM."""

import asyncio
import time

import httpx2
import pytest

from orchestrator.domain import Message
from orchestrator.errors import EngineRejected
from orchestrator.generation.engine_client import EngineClient, EngineRequest, EngineTimeouts
from orchestrator.generation.tokenizer import EngineTokenizer
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryPolicy

from .conftest import MODEL, MODEL_FOLDER

LONG = [Message("user", "Count from one to one thousand, in words, one number a line.")]


@pytest.fixture
async def connected(engine_url):
    url, model = engine_url
    client = EngineClient(
        base_url=url,
        timeouts=EngineTimeouts(connect_s=2, first_token_s=30, stall_s=20),
        retry=RetryPolicy(),
        max_concurrent=32,
    )
    yield client, model
    await client.aclose()


async def test_lists_its_model_with_a_window(connected):
    """The window is stated, so that prompts can be fitted to it."""
    client, model = connected
    (served,) = await client.models()
    assert served.id == model
    assert served.max_model_len >= 2048


async def test_a_stream_ends_with_reason_and_usage(connected):
    """Text, one finish_reason, one usage."""
    client, model = connected
    request = EngineRequest(model, [Message("user", "Say hello.")], max_tokens=8)
    chunks = [c async for c in client.stream(request, Deadline(60))]
    assert "".join(c.text for c in chunks)
    assert len([c for c in chunks if c.finish_reason]) == 1
    (usage,) = [c.usage for c in chunks if c.usage]
    assert 0 < usage.completion_tokens <= 8


def running(url: str) -> float:
    text = httpx2.get(f"{url}/metrics", trust_env=False).text
    lines = [ln for ln in text.splitlines() if ln.startswith("vllm:num_requests_running")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def test_vllm_aborts_what_nobody_reads(vllm_url):
    """Closing the stream frees the engine within a second."""
    client = EngineClient(
        base_url=vllm_url,
        timeouts=EngineTimeouts(connect_s=2, first_token_s=30, stall_s=20),
        retry=RetryPolicy(),
        max_concurrent=8,
    )
    request = EngineRequest(MODEL, LONG, max_tokens=1000)
    stream = client.stream(request, Deadline(60))
    await anext(stream)
    assert running(vllm_url) == 1
    await stream.aclose()
    began = time.monotonic()
    while running(vllm_url):
        assert time.monotonic() - began < 1
        await asyncio.sleep(0.02)
    await client.aclose()


async def test_vllm_counts_tokens_as_we_do(vllm_url):
    """Prompt lengths are exact: ours equals the engine's, turn by turn and script by script."""
    counter = EngineTokenizer.load(str(MODEL_FOLDER))
    conversations = [
        [Message("user", "hi")],
        [Message("system", "Be brief."), Message("user", "Größe, 大小, размер?  \n\n\t x")],
        [Message("user", "a"), Message("assistant", "b"), Message("user", "c " * 700)],
    ]
    async with httpx2.AsyncClient(base_url=vllm_url, trust_env=False, timeout=60) as http:
        for messages in conversations:
            body = EngineRequest(MODEL, messages, max_tokens=1).body() | {"stream": False}
            del body["stream_options"]
            answer = (await http.post("/v1/chat/completions", json=body)).json()
            assert counter.count_messages(messages) == answer["usage"]["prompt_tokens"]


async def test_vllm_rejects_what_does_not_fit(vllm_url):
    """An overlong request is an error of its own, and is not tried again."""
    client = EngineClient(
        base_url=vllm_url,
        timeouts=EngineTimeouts(connect_s=2, first_token_s=30, stall_s=20),
        retry=RetryPolicy(),
        max_concurrent=1,
    )
    with pytest.raises(EngineRejected, match="max_tokens"):
        async for _ in client.stream(EngineRequest(MODEL, LONG, 100_000), Deadline(30)):
            pass
    await client.aclose()
