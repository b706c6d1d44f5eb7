"""The real orchestrator before an engine that speaks as TGI does: OpenAI's wire, and nothing of vLLM's."""

import json

import httpx2
import pytest
from starlette.responses import Response

from tests.fake_engine import FakeEngine, Script, serving
from tests.faults import (
    QUESTION,
    SMALL,
    is_passages_only,
    nothing_left,
    refused,
    upload,
    wait_until,
)
from tests.running import orchestrator

MODEL = "/models/smol"
OVERLOADED = (429, {"error": "Model is overloaded", "error_type": "overloaded"}, {})
METRICS = """\
# TYPE tgi_request_count counter
tgi_request_count 12
# TYPE tgi_queue_size gauge
tgi_queue_size 3
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 32
"""


def frame(choices, usage=None):
    body = {"object": "chat.completion.chunk", "model": MODEL, "choices": choices, "usage": usage}
    return f"data: {json.dumps(body)}\n\n"


class FakeTgi(FakeEngine):
    """
    The scripted engine in TGI 3's words.

    It names its model by the folder and states no window; every delta has a role; a stop string has a
    finish_reason of its own; an error of a stream is told in it; its metrics are its own.

    Attributes:
        full: Whether it says so in the streams that it is asked for.
    """

    full = False
    reason = "stop"

    async def models(self):
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": MODEL}
        return {"object": "list", "data": [model]}

    async def metrics(self):
        return Response(METRICS, media_type="text/plain")

    async def _stream(self, script: Script):
        self.running += 1
        try:
            if self.full:
                error = {"message": "Model is overloaded", "http_status_code": 422}
                yield f"data: {json.dumps({'error': error})}\n\ndata: [DONE]\n\n"
                return
            for text in script.tokens:
                delta = {"role": "assistant", "content": text}
                yield frame([{"index": 0, "delta": delta, "finish_reason": None}])
            delta = {"role": "assistant", "content": ""}
            yield frame([{"index": 0, "delta": delta, "finish_reason": self.reason}])
            tokens = len(script.tokens)
            yield frame([], {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 20})
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1


@pytest.fixture(scope="module")
def shared_tgi():
    with serving(FakeTgi()) as engine:
        yield engine


@pytest.fixture(scope="module")
def tgi_http(shared_tgi, tmp_path_factory):
    """A client of an orchestrator whose only engine is that one."""
    folder = tmp_path_factory.mktemp("tgi")
    with (
        orchestrator(
            folder,
            shared_tgi.url,
            **SMALL,
            max_concurrent_requests="4",
            embedder_url=shared_tgi.url,
        ) as program,
        httpx2.Client(base_url=program.url, timeout=30, trust_env=False) as http,
    ):
        upload(http)
        yield http


@pytest.fixture
def tgi(shared_tgi, tgi_http):
    shared_tgi.play()
    shared_tgi.full, shared_tgi.reason = False, "stop"
    yield shared_tgi
    nothing_left(tgi_http, shared_tgi)


def ask(http, **body):
    return http.post("/ask", json={"question": QUESTION, **body})


def test_a_question_is_answered(tgi, tgi_http):
    """Text, tokens and the end are understood, and the model is asked for by its own name."""
    answer = ask(tgi_http, degrade=False)
    assert answer.status_code == 200, answer.text
    assert answer.json()["answer"] == "The gate closes [1]."
    assert answer.json()["usage"] == {"prompt_tokens": 10, "completion_tokens": 3}
    assert tgi.requests[0]["model"] == MODEL
    assert tgi_http.get("/readyz").status_code == 200


def test_an_engine_that_never_had_vllms_metrics_is_no_alarm(tgi, tgi_http):
    """Nothing is known of its load, so our own books alone decide, with whole limits."""
    assert ask(tgi_http, degrade=False).status_code == 200

    def gate():
        return tgi_http.get("/status").json()["gate"]

    assert wait_until(lambda: gate()["correction"] == 1, 10)
    assert not gate()["engine_metrics_stale"]
    assert gate()["kv_cache_tokens"] is None
    assert gate()["concurrent"] == 4


def test_a_stop_string_ends_an_answer_well(tgi, tgi_http):
    """TGI names it `stop_sequence`, which is no answer given up."""
    tgi.reason = "stop_sequence"
    assert ask(tgi_http, degrade=False).status_code == 200


@pytest.mark.parametrize("in_stream", [False, True])
def test_full_is_told_and_is_no_failure(tgi, tgi_http, in_stream):
    """By status or in the stream, however often: 429, a closed breaker, passages to who takes them."""
    tgi.play(statuses=[] if in_stream else [OVERLOADED] * 60)
    tgi.full = in_stream
    answers = [ask(tgi_http, degrade=False) for _ in range(10)]
    assert {refused(answer) for answer in answers} == {(429, "engine_overloaded")}
    assert "Model is overloaded" in answers[0].json()["error"]["message"]
    assert tgi_http.get("/status").json()["breakers"]["engine"] == "closed"
    assert is_passages_only(ask(tgi_http))
