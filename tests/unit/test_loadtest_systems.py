"""What the load test reads in an answer of each system."""

import inspect
import json
import re

import pytest

from loadtest import scenarios
from loadtest.arrivals import Ask
from loadtest.client_rules import NO_STATUS
from loadtest.corpus import NONCE, Prompt
from loadtest.generator import Other, Target
from loadtest.http_client import Response
from loadtest.systems import Engine, Naive, Tidegate

POOL = [
    Prompt(
        size="medium",
        question="At what level are the gates closed?",
        top_k=6,
        history=(("user", "And the boom?"), ("assistant", f"Entry {NONCE} says so [1].")),
        messages=({"role": "user", "content": f"Entry {NONCE}: which level?"},),
    )
]
ASK = Ask(
    at_s=0.0,
    prompt=0,
    max_tokens=77,
    nonce="feedfeedfeedfeed",
    stream=True,
    tenant="hog",
    band="batch",
    degrade=False,
)
SSE = {"content-type": "text/event-stream; charset=utf-8"}
ANSWER = {
    "answer": "At 3.40 m [1].",
    "degraded": None,
    "usage": {"prompt_tokens": 900, "completion_tokens": 12},
    "timings_ms": {"retrieve": 8.5},
}


def tidegate(*, bands=True):
    return Tidegate(host="h:1", pool=POOL, bands=bands)


def engine():
    return Engine(host="h:1", pool=POOL, model="m")


def whole(body, status=200, headers=SSE):
    return Response(ending="whole", status=status, headers=headers, body=body)


def event(name, payload):
    return f"event: {name}\ndata: {json.dumps(payload)}\n\n".encode()


def error(kind, code):
    return {"error": {"message": "m", "type": kind, "code": code, "param": None}}


def engine_stream(*, reason="stop", done=True, extra=b""):
    chunk = {"choices": [{"delta": {"content": "The"}, "finish_reason": reason}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 900, "completion_tokens": 12}}
    body = f"data: {json.dumps(chunk)}\n\n".encode() + extra
    body += f"data: {json.dumps(usage)}\n\n".encode()
    return body + (b"data: [DONE]\n\n" if done else b"")


def sent(request):
    head, _, body = request.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), json.loads(body)


def test_ask_carries_everything_that_the_gate_decides_by():
    """Deadline, tenant, priority, the attempt's number and the nonce are in the request."""
    head, body = sent(tidegate().request(ASK, retries=2, patience_s=30.0))
    assert head[0] == "POST /ask HTTP/1.1"
    assert "Authorization: Bearer hog" in head
    assert "x-stainless-retry-count: 2" in head
    assert body["history"][1]["content"] == "Entry feedfeedfeedfeed says so [1]."
    wanted = {"max_tokens": 77, "top_k": 6, "timeout_s": 30.0, "priority": "batch"}
    assert body.items() >= {**wanted, "degrade": False, "stream": True}.items()


def test_an_orchestrator_without_bands_is_not_asked_for_one():
    """An unknown field would be refused."""
    _, body = sent(tidegate(bands=False).request(ASK, retries=0, patience_s=30.0))
    assert "priority" not in body


def test_each_caller_has_a_key_of_its_own():
    """Without keys the gate would tell them apart by address, and theirs is the same."""
    keyed = Tidegate(host="h:1", pool=POOL, bands=True, keys={ASK.tenant: "tg_its"})
    head, _ = sent(keyed.request(ASK, retries=0, patience_s=30.0))
    assert "Bearer tg_its" in str(head)
    told = inspect.getsource(scenarios)
    assert set(re.findall(r'tenant="(\w+)"', told)) <= set(scenarios.TENANTS)


def test_the_engine_gets_the_prompt_itself():
    """The same prompt with the same nonce, and nothing that an engine does not know."""
    head, body = sent(engine().request(ASK, retries=1, patience_s=30.0))
    assert head[0] == "POST /v1/chat/completions HTTP/1.1"
    assert body["messages"] == [{"role": "user", "content": "Entry feedfeedfeedfeed: which level?"}]
    assert body["max_tokens"] == 77
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("level", [None, "L1", "L3"])
def test_a_done_event_is_an_answer(level):
    """Tokens, degradation and retrieval time are read from the last event."""
    degraded = level and {"level": level, "reason": "full"}
    body = event("token", {"text": "At"}) + event("done", {**ANSWER, "degraded": degraded})
    found = tidegate().read(whole(body))
    assert (found.code, found.whole, found.degraded) == ("ok", True, level)
    assert (found.prompt_tokens, found.completion_tokens, found.retrieve_ms) == (900, 12, 8.5)


