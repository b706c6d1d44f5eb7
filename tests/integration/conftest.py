"""One real orchestrator for the whole level, in front of an engine that does what it is told."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests import pdfs
from tests.fake_engine import FakeEngine, serving
from tests.faults import trusted_again
from tests.running import Program, orchestrator

LEVEL_TIMEOUT_S = 240
MAX_CONCURRENT, MAX_QUEUED = 2, 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Programs start here, on machines that may be busy: the limit is for hangs, not for speed."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(LEVEL_TIMEOUT_S))


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[FakeEngine]:
    """The engine behind the shared orchestrator."""
    with serving(FakeEngine()) as engine:
        yield engine


@pytest.fixture(scope="session")
def shared_orchestrator(
    shared_engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """A real orchestrator with small limits, so that they can be reached."""
    with orchestrator(
        tmp_path_factory.mktemp("data"),
        shared_engine.url,
        max_concurrent_requests=str(MAX_CONCURRENT),
        max_queued_requests=str(MAX_QUEUED),
        max_pages="50",
        max_upload_bytes="3000000",
        max_upload_body_bytes="5000000",
        first_token_timeout_s="3",
        stall_timeout_s="2",
        engine_poll_s="0.2",
        breaker_open_s="0.2",
    ) as running:
        yield running


@pytest.fixture
def engine(shared_engine: FakeEngine, shared_orchestrator: Program) -> FakeEngine:
    """The shared engine, behaving, and trusted: what an earlier test made it do is forgotten."""
    shared_engine.play()
    trusted_again(shared_orchestrator.url, "engine")
    shared_engine.play()
    return shared_engine


@pytest.fixture
def http(shared_orchestrator: Program) -> Iterator[httpx2.Client]:
    """A plain client of the shared orchestrator."""
    with httpx2.Client(base_url=shared_orchestrator.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def handbook(shared_orchestrator: Program) -> str:
    """The id of the sample handbook, searchable in the default collection."""
    response = httpx2.post(
        f"{shared_orchestrator.url}/upload",
        params={"wait": "true"},
        files={"file": ("handbook.pdf", pdfs.handbook(), "application/pdf")},
        timeout=60,
        trust_env=False,
    )
    assert response.status_code == 200, response.text
    return str(response.json()["documents"][0]["id"])
