"""A question's way through the real orchestrator, over real sockets."""

import concurrent.futures
import json
import socket
import time

import httpx2
import pytest

from tests.faults import nothing_left, wait_until

from .conftest import MAX_CONCURRENT, MAX_QUEUED

QUESTION = "When does the tide gate close?"


def events(response):
    """(name, data) of each server-sent event."""
    return [(e.event, json.loads(e.data)) for e in httpx2.EventSource(response)]


def ask(http, **body):
    return http.post("/ask", json={"question": QUESTION, **body})


def test_answers_with_numbered_sources(http, engine, handbook):
    """The answer carries its mark, and the mark names a document and a page."""
    answer = ask(http).json()
    assert answer["answer"] == "The gate closes [1]."
    first = answer["citations"][0]
    assert (first["n"], first["cited"], first["document_id"]) == (1, True, handbook)
    assert first["filename"] == "handbook.pdf"
    assert first["page"] >= 1
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 3}
    assert answer["degraded"] is None
    assert answer["timings_ms"]["total"] >= answer["timings_ms"]["first_token"] > 0


def test_the_prompt_holds_the_passages_and_the_question(http, engine, handbook):
    """What the engine is asked is the question under the numbered passages."""
    cited = ask(http, top_k=8).json()["citations"]
    prompt = engine.requests[0]["messages"][-1]["content"]
    assert prompt.endswith(f"Question: {QUESTION}")
    for source in cited:
        assert f"[{source['n']}] handbook.pdf, page {source['page']}\n" in prompt
    assert f"[{len(cited) + 1}]" not in prompt
    # Chunks that follow one another are one source: their common text is there once.
    assert len(cited) < 8
    assert prompt.count("The gates are closed when the outer gauge") == 1


