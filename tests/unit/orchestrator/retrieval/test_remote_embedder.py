"""A server that embeds: unit vectors in order, questions first, and errors of the tree."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from orchestrator.errors import EmbedderUnavailable, QueueFull
from orchestrator.retrieval.remote_embedder import RemoteEmbedder


class Server(ThreadingHTTPServer):
    """Embeds a text as its length and its first letter; what it answers can be replaced."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.keys = []
        self.reply = None
        self.may_go = threading.Event()
        self.may_go.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body["input"])
        self.server.keys.append(self.headers.get("Authorization"))
        self.server.may_go.wait(10)
        rows = [
            {"index": n, "embedding": [len(text), ord(text[0])]}
            for n, text in enumerate(body["input"])
        ]
        status, reply = self.server.reply or (200, {"data": rows[::-1]})
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.may_go.set()
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
async def embedder(server):
    made = RemoteEmbedder(
        base_url=server.url + "/v1", model="m", dimension=2, api_key="k", max_batch=3
    )
    yield made
    await made.aclose()


def unit(*numbers):
    return np.array(numbers) / np.linalg.norm(numbers)


async def test_vectors_come_in_the_order_of_the_texts(embedder, server):
    """Whatever the order of batches and of the server's rows; unit length; with the key."""
    texts = ["a", "bbbb", "cc", "ddddd", "eee"]
    rows = await embedder.embed_passages(texts)
    for row, text in zip(rows, texts, strict=True):
        assert row == pytest.approx(unit(len(text), ord(text[0])), abs=1e-6)
    assert sorted(map(len, server.asked)) == [2, 3]
    assert set(server.keys) == {"Bearer k"}
    assert await embedder.embed_query("xyz") == pytest.approx(unit(3, ord("x")), abs=1e-6)
    assert embedder.alive


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ((503, {}), "answered 503"),
        ((200, {"data": "none"}), "OpenAI shape"),
        ((200, {"data": [{"index": 0, "embedding": [1, 2, 3]}]}), "2 numbers each"),
        ((200, {"data": [{"index": 0, "embedding": [0, 0]}]}), "zero or no numbers"),
    ],
)
async def test_a_server_that_answers_wrong_is_told(embedder, server, reply, told):
    """Never a vector that is none."""
    server.reply = reply
    with pytest.raises(EmbedderUnavailable, match=told):
        await embedder.embed_query("text")
    assert not embedder.alive
    server.reply = None
    await embedder.embed_query("text")
    assert embedder.alive


async def test_a_server_that_is_not_there_is_told():
    """Nothing listens: the message names the address."""
    nobody = RemoteEmbedder(base_url="http://127.0.0.1:9", model="m", dimension=2)
    with pytest.raises(EmbedderUnavailable, match=r"127\.0\.0\.1:9 cannot be reached"):
        await nobody.embed_query("text", timeout_s=5)
    await nobody.aclose()


async def test_a_question_has_its_time(embedder, server):
    """A slow server is the caller's TimeoutError, as with a process of ours."""
    server.may_go.clear()
    with pytest.raises(TimeoutError):
        await embedder.embed_query("text", timeout_s=0.1)


async def test_questions_are_bounded(server):
    """The next one is refused at once."""
    embedder = RemoteEmbedder(base_url=server.url, model="m", dimension=2, max_queued=1)
    server.may_go.clear()
    first = asyncio.create_task(embedder.embed_query("one"))
    await asyncio.sleep(0.05)
    with pytest.raises(QueueFull):
        await embedder.embed_query("two")
    server.may_go.set()
    await first
    await embedder.aclose()


async def test_documents_wait_for_questions(embedder, server):
    """While a question is with the server no new batch is sent."""
    server.may_go.clear()
    question = asyncio.create_task(embedder.embed_query("question"))
    async with asyncio.timeout(10):
        while not server.asked:
            await asyncio.sleep(0.01)
    passages = asyncio.create_task(embedder.embed_passages(["passage"]))
    await asyncio.sleep(0.1)
    assert server.asked == [["question"]]
    server.may_go.set()
    await question
    await passages
    assert server.asked == [["question"], ["passage"]]
