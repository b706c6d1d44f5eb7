"""Faults of the simulator that only a real connection shows."""

import asyncio
import json

import httpx2
import pytest

from .conftest import MODEL

BODY = json.dumps({
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count."}],
    "max_tokens": 30,
    "ignore_eos": True,
    "stream": True,
}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)
END_OF_BODY = b"0\r\n\r\n"


@pytest.fixture
async def inject(simulator_url):
    """Puts a fault in force until the test is over."""
    async with httpx2.AsyncClient(base_url=simulator_url, trust_env=False) as http:

        async def put(**fault):
            answer = await http.post("/faults", json=fault)
            assert answer.status_code == 200, answer.text

        yield put
        await http.delete("/faults")


async def received(simulator_url, seconds):
    """(what came on a raw connection within the time, how it ended)."""
    url = httpx2.URL(simulator_url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(HEAD + BODY)
    got = b""
    ended = "silence"
    try:
        async with asyncio.timeout(seconds):
            while part := await reader.read(65536):
                got += part
                if got.endswith(END_OF_BODY):
                    break
            ended = "end" if got.endswith(END_OF_BODY) else "closed"
    except ConnectionResetError:
        ended = "reset"
    except TimeoutError:
        pass
    finally:
        writer.close()
    return got, ended


@pytest.mark.parametrize(
    ("fault", "ended"),
    [
        ({"kind": "reset", "chunks": 3}, "reset"),
        ({"kind": "cut", "chunks": 3}, "closed"),
        ({"kind": "garbage", "chunks": 3}, "end"),
        ({"kind": "hang"}, "silence"),
        ({"kind": "slow", "first_token_s": 60}, "silence"),
        ({"kind": "no_finish_reason"}, "end"),
    ],
)
async def test_how_a_simulators_connection_ends(simulator_url, inject, fault, ended):
    """RST, a plain close, a proper end or nothing: as the fault has it, once."""
    await inject(count=1, **fault)
    got, how = await received(simulator_url, 2 if ended == "silence" else 10)
    assert how == ended
    if fault["kind"] == "hang":
        assert got == b""
    assert b'"finish_reason": "length"' not in got
    again, how = await received(simulator_url, 10)
    assert how == "end"
    assert b'"finish_reason": "length"' in again


async def test_a_frozen_simulator_is_healthy_and_silent(simulator_url, inject):
    """Health says 200, gauges stand still, streams wait: a SIGSTOPped vLLM core."""
    await inject(kind="freeze", seconds=1.5)
    async with httpx2.AsyncClient(base_url=simulator_url, trust_env=False) as http:
        before = (await http.get("/metrics")).text
        got, how = await received(simulator_url, 0.5)
        assert how == "silence"
        assert b"data:" not in got
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/metrics")).text == before
    got, how = await received(simulator_url, 20)
    assert how == "end"
    assert b"[DONE]" in got


async def test_a_simulators_metrics_can_be_dead(simulator_url, inject):
    """The scrape fails, nothing else does."""
    await inject(kind="metrics", mode="dead")
    async with httpx2.AsyncClient(base_url=simulator_url, trust_env=False) as http:
        with pytest.raises(httpx2.TransportError):
            await http.get("/metrics")
        assert (await http.get("/health")).status_code == 200
