"""What the tests on a real GPU share: the card, and a vLLM of its own build."""

from collections.abc import Iterator

import pytest

from model_server.devices import import_nvml
from tests.gpus import START_S, Card, why_no_cuda_engine


@pytest.fixture(scope="session")
def card() -> Iterator[Card]:
    """The card that model_server takes by itself; nobody else should work on it meanwhile."""
    nvml = import_nvml()
    assert nvml is not None
    with Card.emptiest(nvml) as found:
        yield found


@pytest.fixture(scope="session")
def engine_card(card: Card) -> Card:
    """The same, where vLLM's CUDA build is installed to run on it."""
    if reason := why_no_cuda_engine():
        pytest.skip(reason)
    return card


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Engines are started here, some twice: the limit is for hangs."""
    for item in items:
        if "engine_card" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(2 * START_S + 120))
