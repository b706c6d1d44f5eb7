"""The simulator's HTTP: vLLM's shapes and refusals, and each fault as it was asked for."""

import asyncio

import pytest

from tests.unit.model_server.simulating import MODEL, Simulated, body, events, said, send

CHAT = "/v1/chat/completions"
STREAM = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5}


def text_of(sent):
    return b"".join(m.get("body", b"") for m in sent).decode()


async def test_a_stream_is_vllms():
    """Role first, then text, one reason, then usage, then [DONE]."""
    simulated = Simulated()
    async with simulated.running() as http:
        answer = await http.post(CHAT, json=body(ignore_eos=True, **STREAM))
    *chunks, usage, done = events(answer.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 5 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert done == "[DONE]"
    assert len({c["id"] for c in [*chunks, usage]}) == 1


async def test_streamed_or_not_the_answer_is_the_same():
    """The same prompt gives the same words, also under another stream interval."""
    texts = set()
    for interval in (1, 8):
        simulated = Simulated(stream_interval=interval)
        async with simulated.running() as http:
            whole = (await http.post(CHAT, json=body())).json()
            streamed = events(
                (await http.post(CHAT, json=body(**(STREAM | {"max_tokens": 2000})))).text
            )
        texts |= {whole["choices"][0]["message"]["content"], said(streamed)}
    (text,) = texts
    assert "[1]" in text


async def test_without_include_usage_there_is_none():
    """Usage comes only when it is asked for."""
    simulated = Simulated()
    async with simulated.running() as http:
        answer = await http.post(CHAT, json=body(stream=True, max_tokens=2))
    assert "usage" not in answer.text


@pytest.mark.parametrize(
    ("fields", "tokens", "reason"),
    [
        ({"max_tokens": 3}, 3, "length"),
        ({"max_completion_tokens": 3}, 3, "length"),
        ({"max_tokens": 2000, "min_tokens": 700}, 700, "stop"),
        ({"max_tokens": 600, "ignore_eos": True}, 600, "length"),
    ],
)
async def test_the_length_of_an_answer_can_be_forced(fields, tokens, reason):
    """max_tokens cuts, min_tokens and ignore_eos stretch."""
    simulated = Simulated()
    async with simulated.running() as http:
        answer = (await http.post(CHAT, json=body(**fields))).json()
    assert answer["usage"]["completion_tokens"] == tokens
    assert answer["choices"][0]["finish_reason"] == reason


async def test_what_the_window_has_no_room_for_is_cut():
    """As vLLM: max_tokens within the window but not beside the prompt is no error."""
    simulated = Simulated()
    async with simulated.running() as http:
        answer = (
            await http.post(CHAT, json=body("x" * 4000, ignore_eos=True, max_tokens=2048))
        ).json()
    assert answer["usage"]["total_tokens"] == 2048


async def test_lengths_are_log_normal_around_the_profiles_mean():
    """Over many prompts the mean is the profile's, and the median below it."""
    simulated = Simulated()
    lengths = []
    async with simulated.running() as http:
        for n in range(300):
            answer = await http.post(CHAT, json=body(f"question {n}"))
            lengths.append(answer.json()["usage"]["completion_tokens"])
    assert sum(lengths) / len(lengths) == pytest.approx(140, rel=0.12)
    assert sorted(lengths)[150] < 130


@pytest.mark.parametrize(
    ("payload", "status", "param", "words"),
    [
        (body(max_tokens=0), 400, "max_tokens", "at least 1"),
        (body(max_tokens="x"), 400, "max_tokens", "at least 1"),
        (body(max_tokens=9999), 400, "max_tokens", "cannot be greater than max_model_len=2048"),
        (body("x" * 9000), 400, "input_tokens", "maximum context length is 2048"),
        (body(max_tokens=5, min_tokens=6), 400, None, "min_tokens must be less"),
        (body() | {"model": "gpt"}, 404, "model", "does not exist"),
        ({"model": MODEL}, 400, "messages", "messages"),
        ([], 400, "body", "no JSON object"),
    ],
)
async def test_wrong_requests_get_vllms_error(payload, status, param, words):
    """One shape, with the status as code."""
    simulated = Simulated()
    async with simulated.running() as http:
        answer = await http.post(CHAT, json=payload)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, status, param)
    assert words in error["message"]


