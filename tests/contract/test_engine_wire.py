"""What the orchestrator relies on of an engine: the same cases for the fakes and for real vLLM."""

import asyncio
import json
import re
import time
from contextlib import asynccontextmanager
from dataclasses import fields

import httpx2
import pytest

from orchestrator.domain import Message
from orchestrator.errors import EngineRejected
from orchestrator.generation import engine_metrics
from orchestrator.generation.engine_client import EngineClient, EngineRequest, EngineTimeouts
from orchestrator.generation.tokenizer import EngineTokenizer
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryBudget, RetryPolicy

from .conftest import MODEL, MODEL_FOLDER

CHAT = "/v1/chat/completions"
LONG = [Message("user", "Count from one to one thousand, in words, one number a line.")]
MAX_QUEUED = 48
"""vLLM's --max-num-queued-reqs as model_server sets it for 32 sequences, and the simulator's here."""
BUSY = "The engine is currently busy"


@asynccontextmanager
async def client_of(url, *, max_concurrent=32):
    """The orchestrator's client of one engine."""
    client = EngineClient(
        base_url=url,
        timeouts=EngineTimeouts(connect_s=2, first_token_s=30, stall_s=20),
        retry=RetryPolicy(),
        breaker=CircuitBreaker(name="engine", policy=BreakerPolicy()),
        budget=RetryBudget(),
        max_concurrent=max_concurrent,
    )
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def connected(engine_url):
    url, model = engine_url
    async with client_of(url) as client:
        yield client, model


@pytest.fixture
async def http(batching_url):
    """A plain client of an engine that batches."""
    limits = httpx2.Limits(max_connections=100)
    async with httpx2.AsyncClient(
        base_url=batching_url, timeout=60, trust_env=False, limits=limits
    ) as client:
        yield client


def body(content="hi", **options):
    """A chat request in one piece."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]} | options


def streamed(content="hi", **options):
    """A chat request with a stream and its usage."""
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    return body(content, **(streaming | options))


def events(text):
    """The payloads of a stream; [DONE] as it is."""
    frames = [frame.removeprefix("data: ") for frame in text.split("\n\n") if frame]
    return [frame if frame == "[DONE]" else json.loads(frame) for frame in frames]


def requests_of(page: str, state: str) -> float:
    """How many requests are in a state ("running", "waiting"), by the engine's `/metrics`."""
    lines = [ln for ln in page.splitlines() if ln.startswith(f"vllm:num_requests_{state}{{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def running(url: str) -> float:
    return requests_of(httpx2.get(f"{url}/metrics", trust_env=False).text, "running")


async def becomes(url, wanted, *, state="running", within_s=1):
    """Wait until the engine says that so many requests run, or wait."""
    began = time.monotonic()
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        while requests_of((await client.get("/metrics")).text, state) != wanted:
            assert time.monotonic() - began < within_s
            await asyncio.sleep(0.02)


async def test_lists_its_model_with_a_window(connected):
    """The window is stated, so that prompts can be fitted to it."""
    client, model = connected
    (served,) = await client.pages.models()
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


async def test_a_stream_chunk_by_chunk(http):
    """The role without text, then text, the reason with the last of it, usage, [DONE]."""
    answer = await http.post(CHAT, json=streamed(max_tokens=5, ignore_eos=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(answer.text)
    choices = [c["choices"][0] for c in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
    assert all("content" in c["delta"] for c in choices)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert done == "[DONE]"
    for field in ("id", "object", "created", "model"):
        assert len({c[field] for c in [*chunks, usage]}) == 1


async def test_a_whole_answer(http):
    """Without a stream the text, the reason and the usage stand in one body."""
    answer = (await http.post(CHAT, json=body(max_tokens=5, ignore_eos=True))).json()
    (choice,) = answer["choices"]
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0


async def test_without_include_usage_no_chunk_has_it(http):
    """Usage is streamed only to those who ask."""
    answer = await http.post(CHAT, json=body(max_tokens=2, stream=True))
    assert all("usage" not in event for event in events(answer.text))


async def test_aborts_what_nobody_reads(batching_url):
    """Closing the stream frees the engine within a second."""
    async with client_of(batching_url) as client:
        request = EngineRequest(MODEL, LONG, max_tokens=1000)
        stream = client.stream(request, Deadline(60))
        await anext(stream)
        # The gauge is set a moment after the token has gone out; how soon is nobody's promise, and a
        # machine that others share can stand still for a second.
        await becomes(batching_url, 1, within_s=10)
        await stream.aclose()
        await becomes(batching_url, 0)


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"max_tokens": 100_000}, "max_tokens", "cannot be greater than max_model_len=4096"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"stream": False}, "stream_options", "only be defined when `stream=True`"),
        (
            {"max_tokens": 5, "content": "c " * 9000},
            "input_tokens",
            "maximum context length is 4096",
        ),
    ],
)
async def test_what_does_not_fit_is_a_400(http, options, param, words):
    """In one shape, before a stream begins, with the limit in words."""
    answer = await http.post(CHAT, json=streamed(**options))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, 400)
    assert (error["type"], error["param"]) == ("BadRequestError", param)
    assert words in error["message"]


async def test_another_model_is_a_404(http):
    """It says which one there is."""
    answer = await http.post(CHAT, json=body() | {"model": "gpt"})
    assert answer.status_code == 404
    assert MODEL in answer.json()["error"]["message"]


