"""Rows 10 to 16 of the fault table: what an engine's connection can do, and what callers are told."""

import json
import time

import httpx2
import pytest

from tests.fake_engine import FakeEngine, serving
from tests.faults import (
    CHAT,
    PATIENCE_S,
    QUESTION,
    SMALL,
    Bench,
    bench,
    is_passages_only,
    nothing_left,
    refused,
    upload,
    wait_until,
)
from tests.running import orchestrator

TOLERANCE_S = 0.8
"""What a busy machine may add; the promise itself is 0.1 s."""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One orchestrator for the file."""
    with bench(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """An orchestrator with a document in it and no engine to be found."""
    data_dir = tmp_path_factory.mktemp("lost")
    with (
        serving(FakeEngine()) as embedder,
        orchestrator(
            data_dir, "http://engine.invalid:8000", **SMALL, embedder_url=embedder.url
        ) as program,
        httpx2.Client(base_url=program.url, timeout=PATIENCE_S, trust_env=False) as http,
    ):
        upload(http)
        yield http


@pytest.fixture
def broken(running):
    """The orchestrator, healed; after the test nothing may be left."""
    running.heal()
    yield running
    running.proxy.play()
    running.nothing_left()


def timed(broken: Bench, **body):
    began_s = time.monotonic()
    response = broken.ask(**body)
    return response, time.monotonic() - began_s


def openai_answers(http, model):
    """The same question at both of OpenAI's doors."""
    messages = [{"role": "user", "content": QUESTION}]
    yield http.post("/v1/chat/completions", json={"model": model, "messages": messages})
    yield http.post("/v1/responses", json={"model": model, "input": QUESTION})


def terminal(seen):
    """The one terminal frame of a stream, which is its last."""
    last = [(name, data) for name, data in seen if name in {"done", "error"}]
    assert len(last) == 1, seen
    assert seen[-1] == last[0]
    name, data = last[0]
    return name, data["error"]["code"] if name == "error" else None


class TestRow10Refused:
    """Nobody listens, or whoever listens hangs up before the first byte."""

    def test_an_engine_that_is_gone_is_told_at_once(self, broken):
        """503 with a Retry-After within two seconds, or the passages."""
        broken.proxy.play(refuse=True)
        response, took_s = timed(broken, degrade=False)
        assert refused(response) in {(503, "engine_unavailable"), (503, "circuit_open")}
        assert took_s < 2
        assert is_passages_only(broken.ask()), "no lesser answer instead of an error"
        response, took_s = timed(broken, degrade=False)
        assert int(response.headers["retry-after"]) >= 1
        assert took_s < 0.5

    def test_retries_twice_then_opens(self, broken):
        """A request is tried three times at most; after a few failures nobody asks any more."""
        broken.proxy.play(only=CHAT, reset_after_bytes=0)
        assert refused(broken.ask(degrade=False)) == (503, "engine_unavailable")
        assert len(broken.engine.requests) == 3
        asked = 1
        while (told := refused(response := broken.ask(degrade=False))) != (503, "circuit_open"):
            asked += 1
            assert told == (503, "engine_unavailable")
            assert asked < 10
        assert len(broken.engine.requests) <= 3 * asked
        assert int(response.headers["retry-after-ms"]) >= 1000
        assert broken.series('tidegate_breaker_state{name="engine"}') > 0

    def test_a_blip_is_not_seen(self, broken):
        """One 503 is tried again, and the caller gets a whole answer."""
        broken.engine.play(statuses=[(503, {"error": {"message": "blip"}}, {})])
        answer = broken.ask(degrade=False)
        assert answer.status_code == 200, "what would have gone well at once was not tried again"
        assert answer.json()["degraded"] is None
        assert len(broken.engine.requests) == 2

    def test_readiness_follows(self, broken):
        """`/readyz` says within two seconds that the engine is gone, and that it is back."""
        broken.proxy.play(refuse=True)
        assert wait_until(lambda: broken.http.get("/readyz").status_code == 503, 2), (
            "an engine that is gone is called ready"
        )
        assert broken.series("tidegate_engine_ready") == 0
        broken.proxy.play()
        assert wait_until(lambda: broken.http.get("/readyz").status_code == 200, 2)

    def test_openais_doors_show_passages_too(self, broken):
        """The name of a model that cannot be asked right now is no reason to refuse a question."""
        broken.proxy.play(refuse=True)
        assert wait_until(lambda: broken.http.get("/readyz").status_code == 503, 2)
        for answer in openai_answers(broken.http, "fake-model"):
            assert (answer.status_code, answer.headers["x-tidegate-degraded"]) == (200, "L3")
        for answer in openai_answers(broken.http, "another"):
            assert refused(answer) == (404, "model_not_found")
        assert broken.http.get("/v1/models/fake-model").status_code == 200