async def test_a_full_engine_says_503_before_the_stream():
    """Who comes when it is full gets a status."""
    simulated = Simulated(max_num_queued_reqs=0)
    async with simulated.running() as http:
        answer = await http.post(CHAT, json=body(**STREAM))
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "Service Unavailable"


async def test_of_a_burst_the_last_are_refused_within_their_streams():
    """Those that arrive together pass the first check together, as in vLLM: 200, then the error."""
    simulated = Simulated(max_num_queued_reqs=2)
    async with simulated.running() as http:
        answers = await asyncio.gather(*(http.post(CHAT, json=body(**STREAM)) for _ in range(3)))
    assert [a.status_code for a in answers] == [200] * 3
    refused = [a for a in answers if '"error"' in a.text]
    ((error, done),) = [events(a.text) for a in refused]
    assert error["error"]["code"] == 503
    assert done == "[DONE]"
    assert simulated.engine.metrics.rejections["max_num_queued_reqs"] == 1


async def test_a_prefix_seen_before_is_cached():
    """The second time, all full blocks but the last tokens come from the cache."""
    simulated = Simulated()
    async with simulated.running() as http:
        first, second = [
            (await http.post(CHAT, json=body("word " * 300, max_tokens=2))).json()["usage"]
            for _ in range(2)
        ]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["prompt_tokens_details"]["cached_tokens"]
    assert second["prompt_tokens"] - 16 <= cached < second["prompt_tokens"]


async def test_the_small_endpoints():
    """Models with a window, version, health, and a token count that the usage agrees with."""
    simulated = Simulated()
    async with simulated.running() as http:
        (model,) = (await http.get("/v1/models")).json()["data"]
        counted = (await http.post("/tokenize", json=body())).json()
        usage = (await http.post(CHAT, json=body(max_tokens=1))).json()["usage"]
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/version")).json()["version"].startswith("0.32")
        assert (await http.get("/nothing")).status_code == 404
    assert (model["id"], model["max_model_len"]) == (MODEL, 2048)
    assert counted["count"] == len(counted["tokens"]) == usage["prompt_tokens"]


