"""The whole stack for real: model_server, vLLM with the bundled model, the orchestrator."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests import pdfs
from tests.fake_engine import MODEL as FAKE_MODEL
from tests.fake_engine import FakeEngine, serving
from tests.faults import wait_until
from tests.running import Program, orchestrator
from tests.running import model_server as running_model_server

ROOT = Path(__file__).parents[2]
ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"
MODEL_FOLDER = ROOT / ".models" / "smollm2-135m-instruct"
MODEL = "smollm2-135m-instruct"
ENGINE_START_S = 300.0
WITHOUT_ENGINE = ("fake", "simulator")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything at this level that asks for the real engine is marked so."""
    here = Path(__file__).parent
    missing = not (ENGINE_PYTHON.exists() and MODEL_FOLDER.exists())
    for item in items:
        alone = any(kind in item.name for kind in WITHOUT_ENGINE) and "vllm" not in item.name
        if here in item.path.parents and not alone:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(ENGINE_START_S + 120))
            if missing:
                item.add_marker(pytest.mark.skip(reason="no engine: run `make test`"))


REAL_ENGINE = {
    "MODEL_SERVER_MODEL": str(MODEL_FOLDER),
    "MODEL_SERVER_SERVED_MODEL_NAME": MODEL,
    "MODEL_SERVER_ENGINE_PYTHON": str(ENGINE_PYTHON),
    "MODEL_SERVER_ENFORCE_EAGER": "true",
}
"""The bundled model and a real vLLM, as settings of a model_server."""


@pytest.fixture(scope="session")
def model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """model_server with a real vLLM behind it; `engine_url` is where that listens."""
    folder = tmp_path_factory.mktemp("model_server")
    with running_model_server(folder, start_s=ENGINE_START_S, **REAL_ENGINE) as running:
        yield running


@pytest.fixture(scope="session")
def vllm_url(model_server: Program) -> str:
    """Where the real vLLM listens."""
    state = httpx2.get(f"{model_server.url}/state", trust_env=False).json()
    return str(state["engine_url"])


@pytest.fixture(scope="session")
def simulator_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a simulator listens that has the limits of the real vLLM beside it."""
    options = ["--profile", "smollm2-cpu", "--model", MODEL, "--max-num-queued-reqs", "48"]
    log = tmp_path_factory.mktemp("simulator") / "simulator.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "model_server.simulator", "--port", "0", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://"), log.read_text()
            yield line.split()[-1]
        finally:
            process.terminate()
        assert process.wait(10) == 0, log.read_text()


@pytest.fixture(params=["fake", "simulator", "vllm"])
def engine_url(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """(address, model) of each kind of engine: what holds for one must hold for the others."""
    if request.param == "fake":
        with serving(FakeEngine()) as engine:
            yield engine.url, FAKE_MODEL
    else:
        yield request.getfixturevalue(f"{request.param}_url"), MODEL


@pytest.fixture(params=["simulator", "vllm"])
def batching_url(request: pytest.FixtureRequest) -> str:
    """Where an engine listens that batches, caches, limits and counts: the simulator, then vLLM."""
    return str(request.getfixturevalue(f"{request.param}_url"))


def until(condition: Callable[[], Any], seconds: float) -> bool:
    """As `wait_until`, with looks that leave the cores to an engine that starts."""
    return wait_until(condition, seconds, look_s=0.1)


def upload(running: Program, pdf: bytes) -> None:
    """A document that can be asked about when this returns."""
    response = httpx2.post(
        f"{running.url}/upload?wait=true",
        files={"file": ("handbook.pdf", pdf, "application/pdf")},
        timeout=120,
        trust_env=False,
    )
    assert response.status_code == 200, response.text


@pytest.fixture(scope="session")
def stack(
    model_server: Program, vllm_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """A real orchestrator in front of the real engine, with the sample handbook in it."""
    with orchestrator(
        tmp_path_factory.mktemp("stack"),
        vllm_url,
        tokenizer=str(MODEL_FOLDER),
        control_url=model_server.url,
        max_concurrent_requests="36",
    ) as running:
        upload(running, pdfs.handbook())
        yield running


@pytest.fixture
def http(stack: Program) -> Iterator[httpx2.Client]:
    """A plain client of the stack."""
    with httpx2.Client(base_url=stack.url, timeout=180, trust_env=False) as client:
        yield client


@pytest.fixture
def client(stack: Program) -> Iterator[openai.OpenAI]:
    """The official client, with nothing changed but its address."""
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none") as made:
        yield made