class TestRow10Unresolved:
    """The engine's name leads nowhere: .invalid is reserved for that (RFC 6761)."""

    def test_it_is_told_at_once(self, lost):
        """503 with a Retry-After, or the passages; a resolver that hangs is nobody's wait."""
        for _ in range(3):
            began_s = time.monotonic()
            response = lost.post("/ask", json={"question": QUESTION, "degrade": False})
            assert time.monotonic() - began_s < 0.5 + TOLERANCE_S
            assert refused(response) == (503, "engine_unavailable")
            assert int(response.headers["retry-after"]) >= 1
        assert is_passages_only(lost.post("/ask", json={"question": QUESTION}))
        for answer in openai_answers(lost, "whatever it is called"):
            assert (answer.status_code, answer.headers["x-tidegate-degraded"]) == (200, "L3")
        assert refused(lost.get("/v1/models/any")) == (503, "engine_unavailable")
        nothing_left(lost, FakeEngine())

    def test_it_is_not_ready(self, lost):
        """`/readyz` says why."""
        response = lost.get("/readyz")
        assert response.status_code == 503
        engine = response.json()["dependencies"]["engine"]
        assert engine["status"] == "down"
        assert engine["detail"]
        assert lost.get("/healthz").status_code == 200


class TestRow11Silence:
    """The connection is there, and nothing ever comes."""

    @pytest.mark.parametrize("fault", ["silent", "deaf"])
    def test_the_first_token_timer_fires(self, broken, fault):
        """504 when the timer says so; a caller who takes less gets the passages."""
        broken.proxy.play(only=CHAT, **{fault: True})
        response, took_s = timed(broken, degrade=False)
        assert refused(response) == (504, "engine_timeout")
        assert 1.5 <= took_s < 1.5 + TOLERANCE_S
        assert is_passages_only(broken.ask())

    def test_the_deadline_fires_first(self, broken):
        """A shorter deadline ends it, on time, whatever the timer would allow."""
        broken.proxy.play(only=CHAT, silent=True)
        response, took_s = timed(broken, timeout_s=0.7)
        assert refused(response) == (504, "deadline_exceeded")
        assert 0.7 <= took_s < 0.7 + TOLERANCE_S


class TestRow12Reset:
    """RST in the middle of an answer."""

    def test_a_stream_ends_with_one_error(self, broken):
        """The caller sees the tokens that came, then one error event."""
        broken.engine.play(token_s=0.05)
        broken.proxy.play(only=CHAT, reset_after_bytes=400)
        seen = broken.events(degrade=False)
        assert seen[1][0] == "token"
        assert terminal(seen) == ("error", "engine_protocol_error")

    def test_a_whole_answer_is_an_error(self, broken):
        """Half an answer is never given as a whole one."""
        broken.engine.play(token_s=0.05)
        broken.proxy.play(only=CHAT, reset_after_bytes=400)
        assert refused(broken.ask(degrade=False)) == (502, "engine_protocol_error")


class TestRow13Drip:
    """Bytes come, and tokens do not."""

    def test_the_stall_timer_counts_tokens(self, broken):
        """A token every ten seconds is a stall after one."""
        broken.engine.play(token_s=10)
        began_s = time.monotonic()
        assert terminal(broken.events()) == ("error", "engine_timeout")
        assert time.monotonic() - began_s < 2 + TOLERANCE_S

    def test_the_deadline_holds_against_a_drip(self, broken):
        """An engine that is never silent for long is still cut off by the request's deadline."""
        broken.engine.play(tokens=["a"] * 100, token_s=0.3)
        began_s = time.monotonic()
        assert terminal(broken.events(timeout_s=1.5)) == ("error", "deadline_exceeded")
        assert time.monotonic() - began_s < 1.5 + TOLERANCE_S

    def test_dripping_headers_are_no_first_token(self, broken):
        """Ten bytes a second keep a connection busy, not a request alive."""
        broken.proxy.play(only=CHAT, drip_bytes_per_s=10)
        response, took_s = timed(broken, degrade=False)
        assert refused(response) == (504, "engine_timeout")
        assert took_s < 1.5 + TOLERANCE_S


