"""A real vLLM that hangs, dies, or cannot start: found, told, and started again without a person."""

import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest

from deploy.child_process import is_running
from tests import pdfs
from tests.chromium import why_no_browser
from tests.running import Program, model_server, model_server_settings, orchestrator

from .conftest import ENGINE_START_S, MODEL, MODEL_FOLDER, REAL_ENGINE, until, upload

HANG_S = 5.0
FOUND_S = HANG_S + 3.0
"""And one look, which may wait two seconds for an engine that does not answer."""

ENGINE_CORE, WORKER, API_SERVER = "EngineCore", "Worker", "api_server"


@pytest.fixture(scope="module")  # the last test of those that use it kills it
def own_server(tmp_path_factory):
    """A model_server that is patient for 5 s, with a real vLLM of its own."""
    folder = tmp_path_factory.mktemp("deaths")
    settings = {**REAL_ENGINE, "MODEL_SERVER_HANG_TIMEOUT_S": str(HANG_S)}
    with model_server(folder, start_s=ENGINE_START_S, **settings) as running:
        yield running


def state(server: Program) -> dict:
    return httpx2.get(f"{server.url}/state", trust_env=False).json()


def process_of(server: Program, name: str) -> psutil.Process:
    guard = psutil.Process(state(server)["pid"])
    (found,) = [p for p in guard.children(recursive=True) if name in " ".join(p.cmdline())]
    return found


@pytest.mark.parametrize("name", [ENGINE_CORE, WORKER, API_SERVER])
def test_a_hung_process_is_found_and_the_engine_replaced(own_server, name):
    """SIGSTOP to any of its processes: found in its time, nothing of it left, and it serves again."""
    before = state(own_server)
    assert before["state"] == "ready"
    family = psutil.Process(before["pid"]).children(recursive=True)
    process_of(own_server, name).send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert until(lambda: state(own_server)["state"] != "ready", FOUND_S)
    print(f"\n{name} stopped: found after {time.monotonic() - began:.1f} s")
    assert "the engine hangs" in state(own_server)["last_error"]
    assert until(lambda: not any(p.is_running() for p in family), 5)
    assert until(lambda: state(own_server)["state"] == "ready", ENGINE_START_S)
    after = state(own_server)
    assert after["restarts"] == before["restarts"] + 1
    question = {"model": MODEL, "prompt": "a", "max_tokens": 4}
    answer = httpx2.post(
        f"{after['engine_url']}/v1/completions", json=question, timeout=60, trust_env=False
    )
    assert answer.status_code == 200


@dataclass
class Death:
    """
    What was seen of one.

    Attributes:
        told_s: From the kill until model_server said so.
        error: Why, in its words.
        restarts: How many there were for it.
        without: The page's words while there was no engine; None where there is no browser.
        banner_after: Whether the first answer of the next engine still had a banner.
    """

    told_s: float
    error: str
    restarts: int
    without: str | None = None
    banner_after: bool | None = None


@pytest.fixture(scope="module")
def death(own_server, tmp_path_factory):
    """Kill -9 of vLLM's core while somebody has the page open, who asks before and after the next start."""
    engine_url = state(own_server)["engine_url"]
    with ExitStack() as open_things:
        service = open_things.enter_context(
            orchestrator(
                tmp_path_factory.mktemp("onlooker"),
                engine_url,
                tokenizer=str(MODEL_FOLDER),
                control_url=own_server.url,
            )
        )
        upload(service, pdfs.handbook())
        visit = None
        if why_no_browser() is None:
            # Playwright is not asked for where there is no browser.
            from tests.browsers import browsing, visiting  # noqa: PLC0415 - see above

            browser = open_things.enter_context(browsing())
            visit = open_things.enter_context(
                visiting(browser, service.url, patience_ms=ENGINE_START_S * 1000)
            )
        before = state(own_server)["restarts"]
        process_of(own_server, ENGINE_CORE).kill()
        began = time.monotonic()
        assert until(lambda: state(own_server)["state"] != "ready", 2.0)
        seen = Death(time.monotonic() - began, state(own_server)["last_error"], 0)
        if visit is not None:
            visit.ask("At what water level are the gates closed?")
            banner = visit.page.locator(".turn .banner")
            banner.wait_for()
            visit.page.locator(".turn > .sources > .source").first.wait_for()
            seen.without = banner.inner_text()
            visit.pictured("engine-killed")
        assert until(lambda: state(own_server)["state"] == "ready", ENGINE_START_S)
        seen.restarts = state(own_server)["restarts"] - before
        if visit is not None:
            visit.page.locator("#status-button[data-state=ok]").wait_for()
            visit.ask("At what water level are the gates closed?")
            turn = visit.page.locator(".turn").nth(1)
            turn.locator(".source").first.wait_for(state="attached")
            seen.banner_after = turn.locator(".banner").is_visible()
        yield seen


def test_a_killed_core_is_replaced_at_once(death):
    """Told by the kernel, not by vLLM's own end some five seconds later."""
    print(f"\nEngineCore killed: told after {death.told_s:.1f} s")
    assert death.told_s < 2.0
    assert "EngineCore" in death.error
    assert death.restarts == 1


@pytest.mark.browser
def test_the_page_answers_by_passages_until_the_next_engine_is_there(death):
    """With a banner that says so, and without one afterwards."""
    assert "No model answers now" in death.without
    assert death.banner_after is False


def test_no_engine_outlives_a_killed_model_server(own_server):
    """Kill -9 of model_server itself: nothing of the engine is left two seconds later."""
    family = [psutil.Process(state(own_server)["pid"]), *own_server.descendants()[1:]]
    assert len(family) >= 4
    maps = [Path(m.path) for process in family for m in process.memory_maps()]
    shared = {path for path in maps if path.name.startswith("psm_")}
    assert shared, "vLLM's processes talk through shared memory"
    own_server.process.kill()
    assert until(lambda: not any(is_running(process) for process in family), 2.0)
    assert not any(path.exists() for path in shared)


def run_to_its_end(folder, seconds=120, **changes):
    """The exit code of a model_server that cannot start, and what it said."""
    log = folder / "model_server.log"
    with log.open("wb") as output:
        process = psutil.Popen(
            [sys.executable, "-m", "model_server", "serve"],
            env={**os.environ, **model_server_settings(folder, **(REAL_ENGINE | changes))},
            stdout=output,
            stderr=output,
        )
        try:
            code = process.wait(seconds)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return code, log.read_text()


def test_damaged_weights_are_one_line_and_no_loop(tmp_path):
    """A download that was cut off is seen before an engine is started."""
    model = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, model)
    (weights,) = model.glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    code, said = run_to_its_end(tmp_path, MODEL_SERVER_MODEL=str(model))
    assert code == 5, said[-3000:]
    assert said.startswith("model_server: ")
    assert said.count("\n") == 1


def test_a_wrong_argument_is_one_line_and_no_loop(tmp_path):
    """What vLLM does not know is told in its own words."""
    code, said = run_to_its_end(tmp_path, MODEL_SERVER_ENGINE_ARGS="--no-such-thing 1")
    assert code == 2, said[-3000:]
    assert "--no-such-thing" in said.strip().splitlines()[-1]
