"""What every level of tests shares: the backend, and what this machine has."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from model_server.devices import import_nvml
from tests.chromium import why_no_browser
from tests.fake_engine import FakeEngine, serving
from tests.gpus import why_no_gpu

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

# A machine that others share may take 0.2 s for an example: that says nothing of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutines run on asyncio, as in production."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches them."""
    for name in list(os.environ):
        if name.startswith(("ORCHESTRATOR_", "MODEL_SERVER_", "TIDEGATE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def fake_engine() -> Iterator[FakeEngine]:
    """An engine that does what the test scripts."""
    with serving(FakeEngine()) as engine:
        yield engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, and say why."""
    reasons = {
        "shared_data": None if SHARED.is_dir() else "no evaluation data beside the checkout",
        "gpu": why_no_gpu(nvml=import_nvml()),
        "browser": why_no_browser(),
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
