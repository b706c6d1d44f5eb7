"""The clients against a service that is played: what they send, when they come back, what they raise."""

import asyncio
import inspect
import json
from typing import get_type_hints

import httpx2
import pytest

from orchestrator.api.schemas import (
    AskRequest,
    AskResponse,
    QueuedOut,
    SearchRequest,
    TokenOut,
)
from orchestrator.client import (
    AskOptions,
    AsyncClient,
    Client,
    ClientError,
    SearchOptions,
    blocking,
    nonblocking,
    wire,
)

ANSWER = {
    "answer": "Four metres [1].",
    "citations": [],
    "degraded": None,
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    "timings_ms": {"queue": 0, "retrieve": 1, "first_token": 2, "total": 3},
    "request_id": "r",
}
DOCUMENT = {
    "id": "doc-1",
    "collection": "default",
    "filename": "a.pdf",
    "status": "ready",
    "size_bytes": 9,
    "pages": 1,
    "pages_done": 1,
    "chunks": 1,
    "warning": None,
    "replaces": None,
    "error": None,
    "created_at": 1.0,
}


def error(status, code="queue_full", **headers):
    body = {"error": {"message": "Not now.", "type": "t", "code": code, "param": None}}
    return httpx2.Response(
        status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


def events(*named):
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in named)
    return httpx2.Response(200, text=text, headers={"content-type": "text/event-stream"})


class Service:
    """Answers with what was laid out, in order, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Asked:
    """A client of either kind, asked as if it were the one that waits."""

    def __init__(self, kind, transport, monkeypatch, **options):
        arguments = wire.client_arguments

        def with_transport(*given):
            return arguments(*given) | {"transport": transport}

        self.waits = []
        for module in (blocking, nonblocking):
            monkeypatch.setattr(module, "client_arguments", with_transport)
        monkeypatch.setattr(blocking.time, "sleep", self.waits.append)
        monkeypatch.setattr(nonblocking.asyncio, "sleep", self._asleep)
        self._kind = kind
        self._options = options

    async def _asleep(self, seconds):
        self.waits.append(seconds)

    def __getattr__(self, name):
        def call(*arguments, **options):
            if self._kind is Client:
                with Client("http://t", **self._options) as client:
                    found = getattr(client, name)(*arguments, **options)
                    return list(found) if inspect.isgenerator(found) else found
            return asyncio.run(self._awaited(name, arguments, options))

        return call

    async def _awaited(self, name, arguments, options):
        async with AsyncClient("http://t", **self._options) as client:
            found = getattr(client, name)(*arguments, **options)
            if inspect.isasyncgen(found):
                return [one async for one in found]
            return await found


@pytest.fixture(params=[Client, AsyncClient], ids=["blocking", "nonblocking"])
def asked(request, monkeypatch):
    def made(service, **options):
        transport = httpx2.MockTransport(service)
        return Asked(request.param, transport, monkeypatch, **options)

    return made


def test_both_have_the_same_methods():
    """With the same arguments, so that one can take the other's place."""

    def public(kind):
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert public(Client) == public(AsyncClient)


def test_an_answer_has_its_shape(asked):
    """And what was asked went out as it is called in the document."""
    service = Service(httpx2.Response(200, json=ANSWER))
    answer = asked(service, key="tg_1").ask("How high?", collection="c", max_tokens=5)
    assert isinstance(answer, AskResponse)
    assert answer.usage.completion_tokens == 2
    [request] = service.requests
    assert json.loads(request.content) == {
        "question": "How high?",
        "collection": "c",
        "max_tokens": 5,
        "stream": False,
    }
    assert request.headers["authorization"] == "Bearer tg_1"


def test_a_stream_is_events(asked):
    """In their shapes; those of a newer service are passed over."""
    service = Service(
        events(
            ("queued", {"position": 2, "eta_s": None}),
            ("novel", {"x": 1}),
            ("token", {"text": "Four"}),
            ("done", ANSWER),
        )
    )
    found = asked(service).stream("How high?")
    assert [type(event) for event in found] == [QueuedOut, TokenOut, AskResponse]


