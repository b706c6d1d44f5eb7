"""A real vLLM on a real card: never over its cap, as large as planned, and gone when it is gone."""

import concurrent.futures
import signal
import time

import httpx2
import psutil
import pytest

from model_server.memory import GIB
from tests.gpus import (
    BACK_S,
    KV_TOLERANCE,
    LEFT_SHARE,
    START_S,
    cuda_model_server,
    state_once,
    told,
    watching,
)

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

AT_ONCE = 64
SHARE = 0.5
LIMIT_BYTES = 5 * GIB


def work(server):
    """Answers of some length, many at once, so that the engine takes all that it ever takes."""
    state = told(server.url, "/state")

    def ask(number):
        content = f"{number} " + "The gate opens at low water. " * 100
        body = {
            "model": state["model"],
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 64,
            "ignore_eos": True,
        }
        url = f"{state['engine_url']}/v1/chat/completions"
        return httpx2.post(url, json=body, timeout=120, trust_env=False).status_code

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        assert set(pool.map(ask, range(2 * AT_ONCE))) == {200}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("MODEL_SERVER_GPU_MEMORY_UTILIZATION", str(SHARE), id="a share of the card"),
        pytest.param("MODEL_SERVER_MEMORY_LIMIT_BYTES", str(LIMIT_BYTES), id="a limit in bytes"),
    ],
)
def test_an_engine_keeps_under_its_cap_and_has_the_cache_that_was_planned(
    engine_card, tmp_path, name, value
):
    """By NVML, from its first process to the end of 64 answers at once; and by its own account."""
    total = engine_card.device.total_bytes
    cap = total * SHARE if name.endswith("UTILIZATION") else LIMIT_BYTES
    with watching(engine_card) as usage:
        with cuda_model_server(engine_card, tmp_path, **{name: value}) as server:
            work(server)
            state, plan = told(server.url, "/state"), told(server.url, "/plan")
        peak = usage.peak()
    print(f"\n{name}={value}: {peak / GIB:.2f} GiB of {cap / GIB:.2f} at the most")
    assert plan["device"]["kind"] == "cuda"
    assert plan["kv_cache_bytes"] < peak <= cap
    planned, reported = state["kv_tokens_planned"], state["kv_tokens_reported"]
    assert abs(planned - reported) / reported < KV_TOLERANCE


@pytest.mark.parametrize("victim", ["EngineCore", "api_server"])
def test_kill_9_of_the_engine_gives_its_memory_back_before_the_next_start(
    engine_card, tmp_path, victim
):
    """Whichever of its processes is killed: the card is empty again, and the next engine as large."""
    with watching(engine_card) as usage, cuda_model_server(engine_card, tmp_path) as server:
        before, held = told(server.url, "/state"), usage.now
        guard = psutil.Process(before["pid"])
        family = guard.children(recursive=True)
        (process,) = [p for p in family if victim in " ".join(p.cmdline())]
        killed_s = time.monotonic()
        process.kill()
        after = state_once(
            server.url,
            lambda now: now["restarts"] > 0 and now["state"] == "ready",
            within_s=START_S,
        )
        least = usage.least(since_s=killed_s)
    assert held > GIB
    assert least is not None
    assert least <= LEFT_SHARE * held
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert after["kv_tokens_planned"] >= 0.98 * before["kv_tokens_planned"]


def test_a_sleeping_engine_leaves_the_card_and_comes_back_as_large(engine_card, tmp_path):
    """Sleep gives back all that it held, by NVML and by its own account; the next order wakes it once."""
    with watching(engine_card) as usage, cuda_model_server(engine_card, tmp_path) as server:
        before, held = told(server.url, "/state"), usage.now
        httpx2.post(f"{server.url}/sleep", json={}, trust_env=False).raise_for_status()
        assert usage.back_after_s(held, within_s=60) is not None
        asleep = state_once(
            server.url, lambda now: now["last_unload"]["freed_bytes"] >= 0.9 * held, within_s=5
        )
        for _ in range(3):
            httpx2.post(f"{server.url}/wake", json={}, trust_env=False).raise_for_status()
        after = state_once(server.url, lambda now: now["state"] == "ready", within_s=START_S)
        work(server)
    assert asleep["state"] == "sleeping"
    assert (after["wakes"], after["restarts"]) == (1, 0)
    assert after["kv_tokens_planned"] >= 0.98 * before["kv_tokens_planned"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_card_is_empty_when_model_server_is_gone(engine_card, tmp_path, number):
    """Killed with -9 or asked to stop, it leaves no engine and no memory taken."""
    with watching(engine_card) as usage, cuda_model_server(engine_card, tmp_path) as server:
        held, family = usage.now, server.descendants()
        server.stop(number)
        back_s = usage.back_after_s(held)
    assert back_s is not None, f"not all of {held / GIB:.1f} GiB was back within {BACK_S:g} s"
    assert psutil.wait_procs(family, timeout=5)[1] == []
