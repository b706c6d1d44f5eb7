"""The control API, over a status made by hand, and served for real."""

import asyncio
import dataclasses

import httpx2
import pytest

from model_server.control import Access, ControlServer, control_app
from model_server.lifecycle import State, Status, Unload
from model_server.probe import listen

READY = Status(
    state=State.READY,
    phase="ready",
    engine_url="http://127.0.0.1:8000",
    model="m",
    starts=4,
    restarts=2,
    hangs=1,
    wakes=1,
    unloads=1,
    waking=False,
    since_s=1.5,
    start_s=30.0,
    pid=42,
    kv_tokens_planned=1000,
    kv_tokens_reported=990,
    last_unload=Unload(engine_bytes=100, freed_bytes=95),
    last_error=None,
)


class FakeKeeper:
    """Shows one status, and keeps what it was told to do."""

    def __init__(self, status):
        self._status = status
        self.orders = []

    def status(self):
        return self._status

    def request_sleep(self):
        self.orders.append("sleep")
        return self._status.state is State.READY

    def request_wake(self):
        self.orders.append("wake")

    def request_stop(self):
        self.orders.append("drain")


def app_of(keeper, plan=None, *, key="", local=True):
    """The control API over `keeper`."""
    access = Access(key=key, local=local)
    return control_app(
        keeper=keeper,
        plan=lambda: plan or {},
        metrics=lambda: "up 1\n",
        pressure=lambda: "none",
        access=access,
    )


def client(status, plan=None):
    """A client of the control API that shows `status`."""
    return client_of(app_of(FakeKeeper(status), plan))


def client_of(app):
    """A client of this control API."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://control")


async def test_alive_whatever_the_engine_does():
    """/healthz is 200 even while the engine has failed."""
    async with client(dataclasses.replace(READY, state=State.FAILED)) as control:
        assert (await control.get("/healthz")).status_code == 200


@pytest.mark.parametrize("state", list(State))
async def test_ready_only_while_the_engine_is_or_can_be(state):
    """/readyz is 200 while the engine is ready or can be woken, and names the state."""
    async with client(dataclasses.replace(READY, state=state, phase="p")) as control:
        answer = await control.get("/readyz")
    assert answer.status_code == (200 if state in {State.READY, State.SLEEPING} else 503)
    assert answer.json() == {
        "ready": state in {State.READY, State.SLEEPING},
        "state": str(state),
        "phase": "p",
    }


async def test_the_state_has_every_figure():
    """/state is the whole status."""
    async with client(READY) as control:
        assert (await control.get("/state")).json() == {
            "state": "ready",
            "phase": "ready",
            "engine_url": "http://127.0.0.1:8000",
            "model": "m",
            "starts": 4,
            "restarts": 2,
            "hangs": 1,
            "wakes": 1,
            "unloads": 1,
            "waking": False,
            "since_s": 1.5,
            "start_s": 30.0,
            "pid": 42,
            "kv_tokens_planned": 1000,
            "kv_tokens_reported": 990,
            "last_unload": {"engine_bytes": 100, "freed_bytes": 95},
            "last_error": None,
            "pressure": "none",
        }


async def test_the_plan_is_shown():
    """/plan is what was planned."""
    async with client(READY, {"rows": [{"what": "weights"}]}) as control:
        assert (await control.get("/plan")).json() == {"rows": [{"what": "weights"}]}


async def test_metrics_are_text_for_prometheus():
    """/metrics is what was rendered, in Prometheus' type."""
    async with client(READY) as control:
        answer = await control.get("/metrics")
    assert answer.text == "up 1\n"
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize(
    ("order", "state", "code"),
    [
        ("sleep", State.READY, 202),
        ("sleep", State.STARTING, 409),
        ("wake", State.SLEEPING, 202),
        ("drain", State.READY, 202),
    ],
)
async def test_orders_reach_the_keeper(order, state, code):
    """Each order is given once, and answered with the state; sleep is refused unless ready."""
    keeper = FakeKeeper(dataclasses.replace(READY, state=state))
    async with client_of(app_of(keeper)) as control:
        answer = await control.post(f"/{order}", json={})
    assert (answer.status_code, answer.json()["state"]) == (code, state)
    assert keeper.orders == [order]


PAGES = [("GET", "/state"), ("GET", "/plan"), ("GET", "/metrics")]
ORDERS = [("POST", "/sleep"), ("POST", "/wake"), ("POST", "/drain")]


@pytest.mark.parametrize(("method", "path"), PAGES + ORDERS)
async def test_a_key_guards_everything_that_tells_or_does(method, path):
    """With a key set, no key and a wrong one are 401 and do nothing; the right one is enough."""
    keeper = FakeKeeper(READY)
    async with client_of(app_of(keeper, key="s3cret", local=False)) as control:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer s3creté".encode()},
        ):
            answer = await control.request(method, path, headers=headers)
            assert answer.status_code == 401
            assert "MODEL_SERVER_CONTROL_KEY" in answer.json()["error"]["message"]
        assert keeper.orders == []
        good = await control.request(method, path, headers={"Authorization": "Bearer s3cret"})
        assert good.is_success
        assert (await control.get("/healthz")).status_code == 200
        assert (await control.get("/readyz")).status_code == 200


@pytest.mark.parametrize(("method", "path"), ORDERS)
async def test_without_a_key_no_order_from_elsewhere_is_taken(method, path):
    """An address that others reach takes orders with a key only; it still shows its state."""
    keeper = FakeKeeper(READY)
    async with client_of(app_of(keeper, local=False)) as control:
        assert (await control.request(method, path, json={})).status_code == 403
        assert (await control.get("/state")).status_code == 200
    assert keeper.orders == []


@pytest.mark.parametrize(("method", "path"), ORDERS)
async def test_a_web_page_cannot_give_orders(method, path):
    """What a page's form or script may send unasked, without JSON's type, is refused."""
    keeper = FakeKeeper(READY)
    async with client_of(app_of(keeper)) as control:
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            answer = await control.request(
                method, path, content="{}", headers={"Content-Type": kind}
            )
            assert answer.status_code == 415
    assert keeper.orders == []


async def test_it_serves_on_a_given_socket_and_stops():
    """The real server answers on the socket it was given, and returns once told to stop."""
    app = app_of(FakeKeeper(READY))
    with listen("127.0.0.1", 0, variable="X") as listener:
        server = ControlServer(app, listener=listener)
        serving = asyncio.create_task(server.run_until_stopped())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx2.AsyncClient(trust_env=False) as control:
            assert (await control.get(f"{url}/readyz")).status_code == 200
        server.stop()
        await asyncio.wait_for(serving, 5)
