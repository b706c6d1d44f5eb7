"""Both clients against a real service: every method, and each of its paths in the OpenAPI document."""

import re

import pytest

from orchestrator.client import AsyncClient, Client, ClientError
from tests import pdfs

QUESTION = "At what water level are the gates closed?"


def documented(http):
    """(method, pattern of the path) of every route."""
    paths = http.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), re.sub(r"\{\w+\}", "[^/]+", path))
        for path, methods in paths.items()
        for method in methods
    ]


@pytest.fixture
def seen(monkeypatch):
    """(method, path) of everything that a client of either kind asks."""
    found = []
    for kind in (Client, AsyncClient):
        original = kind._send, kind._events

        def noting(method):
            def noted(self, call, **more):
                found.append((call.method, call.path))
                return method(self, call, **more)

            return noted

        monkeypatch.setattr(kind, "_send", noting(original[0]))
        monkeypatch.setattr(kind, "_events", noting(original[1]))
    return found


def all_documented(seen, http):
    routes = documented(http)
    return [
        asked
        for asked in seen
        if not any(asked[0] == m and re.fullmatch(p, asked[1]) for m, p in routes)
    ]


def test_the_one_that_waits(http, engine, shared_orchestrator, handbook, seen, tmp_path):
    """From an upload to its deletion, with a question in between."""
    path = tmp_path / "own.pdf"
    path.write_bytes(pdfs.text_pdf(["The lock of the blocking client opens at nine."]))
    with Client(shared_orchestrator.url) as client:
        document = client.wait(client.upload(path, collection="blocking").id)
        assert document.status == "ready"
        assert [d.id for d in client.documents(collection="blocking")] == [document.id]
        assert client.document(document.id).pages == 1
        answer = client.ask(QUESTION)
        assert [c.filename for c in answer.citations if c.cited] == ["handbook.pdf"]
        *_, last = client.stream(QUESTION, max_tokens=9)
        assert last.answer == answer.answer
        found = client.search("When does the lock open?", collection="blocking")
        assert found.passages[0].document_id == document.id
        with pytest.raises(ClientError) as told:
            client.retry(document.id)
        assert (told.value.code, told.value.status) == ("invalid_parameter", 422)
        assert client.ready().dependencies["engine"].status == "ok"
        assert "gate" in client.status()
        client.delete(document.id)
        with pytest.raises(ClientError) as told:
            client.document(document.id)
        assert told.value.code == "document_not_found"
    assert all_documented(seen, http) == []


async def test_the_one_that_does_not(http, engine, shared_orchestrator, handbook, seen, tmp_path):
    """The same, awaited."""
    path = tmp_path / "own.pdf"
    path.write_bytes(pdfs.text_pdf(["The lock of the other client opens at ten."]))
    async with AsyncClient(shared_orchestrator.url) as client:
        document = await client.wait((await client.upload(path, collection="other")).id)
        assert [d.id async for d in client.documents(collection="other")] == [document.id]
        answer = await client.ask(QUESTION)
        assert [c.filename for c in answer.citations if c.cited] == ["handbook.pdf"]
        events = [event async for event in client.stream(QUESTION)]
        assert events[-1].answer == answer.answer
        found = await client.search("When does the lock open?", collection="other")
        assert found.passages[0].document_id == document.id
        await client.delete(document.id)
        with pytest.raises(ClientError):
            await client.document(document.id)
    assert all_documented(seen, http) == []
