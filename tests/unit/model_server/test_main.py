"""The program as a user starts it, with an engine that has no model."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from model_server.__main__ import main
from model_server.probe import listen
from tests.unit.model_server.making import write_model

FAKE = Path(__file__).with_name("fake_vllm.py")


def free_port() -> int:
    """A TCP port that nobody has at the moment."""
    with listen("127.0.0.1", 0, variable="X") as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def environment(tmp_path):
    """Everything that the program needs, on ports of its own."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    python.chmod(0o755)
    inherited = {n: v for n, v in os.environ.items() if not n.startswith("MODEL_SERVER_")}
    return {
        **inherited,
        "MODEL_SERVER_MODEL": str(write_model(tmp_path / "Some-Model")),
        "MODEL_SERVER_DEVICE": "cpu",
        "MODEL_SERVER_ENGINE_PYTHON": str(python),
        "MODEL_SERVER_ENGINE_PORT": str(free_port()),
        "MODEL_SERVER_CONTROL_PORT": str(free_port()),
        "MODEL_SERVER_LOG_DIR": str(tmp_path / "logs"),
        "MODEL_SERVER_MAX_NUM_SEQS": "2",
        # Little enough to fit on any machine that can run the tests.
        "MODEL_SERVER_KV_CACHE_BYTES": str(100_000_000),
        "MODEL_SERVER_RESERVE_BYTES": "0",
    }


@pytest.fixture
def run(environment, monkeypatch):
    """Runs a command in this process, with changes to the environment."""

    def run_(*command, **changes):
        for name in list(os.environ):
            if name.startswith("MODEL_SERVER_"):
                monkeypatch.delenv(name)
        for name, value in {**environment, **changes}.items():
            monkeypatch.setenv(name, value)
        return main(list(command))

    return run_


@contextmanager
def serving(environment):
    """The started program and a function that asks its control API."""
    control = f"http://127.0.0.1:{environment['MODEL_SERVER_CONTROL_PORT']}"
    program = subprocess.Popen(
        [sys.executable, "-m", "model_server", "serve"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield program, lambda path: httpx2.get(control + path, trust_env=False)
    finally:
        program.kill()
        program.communicate()


def wait_ready(ask):
    """The state, once it is ready."""
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        try:
            if ask("/readyz").status_code == 200:
                return ask("/state").json()
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("not ready within 30 s")


def test_the_plan_is_a_table_and_the_flags(run, capsys):
    """`plan` prints every sum and the command line that follows, and starts nothing."""
    assert run("plan") == 0
    printed = capsys.readouterr().out
    for words in ("weights", "KV cache", "activations", "reserve", "budget", "--max-num-seqs 2"):
        assert words in printed


def test_the_plan_for_machines(run, capsys):
    """`plan --json` prints the same as JSON."""
    assert run("plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["max_num_seqs"] == 2
    assert plan["kv_tokens"] % 128 == 0
    assert plan["environment"]["HF_HUB_OFFLINE"] == "1"


def test_what_was_held_beyond_the_plan_is_planned_where_there_is_room(
    run, capsys, tmp_path, caplog
):
    """A formula that was too low is made good from what is free; never at the price of not serving."""

    def planned(**changes):
        assert run("plan", "--json", **changes) == 0
        return json.loads(capsys.readouterr().out)

    before = planned()
    total, runtime = before["bytes"]["total"], before["bytes"]["runtime"]
    model = (tmp_path / "Some-Model").resolve()
    subject = f"{model} on {before['device']['name']}"
    (tmp_path / "logs").mkdir(exist_ok=True)
    known = {"subject": subject, "extra_bytes": 256 << 20}
    (tmp_path / "logs" / "adjustments.json").write_text(json.dumps(known))
    assert planned()["bytes"]["runtime"] == runtime + (256 << 20)
    assert "planned without" not in caplog.text
    tight = planned(MODEL_SERVER_MEMORY_LIMIT_BYTES=str(total + (100 << 20)))
    assert (tight["bytes"]["runtime"], tight["kv_tokens"]) == (runtime, before["kv_tokens"])
    assert "planned without what was seen beyond the plan" in caplog.text


@pytest.mark.parametrize(
    ("changes", "exit_code", "words"),
    [
        ({"MODEL_SERVER_TYPO": "1"}, 2, "MODEL_SERVER_TYPO: no such setting"),
        ({"MODEL_SERVER_MODEL": "/no/such/folder"}, 5, "no such folder"),
        ({"MODEL_SERVER_MEMORY_LIMIT_BYTES": "1000000"}, 6, "does not fit"),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_an_exit_code(
    run, capsys, changes, exit_code, words
):
    """Each kind of error has its exit code and one line on standard error."""
    assert run("plan", **changes) == exit_code
    said = capsys.readouterr().err
    assert said.startswith("model_server: ")
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("variable", ["MODEL_SERVER_ENGINE_PORT", "MODEL_SERVER_CONTROL_PORT"])
def test_a_port_in_use_is_one_line_and_no_start(environment, variable):
    """With either port taken the program ends at once, and names the port and the variable."""
    with (
        listen("127.0.0.1", int(environment[variable]), variable="X"),
        serving(environment) as (program, _),
    ):
        _, said = program.communicate(timeout=30)
    assert program.returncode == 7
    assert f"Port {environment[variable]} on 127.0.0.1 is in use" in said.splitlines()[-1]
    assert variable in said
    assert not (Path(environment["MODEL_SERVER_LOG_DIR"]) / "engine.log").exists()


def test_an_environment_without_vllm_is_one_line(run, capsys):
    """An interpreter without vLLM ends the program before anything is started."""
    assert run("serve", MODEL_SERVER_ENGINE_PYTHON=sys.executable) == 8
    assert "has no vLLM" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_restarts_and_stops_with_nothing_left(environment, number):
    """Ready with the planned tokens, ready again after kill -9 of the engine, gone when asked."""
    with serving(environment) as (program, ask):
        first = wait_ready(ask)
        assert first["model"] == "some-model"
        assert first["kv_tokens_reported"] == first["kv_tokens_planned"]
        assert ask("/plan").json()["rows"]
        psutil.Process(first["pid"]).children()[0].kill()
        while (again := ask("/state").json())["restarts"] == 0:
            time.sleep(0.05)
        again = wait_ready(ask)
        assert again["last_error"] == "the engine exited by itself with code 137"
        family = psutil.Process(program.pid).children(recursive=True)
        assert len(family) >= 2
        program.send_signal(number)
        _, said = program.communicate(timeout=20)
        assert program.returncode == 0
        assert "loading weights" in said
        assert "has no chat template" in said
        assert psutil.wait_procs(family, timeout=1)[1] == []


def test_kill_9_of_the_program_leaves_no_engine(environment):
    """When the program is killed, guard and engine die with it, and the port is free again."""
    with serving(environment) as (program, ask):
        wait_ready(ask)
        family = psutil.Process(program.pid).children(recursive=True)
        program.kill()
        assert psutil.wait_procs(family, timeout=5)[1] == []
    listen("127.0.0.1", int(environment["MODEL_SERVER_ENGINE_PORT"]), variable="X").close()