class TestRow14Incomplete:
    """The stream ends politely, and too early."""

    @pytest.mark.parametrize("ending", ["cut", "no_reason"])
    def test_is_never_success(self, broken, ending):
        """Without [DONE] or a finish_reason an answer is an error, streamed or not."""
        broken.engine.play(ending=ending)
        assert refused(broken.ask(degrade=False)) == (502, "engine_protocol_error")
        assert terminal(broken.events(degrade=False)) == ("error", "engine_protocol_error")

    def test_a_fin_in_the_middle_is_seen(self, broken):
        """The proxy's clean end inside a chunk is no end of an answer."""
        broken.engine.play(token_s=0.05)
        broken.proxy.play(only=CHAT, cut_after_bytes=400)
        assert terminal(broken.events(degrade=False)) == ("error", "engine_protocol_error")


def data(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


def chunk(content: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return data(json.dumps({"choices": [choice]}, ensure_ascii=False, separators=(",", ":")))


END = data('{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}') + data("[DONE]")


class TestRow15Malformed:
    """Not the wire, or the wire as it may also be."""

    @pytest.mark.parametrize(
        "stream",
        [
            pytest.param([b"".join([chunk("a"), END]).replace(b"\n", b"\r\n")], id="crlf"),
            pytest.param([b": ping\n\n", chunk("a"), b": ping\n\n", END], id="comments"),
            pytest.param([chunk("a").replace(b',"delta', b',\ndata: "delta'), END], id="lines"),
            pytest.param([bytes([b]) for b in chunk("a") + END], id="bytes"),
        ],
    )
    def test_every_legal_form_is_read(self, broken, stream):
        """Line ends, comments, several data lines and any split mean the same."""
        broken.engine.raw = stream
        assert broken.ask(degrade=False).json()["answer"] == "a"

    def test_characters_survive_a_split(self, broken):
        """A character may arrive byte by byte."""
        text = "Où ? 閘門 🌊."
        broken.engine.raw = [bytes([b]) for b in chunk(text) + END]
        assert broken.ask(degrade=False).json()["answer"] == text

    @pytest.mark.parametrize(
        "stream",
        [
            pytest.param([data("{not json")], id="no-json"),
            pytest.param([data("[1, 2]"), END], id="no-object"),
            pytest.param([data('{"choices": 7}'), END], id="no-list"),
            pytest.param([b"data: \xff\xfe\n\n", END], id="no-utf8"),
            pytest.param([b"data: " + b"x" * 2_000_000], id="endless-line"),
            pytest.param([b"<html>502</html>"], id="html"),
        ],
    )
    def test_everything_else_is_one_error(self, broken, stream):
        """502 and the passages for who takes them; the endless line is not collected."""
        broken.engine.raw = stream
        assert refused(broken.ask(degrade=False)) == (502, "engine_protocol_error")
        assert is_passages_only(broken.ask())

    def test_a_garbled_frame_ends_the_stream(self, broken):
        """After the first token nonsense is an error event."""
        broken.engine.play(token_s=0.05)
        broken.proxy.play(only=CHAT, garble_frame=1)
        assert terminal(broken.events()) == ("error", "engine_protocol_error")


class TestRow16ErrorsInside:
    """HTTP 200 is not success."""

    @pytest.mark.parametrize("ending", ["error", "abort"])
    def test_before_the_first_token_it_is_a_status(self, broken, ending):
        """Nothing was shown yet: a status, or the passages."""
        broken.engine.play(tokens=[], ending=ending)
        assert refused(broken.ask(degrade=False)) == (502, "engine_protocol_error")
        assert is_passages_only(broken.ask())

    @pytest.mark.parametrize("ending", ["error", "abort"])
    def test_after_it_an_event(self, broken, ending):
        """The stream ends with the error, never with `done`."""
        broken.engine.play(token_s=0.05, ending=ending)
        assert terminal(broken.events()) == ("error", "engine_protocol_error")
