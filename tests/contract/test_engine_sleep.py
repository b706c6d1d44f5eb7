"""A real vLLM gives its memory back, and fifty who ask at once wake it a single time."""

import concurrent.futures
import threading

import httpx2
import pytest

from .conftest import ENGINE_START_S, until
from .test_engine_wire import running

STOPS_S = 30.0


@pytest.fixture(autouse=True)
def awake_afterwards(model_server):
    """The engine is the whole level's: whatever happened here, the next test finds it ready."""
    yield
    httpx2.post(f"{model_server.url}/wake", json={}, trust_env=False)

    def ready() -> bool:
        return httpx2.get(f"{model_server.url}/state", trust_env=False).json()["state"] == "ready"

    assert until(ready, ENGINE_START_S)


def back(unload: dict) -> bool:
    """Whether nine tenths of what it held are free again."""
    return unload["freed_bytes"] >= 0.9 * unload["engine_bytes"] > 0


def test_its_memory_comes_back_and_fifty_questions_wake_it_once(
    stack, http, model_server, vllm_url
):
    """Nine tenths of what it held are free while it sleeps; then everybody is answered or told."""
    with httpx2.Client(base_url=model_server.url, timeout=10, trust_env=False) as control:

        def engine() -> dict:
            return control.get("/state").json()

        before = engine()
        assert control.post("/sleep", json={}).status_code == 202
        assert until(lambda: engine()["phase"].startswith("asleep"), STOPS_S)
        assert until(lambda: back(engine()["last_unload"]), STOPS_S), engine()["last_unload"]
        unload = engine()["last_unload"]
        assert len(model_server.descendants()) == 1, "nothing of the engine is left"
        assert until(lambda: http.get("/status").json()["engine"]["asleep"], STOPS_S)
        assert http.get("/readyz").status_code == 200
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            answers = list(
                pool.map(
                    lambda n: http.post(
                        "/ask", json={"question": f"What is on page {n % 6 + 1}?", "max_tokens": 16}
                    ),
                    range(50),
                )
            )
        after = engine()
    refused = [a for a in answers if a.status_code == 429]
    answered = [a for a in answers if a.is_success]
    assert len(refused) + len(answered) == len(answers), [a.text for a in answers if a.is_error]
    assert all(int(a.headers["retry-after"]) > 0 for a in refused)
    # How many fit behind the wake is the machine's speed; that it woke for somebody is ours.
    whole = [a for a in answered if (a.json()["degraded"] or {}).get("level") != "L3"]
    assert whole, "woken, and nobody was answered by it"
    assert after["wakes"] == before["wakes"] + 1
    assert after["restarts"] == before["restarts"]
    assert after["start_s"] < ENGINE_START_S
    assert running(vllm_url) == 0
    share = unload["freed_bytes"] / unload["engine_bytes"]
    print(f"\n{share:.0%} of {unload['engine_bytes']:,} bytes given back; {len(whole)} of 50 whole")


def test_questions_that_meet_it_falling_asleep_are_answered(stack, http, model_server):
    """Asked without a pause while it is put to sleep: each answer comes, and is made by the engine."""
    # model_server has what two cores leave it beside four clients and an engine that starts.
    with httpx2.Client(base_url=model_server.url, timeout=60, trust_env=False) as control:
        wakes = control.get("/state").json()["wakes"]
        over = threading.Event()
        answers: list[httpx2.Response] = []

        def asks() -> None:
            body = {"question": "What is on page 2?", "max_tokens": 16, "degrade": False}
            while not over.is_set():
                answers.append(http.post("/ask", json=body))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            try:
                for _ in range(4):
                    pool.submit(asks)
                assert until(lambda: len(answers) >= 4, ENGINE_START_S)
                assert control.post("/sleep", json={}).status_code == 202
                before = len(answers)
                assert until(
                    lambda: (
                        control.get("/state").json()["wakes"] > wakes and len(answers) >= before + 8
                    ),
                    ENGINE_START_S,
                )
            finally:
                over.set()
    assert {a.status_code for a in answers} == {200}, [a.text for a in answers if a.is_error]
    assert {a.json()["degraded"] is None for a in answers} == {True}