def test_an_answer_that_was_not_streamed_is_read_too():
    """JSON carries the same."""
    body = json.dumps(ANSWER).encode()
    found = tidegate().read(whole(body, headers={"content-type": "application/json"}))
    assert (found.whole, found.completion_tokens) == (True, 12)


def test_a_refusal_says_its_code_and_the_servers_time():
    """Server-Timing gives the refusal's own cost."""
    body = json.dumps(error("overloaded_error", "queue_full")).encode()
    headers = {"content-type": "application/json", "server-timing": "gate;dur=0.1, total;dur=2.25"}
    found = tidegate().read(whole(body, 429, headers))
    assert (found.code, found.status, found.whole) == ("queue_full", 429, False)
    assert found.server_ms == 2.25


@pytest.mark.parametrize(
    ("kind", "status"), [("overloaded_error", 429), ("timeout_error", 503), ("server_error", 503)]
)
def test_an_error_event_is_as_bad_as_its_status(kind, status):
    """An error after the 200 makes the client try again like one before it."""
    body = event("queued", {"position": 1}) + event("error", error(kind, "queue_timeout"))
    found = tidegate().read(whole(body))
    assert (found.code, found.status, found.whole) == ("queue_timeout", status, False)


def test_a_stream_without_an_end_is_no_answer():
    """A clean end of the connection does not make half an answer whole."""
    found = tidegate().read(whole(event("token", {"text": "At"})))
    assert (found.code, found.whole, found.status) == ("incomplete", False, NO_STATUS)


def test_an_engines_whole_stream_is_an_answer():
    """Usage stands in the last chunk."""
    found = engine().read(whole(engine_stream()))
    assert (found.whole, found.prompt_tokens, found.completion_tokens) == (True, 900, 12)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (engine_stream(done=False), "incomplete"),
        (engine_stream(reason="abort"), "aborted"),
        (engine_stream(reason=None), "aborted"),
        (engine_stream(extra=b'data: {"error": {"code": 500}}\n\n'), "error_event"),
    ],
)
def test_an_engines_200_is_not_success(body, code):
    """Aborted, broken and unfinished streams are no answers."""
    found = engine().read(whole(body))
    assert (found.code, found.whole) == (code, False)


@pytest.mark.parametrize("system", [tidegate(), engine()], ids=["tidegate", "engine"])
@pytest.mark.parametrize("ending", ["gave_up", "reset", "refused"])
def test_a_connection_that_broke_has_no_status(system, ending):
    """Whatever came before, the client saw no end."""
    found = system.read(Response(ending=ending, status=200, headers=SSE, body=engine_stream()))
    assert (found.code, found.status, found.whole) == (ending, NO_STATUS, False)


def test_the_first_token_is_not_the_role():
    """The first chunk of vLLM has an empty text: the person has seen nothing yet."""
    assert not Engine.mark.search(b'{"delta":{"role":"assistant","content":""}}')
    assert Engine.mark.search(b'{"delta":{"content":"The"}}')
    assert Engine.mark.search(b'{"delta": {"content": "\\u00e9"}}')
    assert not Tidegate.mark.search(b"event: queued\ndata: {}\n\nevent: sources\n")


def naive():
    return Naive(host="h:1", pool=POOL, tokens=lambda text: len(text.split()))


def test_the_naive_service_is_asked_the_question_alone():
    """It knows nothing else; what it answered is counted here."""
    head, _, body = naive().request(ASK, retries=1, patience_s=30.0).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /ask ")
    assert json.loads(body) == {"question": "At what level are the gates closed?"}
    answer = json.dumps({"answer": "At 3.40 m", "sources": []}).encode()
    reading = naive().read(whole(answer, headers={"content-type": "application/json"}))
    assert (reading.code, reading.whole, reading.completion_tokens) == ("ok", True, 3)


@pytest.mark.parametrize("status", [500, 503])
def test_what_it_cannot_answer_is_no_answer(status):
    """Its framework says `Internal Server Error`, in plain text."""
    reading = naive().read(whole(b"Internal Server Error", status, {"content-type": "text/plain"}))
    assert not reading.whole
    assert (reading.code, reading.status) == (str(status), status)


def test_a_server_that_was_named_is_asked_as_the_engine_is():
    """At its own address, by its own model's name."""
    other = Other(("127.0.0.1", 1234), "theirs")
    target = Target(("e", 1), ("o", 2), "ours", True, tuple(POOL), (("tgi", other),))  # noqa: FBT003 - a record's field
    assert target.address("tgi") == ("127.0.0.1", 1234)
    _, _, body = (
        target.system("tgi").request(ASK, retries=0, patience_s=30.0).partition(b"\r\n\r\n")
    )
    assert json.loads(body)["model"] == "theirs"
    assert target.address("engine") == ("e", 1)