def test_a_stream_that_breaks_off_raises_what_was_told(asked):
    """By its code, with the time to come back."""
    broken = {"error": {"message": "It died.", "code": "engine_unavailable", "retry_after_s": 5.0}}
    service = Service(events(("token", {"text": "Four"}), ("error", broken)))
    with pytest.raises(ClientError, match="It died") as told:
        asked(service).stream("How high?")
    assert told.value.code == "engine_unavailable"
    assert told.value.retry_after_s == 5.0


@pytest.mark.parametrize("stream", [False, True])
def test_it_comes_back_when_it_was_told_to(asked, stream):
    """After the time that was told, to the millisecond where that was told, too."""
    last = events(("done", ANSWER)) if stream else httpx2.Response(200, json=ANSWER)
    service = Service(
        error(429, retry_after="7"), error(503, retry_after="9", retry_after_ms="8500"), last
    )
    client = asked(service)
    (client.stream if stream else client.ask)("How high?")
    assert client.waits == [7.0, 8.5]
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {}),
        (429, {"retry_after": "5", "x_should_retry": "false"}),
        (400, {"retry_after": "5"}),
        (500, {"retry_after": "5"}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_it_does_not_come_back_otherwise(asked, status, headers, stream):
    """Nobody said that it would help."""
    client = asked(Service(error(status, **headers)))
    with pytest.raises(ClientError) as told:
        (client.stream if stream else client.ask)("How high?")
    assert told.value.status == status
    assert client.waits == []


def test_it_gives_up_in_the_end(asked):
    """And says when it may be tried again."""
    service = Service(*[error(429, retry_after="2")] * 3)
    client = asked(service)
    with pytest.raises(ClientError) as told:
        client.ask("How high?")
    assert (told.value.code, told.value.retry_after_s) == ("queue_full", 2.0)
    assert client.waits == [2.0, 2.0]


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_answers(asked, stream):
    """Told at once, with what to do."""
    client = asked(Service(httpx2.ConnectError("refused")))
    with pytest.raises(ClientError, match="make run") as told:
        (client.stream if stream else client.ask)("How high?")
    assert told.value.code == "unreachable"


def test_an_upload_tells_how_far_it_is(asked, tmp_path):
    """Byte by byte, and is followed until it is ready."""
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.4 and more")
    seen = []
    service = Service(
        httpx2.Response(
            202, json={"documents": [DOCUMENT | {"status": "queued", "duplicate": False}]}
        ),
        events(("document", DOCUMENT | {"status": "parsing"}), ("document", DOCUMENT)),
    )
    client = asked(service)
    document = client.upload(path, collection="c", on_bytes=seen.append)
    assert document.status == "queued"
    assert sum(seen) == path.stat().st_size
    body = service.requests[0].content
    assert path.read_bytes() in body
    assert b'name="collection"' in body
    assert client.wait(document.id).status == "ready"


def test_lists_are_turned_page_by_page(asked):
    """Until there is no next one."""
    pages = [
        {"documents": [DOCUMENT], "next": "doc-1"},
        {"documents": [DOCUMENT | {"id": "doc-0"}], "next": None},
    ]
    service = Service(*(httpx2.Response(200, json=page) for page in pages))
    found = asked(service).documents(collection="c", status="ready")
    assert [d.id for d in found] == ["doc-1", "doc-0"]
    assert service.requests[1].url.params["after"] == "doc-1"


def test_orders_without_an_answer(asked):
    """A deletion gives nothing; what is asked by path gives its JSON, ready or not."""
    ready = {"status": "down", "dependencies": {}}
    service = Service(
        httpx2.Response(204), httpx2.Response(503, json=ready), httpx2.Response(200, json=DOCUMENT)
    )
    client = asked(service)
    assert client.delete("doc-1") is None
    assert client.ready().status == "down"
    assert client.retry("doc-1").id == "doc-1"
    assert [r.method for r in service.requests] == ["DELETE", "GET", "POST"]


def test_an_answer_that_is_none(asked):
    """A proxy's page instead of ours is told by its status."""
    with pytest.raises(ClientError, match="502"):
        asked(Service(httpx2.Response(502, text="<html>"))).ask("How high?")


@pytest.mark.parametrize(
    ("options", "request_shape"),
    [(AskOptions, AskRequest), (SearchOptions, SearchRequest)],
)
def test_options_are_those_of_the_document(options, request_shape):
    """Each field that a question may carry can be said, and no other."""
    fields = set(request_shape.model_fields) - {"question", "stream"}
    assert set(get_type_hints(options)) == fields