def test_streams_sources_tokens_and_done(http, engine, handbook):
    """The event stream has the designed order, and its end holds the whole."""
    engine.play(token_s=0.05)  # told apart, also by a reader that is late
    with http.stream("POST", "/ask", json={"question": QUESTION, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen = events(response)
    assert [name for name, _ in seen] == ["sources", "token", "token", "token", "done"]
    assert "".join(d["text"] for n, d in seen if n == "token") == seen[-1][1]["answer"]
    assert seen[0][1]["citations"][0]["n"] == 1


def test_says_so_when_nothing_is_relevant(http, engine, handbook):
    """A question about something else is not sent to the engine to be invented."""
    answer = ask(http, question="Which enzyme splits lactose in the small intestine?").json()
    assert "do not seem to say anything" in answer["answer"]
    assert answer["citations"] == []
    assert engine.requests == []


def test_follows_up_on_the_conversation(http, engine, handbook):
    """Earlier turns reach the engine, oldest first."""
    turns = [{"role": "user", "content": "Tell me about the gate."}]
    turns.append({"role": "assistant", "content": "It is a gate."})
    ask(http, history=turns)
    contents = [m["content"] for m in engine.requests[0]["messages"]]
    assert contents[1:3] == ["Tell me about the gate.", "It is a gate."]


def test_searches_without_an_engine(http, engine, handbook):
    """/search gives passages, best first, and asks no engine."""
    found = http.post("/search", json={"question": QUESTION, "top_k": 2}).json()["passages"]
    assert len(found) == 2
    assert set(found[0]) == {
        *("document_id", "filename", "page", "char_start", "char_end", "text", "score")
    }
    assert engine.requests == []


def test_a_request_id_goes_in_and_out(http, engine, handbook):
    """The caller's id comes back in the header and in the body."""
    response = http.post("/ask", json={"question": QUESTION}, headers={"X-Request-ID": "abc-1"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "abc-1"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{not json", 400, "invalid_json_or_request"),
        (b"[]", 422, None),
        (b'{"question": ""}', 422, "invalid_parameter"),
        (b'{"question": "   "}', 422, "invalid_parameter"),
        (b'{"question": 7}', 422, "invalid_parameter"),
        (b'{"question": "x", "top_k": NaN}', 422, "invalid_parameter"),
        (b'{"question": "x", "top_k": 0}', 422, "invalid_parameter"),
        (b'{"question": "x", "top_k": "5"}', 422, "invalid_parameter"),
        (b'{"question": "x", "degrade": 0}', 422, "invalid_parameter"),
        (b'{"question": "x", "top_k": 1000}', 422, "invalid_parameter"),
        (b'{"question": "x", "max_tokens": 100000}', 422, "invalid_parameter"),
        (b'{"question": "x", "timeout_s": -1}', 422, "invalid_parameter"),
        (b'{"question": "x", "timeout_s": Infinity}', 422, "invalid_parameter"),
        (b'{"question": "x", "collection": "../etc"}', 422, "invalid_parameter"),
        (b'{"question": "x", "collection": "nobody"}', 404, "collection_not_found"),
        (b'{"question": "x", "document_ids": ["doc-0"]}', 404, "document_not_found"),
        (b'{"question": "x", "colection": "typo"}', 422, "invalid_parameter"),
        (b"", 422, None),
    ],
)
def test_bad_input_gets_a_clear_4xx(http, engine, handbook, body, status, code):
    """Each mistake is told in the one error shape; nothing reaches the engine."""
    response = http.post("/ask", content=body, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert response.status_code in {status, 400 if code is None else status}, response.text
    if code and code != "invalid_json_or_request":
        assert error["code"] == code
    assert engine.requests == []


def test_whole_numbers_may_have_a_point(http, engine, handbook):
    """JSON does not tell 5.0 from 5, and some clients write it so."""
    assert ask(http, top_k=5.0, max_tokens=64.0).status_code == 200
    assert ask(http, top_k=5.5).status_code == 422


def test_a_megabyte_of_question_is_refused(http, engine, handbook):
    """A long question is told its limit; a body over its limit is not even read."""
    assert ask(http, question="x" * 900_000).status_code == 422
    response = ask(http, question="x" * 2_000_000)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "route_not_found"), ("GET", "/ask", 405, "method_not_allowed")],
)
def test_wrong_routes_are_told_in_the_same_shape(http, method, path, status, code):
    """Also what the framework refuses has the one shape."""
    response = http.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/ask", "POST"),
        ("TRACE", "/documents/doc-nope", "DELETE, GET"),
        ("PUT", "/v1/models/a/b", "GET"),
        ("POST", "/web/js/main.js", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(http, method, path, allowed):
    """Allow names those of every route with that path."""
    response = http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    "wrong", [{"seed": 2**63}, {"seed": -(2**63) - 1}, {"stop": ""}, {"stop": ["a", ""]}]
)
def test_what_no_engine_takes_is_the_callers_mistake(http, engine, handbook, wrong):
    """An engine refuses these itself, and that would be told as its failure."""
    turns = [{"role": "user", "content": QUESTION}]
    response = http.post(
        "/v1/chat/completions", json={"model": "fake-model", "messages": turns} | wrong
    )
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_parameter")
    assert not engine.requests


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (
            {"statuses": [(503, {"error": {"message": "loading"}}, {})] * 9},
            503,
            "engine_unavailable",
        ),
        (
            {"statuses": [(429, {"error": "overloaded"}, {"Retry-After": "3"})]},
            429,
            "engine_overloaded",
        ),
        ({"statuses": [(400, {"error": {"message": "no"}}, {})]}, 502, "engine_rejected"),
        ({"ending": "cut", "tokens": []}, 502, "engine_protocol_error"),
        ({"first_token_s": 30}, 504, "engine_timeout"),
    ],
)
def test_an_engines_failure_has_its_own_status(http, engine, handbook, script, status, code):
    """Before the first byte a failure is a status, also when a stream was asked for."""
    for stream in (False, True):
        engine.play(**{k: list(v) if isinstance(v, list) else v for k, v in script.items()})
        response = ask(http, stream=stream, degrade=False)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert wait_until(lambda: engine.running == 0)


