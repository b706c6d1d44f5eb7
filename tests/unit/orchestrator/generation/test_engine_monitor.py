"""Whether the engine answers, and what it serves."""

import asyncio

import pytest

from orchestrator import concurrency
from orchestrator.errors import EngineProtocolError, EngineTimeout, EngineUnavailable
from orchestrator.generation.engine_client import EngineModel
from orchestrator.generation.engine_keeper import EngineLife
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
    watch, client = monitor([EngineModel("a", 1)], on_change=lambda s, _: seen.append(s.model))
    await watch.start()
    client.answer = EngineUnavailable("gone")
    await asyncio.sleep(0.05)
    client.answer = [EngineModel("a", 1)]
    await asyncio.sleep(0.05)
    await watch.aclose()
    assert [model is not None for model in seen] == [True, False, True]


async def test_a_bug_in_a_look_is_not_the_last_look(monkeypatch):
    """What it shows would stay as it was until the next start."""
    monkeypatch.setattr(concurrency, "AFTER_BUG_S", 0.0)
    watch, client = monitor([EngineModel("a", 1)])
    await watch.start()
    client.answer = KeyError("a bug")
    await asyncio.sleep(0.05)
    client.answer = [EngineModel("b", 1)]
    async with asyncio.timeout(10):
        while watch.require().id != "b":
            await asyncio.sleep(0.005)
    await watch.aclose()


async def test_an_engine_that_is_away_is_looked_for_more_often():
    """It is back long before the next ordinary look would come."""
    client = FakeClient(EngineUnavailable("refused"))
    watch = EngineMonitor(client=client, poll_s=60, default_window_tokens=4096)
    await watch.start()
    client.answer = [EngineModel("a", 1)]
    await asyncio.sleep(0.5)
    assert watch.state.model is not None
    client.answer = EngineUnavailable("gone")
    await asyncio.sleep(0.5)
    assert watch.state.model is not None, "one that answers is looked at as often as was asked for"
    await watch.aclose()


class FakeKeeper:
    """Says what the test puts in."""

    def __init__(self, life) -> None:
        self.said = life

    async def life(self):
        return self.said


async def test_a_sleeping_engine_is_listed_and_not_ready():
    """Its model can be asked for by name; nobody is let through to it."""
    keeper = FakeKeeper(EngineLife(asleep=True, eta_s=30.0, model="m"))
    watch, client = monitor(EngineUnavailable("refused"), keeper=keeper)
    state = await watch.refresh()
    assert state.asleep
    assert [m.id for m in watch.listed()] == ["m"]
    with pytest.raises(EngineUnavailable):
        watch.require()
    client.answer, keeper.said = [EngineModel("m", 1)], EngineLife()
    assert not (await watch.refresh()).asleep
    keeper.said, client.answer = EngineLife(), EngineUnavailable("killed")
    assert not (await watch.refresh()).asleep
    with pytest.raises(EngineUnavailable, match="killed"):
        watch.require()


async def test_an_engine_that_is_away_is_still_listed():
    """Its models can be asked for, and are answered with passages; one never seen has no list."""
    watch, client = monitor(EngineUnavailable("loading"))
    await watch.refresh()
    with pytest.raises(EngineUnavailable, match="loading"):
        watch.listed()
    client.answer = [EngineModel("m", 1)]
    await watch.refresh()
    client.answer = EngineUnavailable("gone")
    await watch.refresh()
    assert [m.id for m in watch.listed()] == ["m"]
    with pytest.raises(EngineUnavailable, match="gone"):
        watch.require()


async def test_a_busy_engine_that_is_slow_to_say_what_it_serves_is_not_away():
    """Only the third silent look in a row makes it so; a refused connection does at once."""
    watch, client = monitor([EngineModel("m", 1)])
    await watch.refresh()
    for _ in range(2):
        client.answer = EngineTimeout("silent")
        await watch.refresh()
        await watch.refresh()
        assert watch.require().id == "m"
        client.answer = [EngineModel("m", 1)]
        await watch.refresh()
    client.answer = EngineTimeout("silent")
    for _ in range(3):
        await watch.refresh()
    with pytest.raises(EngineUnavailable, match="silent"):
        watch.require()
    client.answer = [EngineModel("m", 1)]
    await watch.refresh()
    client.answer = EngineUnavailable("refused")
    await watch.refresh()
    with pytest.raises(EngineUnavailable, match="refused"):
        watch.require()


async def test_an_engine_that_falls_asleep_is_not_asked_though_its_pages_answer():
    """The keeper knows first: vLLM lists its model until its end, and takes no question by then."""
    keeper = FakeKeeper(EngineLife(asleep=True, model="m"))
    watch, _ = monitor([EngineModel("m", 1)], keeper=keeper)
    assert (await watch.refresh()).asleep
    with pytest.raises(EngineUnavailable, match="sleeps"):
        watch.require()
    keeper.said = EngineLife(model="m")
    await watch.refresh()
    assert watch.require().id == "m"


async def test_a_sleeping_engines_missing_metrics_say_nothing():
    """They are not asked for, and not told as missing: the limits stay what they were."""
    told = []
    keeper = FakeKeeper(EngineLife(asleep=True))
    watch, client = monitor(EngineUnavailable("refused"), keeper=keeper, on_metrics=told.append)
    await watch.refresh()
    await watch.start()
    await asyncio.sleep(0.05)
    assert told == []
    keeper.said = EngineLife()
    client.metrics_text = _refused
    await asyncio.sleep(0.05)
    assert told
    assert set(told) == {None}
    await watch.aclose()


async def _refused():
    raise EngineUnavailable("refused")


async def test_a_keeper_that_is_silent_for_a_moment_is_still_believed(monkeypatch):
    """One look without an answer changes nothing; ten seconds of them do."""
    keeper = FakeKeeper(EngineLife(asleep=True))
    watch, _ = monitor(EngineUnavailable("refused"), keeper=keeper)
    await watch.refresh()
    keeper.said = None
    assert (await watch.refresh()).asleep
    monkeypatch.setattr("orchestrator.generation.engine_monitor.KEEPER_SILENT_S", 0.0)
    assert not (await watch.refresh()).asleep