async def test_tokens_can_be_counted(http):
    """/tokenize agrees with the usage of the same prompt."""
    counted = (
        await http.post("/tokenize", json={"model": MODEL, "messages": body()["messages"]})
    ).json()
    answer = (await http.post(CHAT, json=body(max_tokens=1))).json()
    assert counted["count"] == len(counted["tokens"]) == answer["usage"]["prompt_tokens"]
    assert counted["max_model_len"] == 4096


async def test_a_prefix_seen_before_is_cached(http):
    """The second time, whole blocks of the prompt are not computed again, and usage says so."""
    content = f"{time.time_ns()} " + "The gate closes at nine. " * 120
    usages = [
        (await http.post(CHAT, json=body(content, max_tokens=1))).json()["usage"] for _ in range(2)
    ]
    first, second = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert second > first
    assert second >= 384
    assert second % 128 == 0


async def stream_to_the_end(http, number, *, tokens=40):
    """(status, body) of one long answer."""
    answer = await http.post(
        CHAT, json=streamed(f"{number}: count", max_tokens=tokens, ignore_eos=True)
    )
    return answer.status_code, answer.text


async def test_a_burst_beyond_the_queue_is_refused(http, batching_url):
    """As many as the limit are answered; the rest are told 503, by status or within a 200's stream."""
    answers = await asyncio.gather(*(stream_to_the_end(http, n) for n in range(MAX_QUEUED + 8)))
    refused = [(status, text) for status, text in answers if BUSY in text]
    assert len(refused) == 8
    for status, text in refused:
        told = json.loads(text) if status == 503 else events(text)[0]
        assert (told["error"]["type"], told["error"]["code"]) == ("Service Unavailable", 503)
        assert status == 503 or events(text)[1:] == ["[DONE]"]
    await becomes(batching_url, 0)


async def test_who_comes_when_it_is_full_gets_a_503(http, batching_url):
    """Before any stream: a status, no Retry-After, and its own counter."""
    before = rejections((await http.get("/metrics")).text)
    # So long that none ends before the last is there, however slow the machine: all are cancelled.
    streams = (stream_to_the_end(http, n, tokens=1000) for n in range(MAX_QUEUED))
    waiting = [asyncio.create_task(stream) for stream in streams]
    await becomes(batching_url, MAX_QUEUED - 32, state="waiting", within_s=60)
    answer = await http.post(CHAT, json=streamed(max_tokens=1))
    assert answer.status_code == 503
    assert answer.json()["error"]["message"].startswith(BUSY)
    assert "retry-after" not in answer.headers
    assert rejections((await http.get("/metrics")).text) == before + 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await becomes(batching_url, 0, within_s=10)


def rejections(page):
    """How often the limit of requests was hit."""
    (line,) = re.findall(
        r'^vllm:admission_rejections_total\{.*reason="max_num_queued_reqs"\} (\S+)$',
        page,
        re.MULTILINE,
    )
    return float(line)


async def test_the_gate_finds_every_figure(http):
    """Nothing that admission steers by is unknown, and tokens that come move the counters."""
    await http.post(CHAT, json=body(max_tokens=4, ignore_eos=True))
    before = engine_metrics.parse((await http.get("/metrics")).text)
    await http.post(CHAT, json=body(max_tokens=4, ignore_eos=True))
    now = engine_metrics.parse((await http.get("/metrics")).text)
    assert [f.name for f in fields(now) if getattr(now, f.name) is None] == []
    assert now.kv_cache_tokens == 65_536
    assert now.generation_tokens_total == before.generation_tokens_total + 4
    assert now.iterations_total > before.iterations_total
    assert 0 < now.median_inter_token_s(before) < 1


def families(page):
    """Type, label names and bucket bounds of each family; without the times of creation."""
    kinds = dict(re.findall(r"^# TYPE (vllm:\S+) (\S+)$", page, re.MULTILINE))
    found = {}
    for name, kind in kinds.items():
        samples = re.findall(rf"^{name}(?:_bucket)?\{{(.*)\}} \S+$", page, re.MULTILINE)
        labels = {frozenset(re.findall(r'(\w+)="', sample)) for sample in samples}
        bounds = sorted(set(re.findall(r'\ble="([^"]+)"', " ".join(samples))))
        values = sorted(set(re.findall(r'\b\w*(?:reason|source)="(\w+)"', " ".join(samples))))
        found[name] = (kind, labels, bounds, values)
    return found


def test_the_metrics_of_vllm_are_the_simulators(simulator_url, vllm_url):
    """Each family that the simulator has, vLLM has: type, labels, their values, and buckets."""
    real, simulated = (
        families(httpx2.get(f"{url}/metrics", trust_env=False).text)
        for url in (vllm_url, simulator_url)
    )
    config = "vllm:cache_config_info"
    (simulated_labels,), (real_labels,) = simulated.pop(config)[1], real.pop(config)[1]
    assert simulated_labels <= real_labels
    assert set(simulated) <= set(real)
    assert {name: real[name] for name in simulated} == simulated


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
            request = EngineRequest(MODEL, messages, max_tokens=1).body() | {"stream": False}
            del request["stream_options"]
            answer = (await http.post(CHAT, json=request)).json()
            assert counter.count_messages(messages) == answer["usage"]["prompt_tokens"]


async def test_rejects_what_does_not_fit(batching_url):
    """An overlong request is an error of its own, and is not tried again."""
    async with client_of(batching_url, max_concurrent=1) as client:
        with pytest.raises(EngineRejected, match="max_tokens"):
            async for _ in client.stream(EngineRequest(MODEL, LONG, 100_000), Deadline(30)):
                pass
