"""Whether the engine answers, and what it serves."""

import asyncio

import pytest

from orchestrator.errors import EngineProtocolError, EngineUnavailable
from orchestrator.generation.engine_client import EngineModel
from orchestrator.generation.engine_monitor import EngineMonitor


class FakeClient:
    """Gives what the test puts in, or raises it."""

    def __init__(self, answer) -> None:
        self.answer = answer
        self.pages = self

    async def models(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def monitor(answer, **options):
    client = FakeClient(answer)
    made = EngineMonitor(client=client, poll_s=0.01, default_window_tokens=4096, **options)
    return made, client


async def test_takes_the_first_model_and_its_window():
    """Unless told otherwise, the first one listed is asked."""
    watch, _ = monitor([EngineModel("a", 8192), EngineModel("b", None)])
    await watch.refresh()
    assert watch.require().id == "a"
    assert watch.window_tokens == 8192


async def test_takes_the_wanted_model_and_the_default_window():
    """An engine that does not state its window gets the configured one."""
    watch, _ = monitor([EngineModel("a", 8192), EngineModel("b", None)], wanted="b")
    await watch.refresh()
    assert watch.require().id == "b"
    assert watch.window_tokens == 4096


@pytest.mark.parametrize(
    "answer",
    [EngineUnavailable("refused"), EngineProtocolError("html"), [], [EngineModel("other", None)]],
)
async def test_is_down_in_words(answer):
    """Refused, no OpenAI wire, no model, or not the wanted one: 503 with a time to return."""
    watch, _ = monitor(answer, wanted="mine")
    await watch.refresh()
    with pytest.raises(EngineUnavailable) as raised:
        watch.require()
    assert raised.value.retry_after_s is not None


async def test_notices_when_it_goes_and_comes():
    """The background watch reports each change once."""
    seen = []
    watch, client = monitor([EngineModel("a", 1)], on_change=lambda s: seen.append(s.model))
    await watch.start()
    client.answer = EngineUnavailable("gone")
    await asyncio.sleep(0.05)
    client.answer = [EngineModel("a", 1)]
    await asyncio.sleep(0.05)
    await watch.aclose()
    assert [model is not None for model in seen] == [True, False, True]
