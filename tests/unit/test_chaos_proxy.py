"""The proxy that the fault tests stand on does to connections what it says, and nothing else."""

import socket
import time
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.chaos_proxy import ChaosProxy, proxying
from tests.fake_engine import FakeEngine, serving

TOKENS = ["The gate", " closes [1]", "."]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served():
    """One engine for the file: its end takes longer than a test."""
    with serving(FakeEngine()) as engine:
        yield engine


@pytest.fixture
def fake_engine(served):
    """The engine, behaving."""
    served.play()
    return served


@pytest.fixture
def proxy(fake_engine):
    """A proxy before an engine that behaves."""
    with proxying(fake_engine.url) as running:
        yield running


def chat(proxy: ChaosProxy, **arguments) -> httpx2.Response:
    with httpx2.Client(base_url=proxy.url, timeout=2, trust_env=False) as client:
        return client.post(CHAT, json={}, **arguments)


def frames(text: str) -> list[str]:
    return [part for part in text.split("\n\n") if part]


def eventually(condition, seconds: float = 2.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_lets_everything_through_by_itself(proxy, fake_engine):
    """Without a fault an answer is byte for byte the engine's, and connections are counted."""
    direct = httpx2.post(f"{fake_engine.url}{CHAT}", json={}, trust_env=False)
    with httpx2.Client(base_url=proxy.url, trust_env=False) as client:
        assert client.post(CHAT, json={}).content == direct.content
        assert client.get("/v1/models").json()["data"][0]["id"] == "fake-model"
        assert (proxy.accepted, proxy.open) == (1, 1)
    assert eventually(lambda: proxy.open == 0)


@pytest.mark.parametrize("way", ["up_latency_s", "down_latency_s"])
def test_delays_either_way(proxy, way):
    """A latency is paid at least once in the direction that has it."""
    proxy.play(**{way: 0.2})
    began_s = time.monotonic()
    assert chat(proxy).status_code == 200
    assert time.monotonic() - began_s >= 0.2


def test_drips(proxy):
    """An answer comes no faster than it may."""
    proxy.play(drip_bytes_per_s=2000)
    began_s = time.monotonic()
    received = len(chat(proxy).content)
    assert time.monotonic() - began_s >= 0.9 * received / 2000


def test_cuts_cleanly(proxy):
    """A cut is a FIN after so many bytes, in the middle of a chunk if need be."""
    proxy.play(cut_after_bytes=300)
    received = raw_answer(proxy)
    assert len(received) == 300


def test_resets(proxy):
    """A reset is a RST, which a reader sees as an error, not as an end."""
    proxy.play(reset_after_bytes=300)
    with pytest.raises(ConnectionResetError):
        raw_answer(proxy)


def raw_answer(proxy: ChaosProxy) -> bytes:
    """Every byte up to the FIN."""
    split = urlsplit(proxy.url)
    with socket.create_connection((split.hostname, split.port), timeout=2) as client:
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        received = b""
        while data := client.recv(65536):
            received += data
        return received


@pytest.mark.parametrize("fault", ["silent", "deaf"])
def test_says_nothing(proxy, fake_engine, fault):
    """A silent proxy takes the connection, and the engine never hears of the request."""
    proxy.play(**{fault: True})
    with pytest.raises(httpx2.ReadTimeout), httpx2.Client(timeout=0.2, trust_env=False) as client:
        client.post(f"{proxy.url}{CHAT}", json={})
    assert fake_engine.requests == []


def test_refuses_and_listens_again(proxy):
    """Who refuses has no listener and no connection; afterwards the address is the same."""
    with httpx2.Client(base_url=proxy.url, timeout=2, trust_env=False) as client:
        client.get("/v1/models")
        proxy.play(refuse=True)
        assert proxy.open == 0
        with pytest.raises(httpx2.ConnectError):
            chat(proxy)
        proxy.play()
        assert chat(proxy).status_code == 200


def test_garbles_one_frame(proxy):
    """One frame is no JSON any more; those around it are whole."""
    proxy.play(garble_frame=1)
    seen = frames(chat(proxy).text)
    assert ["{" in frame for frame in seen[:3]] == [True, False, True]


def test_duplicates_one_frame(proxy):
    """One frame comes twice."""
    proxy.play(duplicate_frame=0)
    seen = frames(chat(proxy).text)
    assert seen[0] == seen[1] != seen[2]


def test_means_only_the_requests_it_is_told_to(proxy):
    """A fault for one route leaves the others alone, on one connection too."""
    proxy.play(only=b"POST /v1/chat", silent=True)
    with httpx2.Client(base_url=proxy.url, timeout=0.2, trust_env=False) as client:
        assert client.get("/v1/models").status_code == 200
        with pytest.raises(httpx2.ReadTimeout):
            client.post(CHAT, json={})


def test_a_client_that_leaves_is_passed_on(proxy, fake_engine):
    """The engine sees the client's end, so that aborts are seen through the proxy."""
    fake_engine.play(tokens=["a"] * 1000, token_s=0.05)
    with (
        httpx2.Client(base_url=proxy.url, trust_env=False) as client,
        client.stream("POST", CHAT, json={}),
    ):
        assert eventually(lambda: fake_engine.running == 1)
    assert eventually(lambda: fake_engine.running == 0)