class TestFaults:
    """Each fault, and that it ends."""

    @pytest.fixture
    async def simulated(self):
        made = Simulated()
        async with made.running() as http:
            yield made, http

    async def inject(self, http, **fault):
        answer = await http.post("/faults", json=fault)
        assert answer.status_code == 200, answer.text

    async def test_status_comes_as_often_as_it_was_asked_for(self, simulated):
        """With the body and the header that were given, then no more."""
        _, http = simulated
        await self.inject(http, kind="status", status=429, retry_after="7", body={"a": 1}, count=2)
        answers = [await http.post(CHAT, json=body(max_tokens=1)) for _ in range(3)]
        assert [a.status_code for a in answers] == [429, 429, 200]
        assert (answers[0].headers["retry-after"], answers[0].json()) == ("7", {"a": 1})

    async def test_probability(self, simulated):
        """About so many of the requests, the same ones each time."""
        _, http = simulated
        seen = []
        for _ in range(2):
            await self.inject(http, kind="status", probability=0.3)
            codes = [
                (await http.post(CHAT, json=body(max_tokens=1))).status_code for _ in range(200)
            ]
            await http.delete("/faults")
            seen.append(codes)
        assert seen[0] == seen[1]
        assert 40 < seen[0].count(503) < 80

    @pytest.mark.parametrize(
        ("kind", "ends"),
        [
            ("garbage", 'data: {"id": "chatcmpl-\n\ndata: [DONE]\n\n'),
            ("error_event", '"code": 500}}\n\ndata: [DONE]\n\n'),
            ("abort", '"abort", "stop_reason": null, "token_ids": null}]}\n\ndata: [DONE]\n\n'),
        ],
    )
    @pytest.mark.parametrize("chunks", [0, 2, 100])
    async def test_a_stream_that_breaks_breaks_after_so_many_chunks(
        self, simulated, kind, ends, chunks
    ):
        """The text so far has come, the rest has not; longer than the answer breaks at its end."""
        _, http = simulated
        await self.inject(http, kind=kind, chunks=chunks)
        text = (await http.post(CHAT, json=body(ignore_eos=True, **STREAM))).text
        assert text.endswith(ends)
        assert text.count('"delta":{"content"') == min(chunks, 5)
        assert '"length"' not in text

    @pytest.mark.parametrize("kind", ["cut", "reset"])
    async def test_a_connection_that_breaks(self, simulated, kind):
        """The response is never ended; a reset is asked of the connection."""
        made, http = simulated
        await self.inject(http, kind=kind, chunks=2)
        sent = await send(made.app, body(ignore_eos=True, **STREAM))
        assert all(m.get("more_body", True) for m in sent)
        assert text_of(sent).count('"delta":{"content"') == 2
        assert len(made.resets) == (kind == "reset")

    async def test_no_finish_reason(self, simulated):
        """Everything else is there."""
        _, http = simulated
        await self.inject(http, kind="no_finish_reason")
        *chunks, usage, done = events((await http.post(CHAT, json=body(**STREAM))).text)
        assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * len(chunks)
        assert usage["usage"]
        assert done == "[DONE]"

    async def test_slow_and_drip_take_their_time(self, simulated):
        """So long before the first token, so long between all others."""
        made, http = simulated
        began_s = made.time.now_s
        await self.inject(http, kind="slow", first_token_s=100)
        await self.inject(http, kind="drip", token_s=10)
        answer = await http.post(CHAT, json=body(ignore_eos=True, **STREAM))
        assert 140 <= made.time.now_s - began_s < 141
        assert len(events(answer.text)) == 1 + 5 + 2

    async def test_hang_never_answers(self, simulated):
        """Nothing at all is sent until the client leaves."""
        made, http = simulated
        await self.inject(http, kind="hang")
        gone = asyncio.Event()
        task = asyncio.create_task(send(made.app, body(), gone=gone))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not task.done()
        gone.set()
        assert await task == []

    async def test_startup_refuses_everything_for_a_while(self, simulated):
        """503 until the time is over, but faults can be looked at."""
        made, http = simulated
        await self.inject(http, kind="startup", seconds=30)
        for path in ("/health", "/metrics", "/v1/models"):
            assert (await http.get(path)).status_code == 503
        assert (await http.get("/faults")).json()["faults"][0]["kind"] == "startup"
        made.time.now_s += 31
        assert (await http.get("/health")).status_code == 200

    async def test_metrics_can_lie(self, simulated):
        """Stale, renamed, not a number, slow: and right again afterwards."""
        made, http = simulated
        pages = {}
        for mode in ("stale", "renamed", "nan", "slow"):
            await self.inject(http, kind="metrics", mode=mode, delay_s=50)
            began_s = made.time.now_s
            await http.post(CHAT, json=body(max_tokens=3))
            pages[mode] = (await http.get("/metrics")).text
            if mode == "slow":
                assert made.time.now_s - began_s > 50
            await http.delete("/faults")
        assert "vllm:generation_tokens_total{" in pages["stale"]
        assert (
            f'vllm:generation_tokens_total{{engine="0",model_name="{MODEL}"}} 0.0' in pages["stale"]
        )
        assert "vllm:num_requests_running" not in pages["renamed"]
        assert f'vllm:num_requests_running{{engine="0",model_name="{MODEL}"}} NaN' in pages["nan"]
        right = f'vllm:generation_tokens_total{{engine="0",model_name="{MODEL}"}} 12.0'
        assert right in (await http.get("/metrics")).text

    @pytest.mark.parametrize(
        "fault",
        [
            {},
            {"kind": "fire"},
            {"kind": "cut", "when": 3},
            {"kind": "metrics", "mode": "x"},
            {"kind": "cut", "probability": 2},
            {"kind": "cut", "chunks": "2"},
        ],
    )
    async def test_a_fault_that_is_none_is_refused(self, simulated, fault):
        """With 400, and nothing is in force."""
        _, http = simulated
        assert (await http.post("/faults", json=fault)).status_code == 400
        assert (await http.get("/faults")).json() == {"faults": []}
