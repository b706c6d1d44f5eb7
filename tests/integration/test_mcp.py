"""The MCP server behind `/mcp`, and the one on stdio, asked by the SDK's own client."""

import asyncio
import base64
import os
import sys
from contextlib import asynccontextmanager

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests import pdfs
from tests.examples import ROOT
from tests.fake_engine import FakeEngine, serving
from tests.faults import PATIENCE_S, SMALL, wait_until
from tests.running import orchestrator

from .test_keys import Service

RULES = pdfs.text_pdf(["The northern gate closes at a water level of four metres."])
QUESTION = "At what water level does the northern gate close?"
TOOLS = {"search_documents", "ask", "list_documents", "add_document"}
AGENTS = 50
PLACES = 4
LIMITS = {"max_concurrent_requests": str(PLACES), "max_queued_requests": "12"}
"""A third of what fifty agents want."""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """An orchestrator without keys."""
    data_dir = tmp_path_factory.mktemp("mcp")
    with (
        serving(FakeEngine()) as engine,
        orchestrator(
            data_dir,
            engine.url,
            **SMALL,
            embedder_url=engine.url,
            **LIMITS,
        ) as running,
    ):
        made = Service(running.url, data_dir, engine)
        with made.client("nobody") as http:
            added = http.post("/upload?wait=true", files={"file": ("rules.pdf", RULES)})
            assert added.status_code == 200
        yield made


@pytest.fixture
def engine(service):
    service.engine.play()
    return service.engine


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """An orchestrator with two owners."""
    data_dir = tmp_path_factory.mktemp("mcp-keys")
    with (
        serving(FakeEngine()) as engine,
        orchestrator(data_dir, engine.url, **SMALL, **LIMITS, embedder_url=engine.url) as running,
    ):
        made = Service(running.url, data_dir, engine)
        for name in ("ann", "bob"):
            made.make_key(name)
        with made.client("nobody") as http:  # until then the door is open, and nobody has an owner
            assert wait_until(lambda: http.get("/v1/models").status_code == 401)
        for name in ("ann", "bob"):
            with made.client(name) as http:
                added = http.post("/upload?wait=true", files={"file": ("rules.pdf", RULES)})
                assert added.status_code == 200
        yield made


@asynccontextmanager
async def over_http(url, key="", **options):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=PATIENCE_S, trust_env=False) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), **options) as client,
    ):
        yield client


@asynccontextmanager
async def over_stdio(url, key="", **options):
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "orchestrator", "mcp", "--url", url, *(["--key", key] if key else [])],
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))},
    )
    async with Client(server, **options) as client:
        yield client


def text_of(result):
    [content] = result.content
    return content.text


WAYS = pytest.mark.parametrize("connected", [over_http, over_stdio], ids=["http", "stdio"])


class TestTools:
    """What an agent can do."""

    @WAYS
    async def test_are_listed(self, service, connected):
        """With what each takes."""
        async with connected(service.url) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == TOOLS
        assert "question" in tools["ask"].input_schema["required"]
        assert tools["ask"].annotations.read_only_hint

    @pytest.mark.parametrize("mode", ["legacy", "auto"])
    async def test_older_and_newer_clients(self, service, engine, mode):
        """By the handshake of the older protocol, and without any."""
        async with over_http(service.url, mode=mode) as client:
            found = await client.call_tool("ask", {"question": QUESTION})
        assert not found.is_error

    @WAYS
    async def test_search_gives_passages(self, service, connected):
        """For people, and as data."""
        async with connected(service.url) as client:
            found = await client.call_tool("search_documents", {"question": QUESTION})
        assert "[rules.pdf, page 1]" in text_of(found)
        assert found.structured_content["passages"][0]["page"] == 1

    @WAYS
    async def test_ask_answers_with_sources(self, service, engine, connected):
        """The mark, and the page behind it."""
        async with connected(service.url) as client:
            found = await client.call_tool("ask", {"question": QUESTION})
        assert text_of(found) == "The gate closes [1].\n\nSources:\n[1] rules.pdf, page 1"
        assert found.structured_content["citations"][0]["cited"]

    @WAYS
    async def test_a_pdf_is_added_and_listed(self, service, connected, tmp_path):
        """Inside the call over HTTP, by its path on stdio."""
        data = pdfs.text_pdf([f"The ferry Alice came by {connected.__name__}."])
        path = tmp_path / "ferry.pdf"
        path.write_bytes(data)
        given = (
            {"path": str(path)}
            if connected is over_stdio
            else {"filename": "ferry.pdf", "content_base64": base64.b64encode(data).decode()}
        )
        async with connected(service.url) as client:
            found = await client.call_tool("add_document", given | {"collection": "ferries"})
            assert not found.is_error, text_of(found)
            new = found.structured_content["id"]

            async def is_ready():
                listed = await client.call_tool("list_documents", {"collection": "ferries"})
                states = {d["id"]: d["status"] for d in listed.structured_content["documents"]}
                return states[new] == "ready"

            async with asyncio.timeout(PATIENCE_S):
                while not await is_ready():
                    await asyncio.sleep(0.05)

    @pytest.mark.parametrize(
        ("tool", "arguments", "code"),
        [
            ("ask", {}, "invalid_parameter"),
            ("ask", {"question": "  "}, "invalid_parameter"),
            ("ask", {"question": QUESTION, "top_k": "five"}, "invalid_parameter"),
            ("ask", {"question": QUESTION, "wrong": 1}, "invalid_parameter"),
            ("ask", {"question": QUESTION, "collection": "nobodys"}, "collection_not_found"),
            (
                "search_documents",
                {"question": QUESTION, "document_ids": ["x"]},
                "document_not_found",
            ),
            ("list_documents", {"after": "x"}, "document_not_found"),
            ("unknown", {}, "invalid_parameter"),
        ],
    )
    async def test_a_mistake_is_told(self, service, tool, arguments, code):
        """As a result that a model can read, with the code."""
        async with over_http(service.url) as client:
            found = await client.call_tool(tool, arguments)
        assert found.is_error
        assert found.structured_content["error"]["code"] == code

    async def test_a_mistake_is_told_on_stdio(self, service):
        """By us before anybody is asked, or by the service."""
        wrong = [({}, "invalid_parameter"), ({"collection": "nobodys"}, "collection_not_found")]
        async with over_stdio(service.url) as client:
            for more, code in wrong:
                asked = {"question": QUESTION} | more if more else {}
                found = await client.call_tool("ask", asked)
                assert found.is_error
                assert found.structured_content["error"]["code"] == code

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            ("not base64!", "invalid_parameter"),
            (base64.b64encode(b"no pdf").decode(), "not_a_pdf"),
        ],
    )
    async def test_a_bad_file_is_told(self, service, content, code):
        """Whatever is wrong with it."""
        given = {"filename": "a.pdf", "content_base64": content}
        async with over_http(service.url) as client:
            found = await client.call_tool("add_document", given)
        assert found.structured_content["error"]["code"] == code

    async def test_stdio_says_when_nothing_answers(self):
        """And what to do."""
        async with over_stdio("http://127.0.0.1:9") as client:
            found = await client.call_tool("ask", {"question": QUESTION})
        assert found.structured_content["error"]["code"] == "unreachable"
        assert "make run" in text_of(found)