def test_a_failure_after_the_first_token_is_an_event(http, engine, handbook):
    """A stream that has begun ends with one error event, not in silence."""
    engine.play(ending="error")
    with http.stream("POST", "/ask", json={"question": QUESTION, "stream": True}) as response:
        seen = events(response)
    assert response.status_code == 200
    assert [name for name, _ in seen][-1] == "error"
    assert seen[-1][1]["error"]["code"] == "engine_protocol_error"


def test_the_deadline_is_kept(http, engine, handbook):
    """timeout_s and the header end a request on time, with 504 and the engine's work aborted."""
    engine.play(tokens=["a"] * 1000, token_s=0.1)
    for arguments in (
        {"json": {"question": QUESTION, "timeout_s": 1}},
        {"json": {"question": QUESTION}, "headers": {"X-Request-Deadline-Ms": "1000"}},
    ):
        began = time.monotonic()
        response = http.post("/ask", **arguments)
        assert (response.status_code, response.json()["error"]["code"]) == (
            504,
            "deadline_exceeded",
        )
        assert time.monotonic() - began < 3
    assert wait_until(lambda: engine.running == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_everything(http, engine, handbook, stream):
    """Within a second the engine's request is aborted and the permit is back."""
    engine.play(tokens=["a"] * 1000, token_s=0.05)
    body = json.dumps({"question": QUESTION, "stream": stream}).encode()
    host, port = http.base_url.host, http.base_url.port
    with socket.create_connection((host, port)) as raw:
        raw.sendall(
            b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert wait_until(lambda: engine.running == 1)
    assert wait_until(lambda: engine.running == 0, 1.0)
    assert wait_until(lambda: http.get("/status").json()["gate"]["running"] == 0, 1.0)


def test_more_than_the_gate_holds_are_told(http, engine, handbook):
    """Of 20 at once the limit runs, three wait and are served, the rest hear when to return."""
    engine.play(first_token_s=0.5)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(http, degrade=False), range(20)))
    assert {a.status_code for a in answers} == {200, 429}, "the queue has no end"
    refused = [a for a in answers if a.status_code == 429]
    assert {a.json()["error"]["code"] for a in refused} <= {"queue_full", "overloaded"}
    assert len(refused) >= 20 - MAX_CONCURRENT - MAX_QUEUED
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert int(answer.headers["retry-after-ms"]) >= 1000
        assert answer.headers["x-should-retry"] in {"true", "false"}
    assert engine.peak <= MAX_CONCURRENT
    nothing_left(http, engine)


def test_a_waiter_hears_its_place(http, engine, handbook):
    """While it waits, a stream says which place it has."""
    engine.play(token_s=0.3)
    with concurrent.futures.ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        busy = []
        for n in range(MAX_CONCURRENT):
            busy.append(pool.submit(ask, http, degrade=False))
            assert wait_until(lambda n=n: engine.running > n)
        with http.stream("POST", "/ask", json={"question": QUESTION, "stream": True}) as response:
            seen = events(response)
        assert {f.result().status_code for f in busy} == {200}
    assert seen[0] == ("queued", {"position": 1, "eta_s": seen[0][1]["eta_s"]})
    assert seen[-1][0] == "done"


def test_health_metrics_and_status_tell_the_truth(http, engine, handbook):
    """Alive, ready with each dependency, series in Prometheus' format, the picture as JSON."""
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert set(ready.json()["dependencies"]) == {"engine", "embedder", "store"}
    text = http.get("/metrics").text
    assert "tidegate_requests_total" in text
    assert "tidegate_requests_running 0.0" in text
    for code in ("engine_unavailable", "engine_overloaded"):
        assert f'tidegate_engine_retries_total{{code="{code}"}} ' in text, "no rate without a 0"
    status = http.get("/status").json()
    assert status["documents"]["by_status"]["ready"] >= 1
    assert status["engine"]["model"] == "fake-model"
