"""The control API, over a status made by hand, and served for real."""

import asyncio
import dataclasses

import httpx2
import pytest

from model_server.control import ControlServer, control_app
from model_server.lifecycle import State, Status
from model_server.probe import listen

READY = Status(
    state=State.READY,
    phase="ready",
    engine_url="http://127.0.0.1:8000",
    model="m",
    restarts=2,
    since_s=1.5,
    pid=42,
    kv_tokens_planned=1000,
    kv_tokens_reported=990,
    last_error=None,
)


def client(status, plan=None):
    """A client of the control API that shows `status`."""
    app = control_app(status=lambda: status, plan=lambda: plan or {})
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://control")


async def test_alive_whatever_the_engine_does():
    """/healthz is 200 even while the engine has failed."""
    async with client(dataclasses.replace(READY, state=State.FAILED)) as control:
        assert (await control.get("/healthz")).status_code == 200


@pytest.mark.parametrize("state", list(State))
async def test_ready_only_while_the_engine_is(state):
    """/readyz is 200 in the state READY alone, and names the state."""
    async with client(dataclasses.replace(READY, state=state, phase="p")) as control:
        answer = await control.get("/readyz")
    assert answer.status_code == (200 if state is State.READY else 503)
    assert answer.json() == {"ready": state is State.READY, "state": str(state), "phase": "p"}


async def test_the_state_has_every_figure():
    """/state is the whole status."""
    async with client(READY) as control:
        assert (await control.get("/state")).json() == {
            "state": "ready",
            "phase": "ready",
            "engine_url": "http://127.0.0.1:8000",
            "model": "m",
            "restarts": 2,
            "since_s": 1.5,
            "pid": 42,
            "kv_tokens_planned": 1000,
            "kv_tokens_reported": 990,
            "last_error": None,
        }


async def test_the_plan_is_shown():
    """/plan is what was planned."""
    async with client(READY, {"rows": [{"what": "weights"}]}) as control:
        assert (await control.get("/plan")).json() == {"rows": [{"what": "weights"}]}


async def test_it_serves_on_a_given_socket_and_stops():
    """The real server answers on the socket it was given, and returns once told to stop."""
    app = control_app(status=lambda: READY, plan=dict)
    with listen("127.0.0.1", 0, variable="X") as listener:
        server = ControlServer(app, listener=listener)
        serving = asyncio.create_task(server.run_until_stopped())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx2.AsyncClient(trust_env=False) as control:
            assert (await control.get(f"{url}/readyz")).status_code == 200
        server.stop()
        await asyncio.wait_for(serving, 5)
