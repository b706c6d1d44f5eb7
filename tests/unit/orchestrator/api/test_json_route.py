"""The short way to routes with a JSON body: the same answers as the framework's, errors too."""

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from orchestrator.api import error_responses
from orchestrator.api.json_route import JsonRoute, ShortWay
from orchestrator.api.middleware import BodyLimit, RequestContext
from orchestrator.api.schemas import SearchRequest
from orchestrator.errors import Overloaded

JSON = {"Content-Type": "application/json"}


async def echo(body: SearchRequest, request: Request) -> Response:
    """Say what came."""
    if body.question == "full":
        raise Overloaded("full", retry_after_s=3)
    if body.question == "bug":
        raise RuntimeError("a bug")
    return JSONResponse({"question": body.question, "path": request.url.path})


def app(*, short: bool) -> ASGIApp:
    """One route, with the short way to it or without, and what is around every request."""
    made = FastAPI()
    router = APIRouter(route_class=JsonRoute)
    router.add_api_route("/echo", echo, methods=["POST"], response_model=None)
    made.include_router(router)
    error_responses.install(made)
    way = ShortWay(made, routes=router.routes if short else [])
    limited = BodyLimit(way, limits={}, default_bytes=1000)
    return RequestContext(limited, max_open=8, on_finished=seen.append)


seen: list = []
CASES = {
    "fine": {"json": {"question": "what?"}},
    "a subtype": {
        "content": b'{"question": "what?"}',
        "headers": {"Content-Type": "application/vnd.x+json; charset=utf-8"},
    },
    "not JSON": {"content": b"{", "headers": JSON},
    "not an object": {"content": b"[]", "headers": JSON},
    "not UTF-8": {"content": b'{"question": "\xff"}', "headers": JSON},
    "nothing": {"content": b"", "headers": JSON},
    "a form": {"content": b"question=x"},
    "plain text": {"content": b'{"question": "x"}', "headers": {"Content-Type": "text/plain"}},
    "a field is missing": {"json": {}},
    "a field is wrong": {"json": {"question": "x", "top_k": 0, "timeout_s": "soon"}},
    "a field is unknown": {"json": {"question": "x", "answer": "y"}},
    "not a number": {"content": b'{"question": "x", "timeout_s": NaN}', "headers": JSON},
    "too large": {"json": {"question": "x" * 2000}},
    "refused": {"json": {"question": "full"}},
    "a bug": {"json": {"question": "bug"}},
}


async def ask(made: ASGIApp, method: str = "POST", **case) -> httpx2.Response:
    transport = httpx2.ASGITransport(made)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, "/echo", **case)


@pytest.mark.parametrize("name", CASES)
async def test_the_answer_is_the_same_as_on_the_long_way(name):
    """Status, body and headers, for what is right and for everything that is not."""
    short, long = [await ask(app(short=short), **CASES[name]) for short in (True, False)]
    assert short.status_code == long.status_code
    assert short.json() == long.json()
    for header in ("retry-after", "content-type", "x-should-retry"):
        assert short.headers.get(header) == long.headers.get(header)
    assert (short.status_code == 200) == (name in {"fine", "a subtype"})
    if short.status_code != 200:
        assert short.json()["error"]["message"]


async def test_it_is_counted_under_its_route():
    """The access log and the metrics see the route, whichever way was taken."""
    seen.clear()
    for short in (True, False):
        await ask(app(short=short), json={"question": "full"})
    assert [(done.route, done.code, done.status) for done in seen] == [
        ("/echo", "overloaded", 429)
    ] * 2


async def test_another_method_is_the_frameworks():
    """Only a POST takes the short way."""
    assert (await ask(app(short=True), method="GET")).status_code == 405


async def test_the_short_way_is_taken():
    """The router is not asked: an application that breaks behind it is not noticed."""

    async def broken(scope, receive, send):
        raise AssertionError("the long way")

    router = APIRouter(route_class=JsonRoute)
    router.add_api_route("/echo", echo, methods=["POST"], response_model=None)
    short = ShortWay(broken, routes=router.routes)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(short), base_url="http://test"
    ) as client:
        assert (await client.post("/echo", json={"question": "x"})).status_code == 200
