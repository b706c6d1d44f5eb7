"""How the kernel watches over a connection to an engine, read from the connection itself."""

import os
import socket
from contextlib import ExitStack, aclosing
from urllib.parse import urlsplit

import psutil
import pytest

from orchestrator.domain import Message
from orchestrator.generation.engine_client import EngineClient, EngineRequest, EngineTimeouts
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.retry import RetryBudget, RetryPolicy
from tests.fake_engine import MODEL

REQUEST = EngineRequest(model=MODEL, messages=[Message("user", "hi")], max_tokens=7)
PROMISED = {
    "TCP_NODELAY": 1,
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,  # in milliseconds
}
"""A vanished machine is noticed after 5 + 3 x 5 s, whether we wait for it or are sending to it."""


@pytest.fixture
async def client(fake_engine):
    client = EngineClient(
        base_url=fake_engine.url,
        timeouts=EngineTimeouts(connect_s=5, first_token_s=5, stall_s=5),
        retry=RetryPolicy(attempts=1),
        breaker=CircuitBreaker(name="engine", policy=BreakerPolicy()),
        budget=RetryBudget(),
        max_concurrent=1,
    )
    yield client
    await client.aclose()


def connections_to(stack: ExitStack, port: int) -> list[socket.socket]:
    """This process' ends of its connections to that port; both ends of each are in this process."""
    return [
        stack.enter_context(socket.socket(fileno=os.dup(connection.fd)))
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and connection.raddr.port == port
    ]


def options(ours: socket.socket) -> dict[str, int]:
    """What is set of what is promised, as far as this system knows it; Linux knows it all."""
    known = [name for name in PROMISED if hasattr(socket, name)]
    assert known
    return {name: ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in known}


async def test_every_connection_is_watched(client, fake_engine):
    """That of an answer and that of another page: keepalive, and a limit for what is not confirmed."""
    fake_engine.play(ending="hang")
    port = urlsplit(fake_engine.url).port
    async with aclosing(client.stream(REQUEST, Deadline(5))) as answer:
        await anext(answer)
        await client.pages.models()  # on a connection of its own
        with ExitStack() as stack:
            opened = connections_to(stack, port)
            assert len(opened) == 2
            for ours in opened:
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
                found = options(ours)
                assert found == {name: PROMISED[name] for name in found}
