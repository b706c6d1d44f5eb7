"""What a shutdown says to requests that it cannot wait for."""

import asyncio
import json

import pytest

from orchestrator.api.draining import Draining


class Client:
    """The far end of one request: what it got."""

    def __init__(self, draining, path="/ask", *, deaf=False):
        self.sent = []
        self.deaf = deaf
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": [], "state": {}}
        self.task = asyncio.create_task(draining(self.scope, self.receive, self.send))

    async def receive(self):
        await asyncio.Event().wait()

    async def send(self, message):
        if self.deaf:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def body(self):
        return b"".join(m.get("body", b"") for m in self.sent[1:]).decode()

    @property
    def complete(self):
        return not self.sent[-1].get("more_body", False)


class App:
    """Answers as its next script says, and goes on when it is told to."""

    def __init__(self):
        self.go_on = asyncio.Event()
        self.content_type = ""
        self.stubborn = False

    async def __call__(self, scope, receive, send):
        if self.content_type:
            headers = [(b"content-type", self.content_type.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"begun;", "more_body": True})
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            if not self.stubborn:
                raise
        if not self.content_type:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


@pytest.fixture
def app():
    return App()


@pytest.fixture
def draining(app):
    return Draining(app)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_finishes_is_left_alone(app, draining):
    """A running answer ends as if nothing had happened, and then nobody is left."""
    client = Client(draining)
    await settle()
    draining.begin()
    emptied = asyncio.create_task(draining.emptied())
    await settle()
    assert not emptied.done()
    app.go_on.set()
    await client.task
    await emptied
    assert (client.status, client.body) == (200, "done")
    assert await draining.finish() == 0


async def test_nobody_new_is_let_in(app, draining):
    """Once it drains a new request is 503 with a time to come back; probes are still served."""
    draining.begin()
    client, probe = Client(draining), Client(draining, "/healthz")
    await client.task
    assert client.status == 503
    assert (b"retry-after", b"5") in client.sent[0]["headers"]
    assert json.loads(client.body)["error"]["code"] == "not_ready"
    app.go_on.set()
    await probe.task
    assert probe.status == 200


@pytest.mark.parametrize(
    ("path", "start"), [("/ask", "event: error\ndata: {"), ("/v1/chat/completions", "data: {")]
)
async def test_a_stream_ends_with_an_error_event(app, draining, path, start):
    """In the shape of its route, as the last thing that is sent."""
    app.content_type = "text/event-stream; charset=utf-8"
    client = Client(draining, path)
    await settle()
    draining.begin()
    assert await draining.finish() == 1
    await client.task
    begun, said = client.body.split(";", 1)
    assert begun == "begun"
    assert said.startswith(start)
    assert '"code":"not_ready"' in said
    assert client.complete
    assert client.scope["state"]["outcome"] == "not_ready"


async def test_an_answer_that_has_not_begun_is_503(app, draining):
    """The application's own answer, should it still come, is not sent after that."""
    app.stubborn = True
    client = Client(draining)
    await settle()
    draining.begin()
    await draining.finish()
    await client.task
    assert client.status == 503
    assert client.complete
    assert len(client.sent) == 2


async def test_half_a_file_is_cut_off(app, draining):
    """Nothing can be said inside of it; the length tells the client that it is not whole."""
    app.content_type = "application/pdf"
    client = Client(draining)
    await settle()
    draining.begin()
    await draining.finish()
    await client.task
    assert client.body == "begun;"


async def test_a_client_that_does_not_read_holds_nobody_up(draining):
    """The last words have half a second, for all together."""
    deaf, other = Client(draining, deaf=True), Client(draining)
    await settle()
    draining.begin()
    async with asyncio.timeout(5):
        assert await draining.finish() == 2
        await asyncio.gather(deaf.task, other.task)
    assert other.status == 503


async def test_a_cancellation_of_another_kind_stays_one(draining):
    """Only requests that were told are ended quietly."""
    client = Client(draining)
    await settle()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