class TestUnderLoad:
    """The gate holds on this door, too."""

    async def test_fifty_agents_are_answered_or_told(self, service, engine):
        """At three times what may run and wait; nothing is left behind."""
        engine.play(token_s=0.05)

        async def agent(n):
            async with over_http(service.url) as client:
                return await client.call_tool("ask", {"question": f"{QUESTION} ({n})"})

        found = await asyncio.gather(*(agent(n) for n in range(AGENTS)))
        answered = [r for r in found if not r.is_error]
        refused = [r.structured_content["error"] for r in found if r.is_error]
        assert len(answered) + len(refused) == AGENTS
        assert len(answered) >= PLACES
        assert {e["code"] for e in refused} <= {"queue_full", "queue_timeout", "overloaded"}
        assert all(e["retry_after_s"] >= 1 for e in refused)
        assert engine.peak <= PLACES
        with service.client("nobody") as http:
            gate = lambda: http.get("/status").json()["gate"]  # noqa: E731 - asked twice below
            assert wait_until(lambda: gate()["running"] == 0 and gate()["queued"] == 0)

    async def test_a_light_key_is_served_beside_them(self, locked):
        """Fifty agents of one key that never stop, and a few calls of another."""
        locked.engine.play(token_s=0.05)
        over = asyncio.Event()

        async def hog():
            async with over_http(locked.url, locked.keys["ann"]) as client:
                while not over.is_set():
                    await client.call_tool("ask", {"question": QUESTION})

        async with asyncio.TaskGroup() as hogs:
            for _ in range(AGENTS):
                hogs.create_task(hog())
            async with over_http(locked.url, locked.keys["bob"]) as client:
                found = [await client.call_tool("ask", {"question": QUESTION}) for _ in range(10)]
            over.set()
        served = [result for result in found if not result.is_error]
        assert len(served) >= 9, [text_of(result) for result in found if result.is_error]

    async def test_who_leaves_is_not_answered(self, service, engine):
        """The engine's request ends with the client's."""
        engine.play(tokens=["word "] * 400, token_s=0.05)
        asked = asyncio.create_task(self._ask(service.url))
        async with asyncio.timeout(PATIENCE_S):
            while not engine.running:
                await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.wait({asked})
        assert wait_until(lambda: engine.running == 0)

    async def _ask(self, url):
        async with over_http(url) as client:
            await client.call_tool("ask", {"question": QUESTION})


class TestKeys:
    """Whose documents an agent sees."""

    @WAYS
    async def test_without_a_key_nothing_is_done(self, locked, connected):
        """Over HTTP nobody gets in; on stdio the tool says why."""
        if connected is over_http:
            async with httpx2.AsyncClient(trust_env=False) as http:
                answer = await http.post(f"{locked.url}/mcp", json={})
            assert answer.status_code == 401
            return
        async with connected(locked.url) as client:
            found = await client.call_tool("ask", {"question": QUESTION})
        assert found.structured_content["error"]["code"] == "invalid_api_key"

    @WAYS
    async def test_a_second_key_sees_nothing_of_the_first(self, locked, connected):
        """Neither in lists, nor by search, nor by id."""
        data = pdfs.text_pdf([f"The password is zanzibar, said {connected.__name__}."])
        with locked.client("ann") as http:
            added = http.post(
                "/upload?wait=true",
                files={"file": ("secret.pdf", data)},
                data={"collection": "own"},
            )
            mine = added.json()["documents"][0]["id"]
        async with connected(locked.url, locked.keys["ann"]) as client:
            listed = await client.call_tool("list_documents", {"collection": "own"})
            assert mine in text_of(listed)
        async with connected(locked.url, locked.keys["bob"]) as client:
            listed = await client.call_tool("list_documents", {})
            assert mine not in text_of(listed)
            for arguments in ({"collection": "own"}, {"document_ids": [mine]}):
                for tool in ("ask", "search_documents"):
                    found = await client.call_tool(
                        tool, {"question": "What is the password?"} | arguments
                    )
                    assert found.is_error
                    assert "zanzibar" not in text_of(found)
