"""What model_server says of its engine, and how it is told to wake it."""

import httpx2
import pytest

from orchestrator.errors import EngineUnavailable
from orchestrator.generation.engine_keeper import EngineKeeper, EngineLife


def keeper(answer, **options):
    """A keeper whose model_server answers by this function."""
    return EngineKeeper("http://control", transport=httpx2.MockTransport(answer), **options)


@pytest.mark.parametrize(
    ("state", "life"),
    [
        ({"state": "ready", "model": "m", "start_s": 30}, EngineLife(eta_s=30.0, model="m")),
        ({"state": "sleeping", "since_s": 900, "start_s": 30}, EngineLife(asleep=True, eta_s=30.0)),
        (
            {"state": "starting", "waking": True, "since_s": 10, "start_s": 30},
            EngineLife(asleep=True, waking=True, eta_s=20.0),
        ),
        (
            {"state": "starting", "waking": True, "since_s": 99, "start_s": 30},
            EngineLife(asleep=True, waking=True, eta_s=0.0),
        ),
        ({"state": "starting", "waking": False, "since_s": 10}, EngineLife()),
        ({"state": "failed", "pressure": "high"}, EngineLife(pressure=True)),
        ({"state": "ready", "pressure": "none"}, EngineLife()),
    ],
)
def test_a_state_is_read_for_what_it_means(state, life):
    """Asleep while it sleeps or wakes; what is left of a start; whether memory is short."""
    assert EngineLife.from_state(state) == life


async def test_the_order_is_json_and_carries_the_key():
    """POST /wake with JSON's type, and the key as a bearer token."""
    seen = []

    def answer(request):
        seen.append(request)
        return httpx2.Response(202, json={"state": "sleeping"})

    client = keeper(answer, key="s3cret")
    await client.wake()
    await client.aclose()
    assert (seen[0].method, seen[0].url.path) == ("POST", "/wake")
    assert seen[0].headers["content-type"] == "application/json"
    assert seen[0].headers["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(401, json={"error": {"message": "The control key is missing or wrong"}}),
        httpx2.Response(500, text="oops"),
        httpx2.Response(200, json=["not", "a", "state"]),
        httpx2.ConnectError("refused"),
    ],
)
async def test_a_keeper_that_does_not_say_is_told_once(answer, caplog):
    """No life then, one warning however often it is looked at, and an order is an error."""

    def respond(_request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = keeper(respond)
    assert [await client.life() for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "model_server at http://control" in caplog.text
    with pytest.raises(EngineUnavailable):
        await client.wake()
    await client.aclose()
