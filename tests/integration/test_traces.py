"""One question, one trace: seen by a collector that speaks OTLP over HTTP."""

import re
import threading
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import openai
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests import pdfs
from tests.fake_engine import MODEL, FakeEngine, serving
from tests.faults import PATIENCE_S, SMALL, wait_until
from tests.running import orchestrator

RULES = pdfs.text_pdf(["The northern gate closes at a water level of four metres."])
QUESTION = "At what water level does the northern gate close?"
PHASES = {"gate", "embeddings", "search", "prompt", f"chat {MODEL}", "first token"}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """What was sent, span by span."""

    def __init__(self):
        self.spans = []

    def of(self, name):
        return [span for span in self.spans if span.name == name]

    def traces(self):
        """Spans by the trace that they are of."""
        found = defaultdict(list)
        for span in self.spans:
            found[span.trace_id.hex()].append(span)
        return found


@contextmanager
def collecting():
    """(where it listens, what came)."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                raise AssertionError("not asked for")
            request = ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    collector.spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", collector
        server.shutdown()


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    with (
        collecting() as (url, collector),
        serving(FakeEngine()) as engine,
        orchestrator(
            tmp_path_factory.mktemp("traces"),
            engine.url,
            **SMALL,
            embedder_url=engine.url,
            traces_url=url,
        ) as running,
        httpx2.Client(base_url=running.url, timeout=PATIENCE_S, trust_env=False) as http,
    ):
        assert http.post("/upload?wait=true", files={"file": ("rules.pdf", RULES)}).is_success
        yield http, collector, engine


def attributes(span):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_question_is_one_trace_with_every_phase(traced):
    """Gate, embedding, search, prompt, first token, engine: all below the question."""
    http, collector, _ = traced
    collector.spans.clear()
    answer = http.post("/ask", json={"question": QUESTION}, headers={"X-Request-ID": "mine"})
    assert answer.is_success
    assert wait_until(lambda: collector.of("ask"))
    [(_, spans)] = collector.traces().items()
    [root] = [span for span in spans if span.name == "ask"]
    assert attributes(root)["tidegate.request_id"] == "mine"
    assert {span.name for span in spans} == PHASES | {"ask"}
    by_id = {span.span_id: span for span in spans}
    [engine] = collector.of(f"chat {MODEL}")
    for span in spans:
        if span is not root:
            parent = engine if span.name == "first token" else root
            assert by_id[span.parent_span_id] is parent, span.name
            assert root.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= root.end_time_unix_nano
    said = attributes(engine)
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == MODEL
    assert said["gen_ai.usage.output_tokens"] == 3


def test_it_goes_on_from_the_callers_and_into_the_engines(traced):
    """W3C's header comes in, and goes out under the engine's own span."""
    http, collector, engine = traced
    collector.spans.clear()
    header = f"00-{TRACE_ID}-b7ad6b7169203331-01"
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    assert http.post("/v1/chat/completions", json=body, headers={"traceparent": header}).is_success
    assert wait_until(lambda: collector.of("chat"))
    assert set(collector.traces()) == {TRACE_ID}
    [called] = collector.of(f"chat {MODEL}")
    sent = engine.headers[-1]["traceparent"]
    assert re.fullmatch(rf"00-{TRACE_ID}-{called.span_id.hex()}-01", sent)


def test_no_text_is_in_it(traced):
    """Neither the question, nor the document, nor the answer."""
    http, collector, _ = traced
    http.post("/ask", json={"question": "Is zanzibar the password of the northern gate?"})
    assert wait_until(lambda: collector.of("ask"))
    everything = "".join(str(span) for span in collector.spans)
    for text in ("zanzibar", "northern", "four metres", "The gate"):
        assert text not in everything


def test_a_failure_is_told_by_its_code(traced):
    """On the phase that failed, and on the whole."""
    http, collector, engine = traced
    collector.spans.clear()
    engine.play(statuses=[(400, {"error": {"message": "no"}}, {})])
    assert http.post("/ask", json={"question": QUESTION, "degrade": False}).is_error
    engine.play()
    assert wait_until(lambda: collector.of("ask"))
    [root] = collector.of("ask")
    assert attributes(root)["error.type"] == "engine_rejected"
    assert attributes(collector.of(f"chat {MODEL}")[0])["error.type"] == "engine_rejected"


def test_a_collector_that_is_away_costs_nothing(tmp_path):
    """Answers come as ever, and the end is not held up."""
    with (
        serving(FakeEngine()) as engine,
        orchestrator(
            tmp_path,
            engine.url,
            **SMALL,
            embedder_url=engine.url,
            traces_url="http://127.0.0.1:9/v1/traces",
        ) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="none") as client,
        httpx2.Client(base_url=running.url, timeout=PATIENCE_S, trust_env=False) as http,
    ):
        assert http.post("/upload?wait=true", files={"file": ("rules.pdf", RULES)}).is_success
        messages = [{"role": "user", "content": QUESTION}]
        assert client.chat.completions.create(model=MODEL, messages=messages).choices
        assert running.stop() == 0
