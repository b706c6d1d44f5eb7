"""Row 26 of the fault table: an engine's metrics that are missing, old, renamed, nonsense or slow."""

import concurrent.futures

import pytest

from tests.faults import FaultyEngine, bench, wait_until

KV_TOKENS = 100_000
STALE = "tidegate_engine_metrics_stale"
CORRECTION = "tidegate_capacity_correction"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One orchestrator for the file, before an engine with metrics."""
    with bench(tmp_path_factory.mktemp("metrics"), max_concurrent_requests="8") as made:
        yield made


@pytest.fixture
def watched(running):
    """The orchestrator, knowing its engine's metrics; after the test nothing may be left."""
    speak(running.engine)
    running.heal()
    assert wait_until(lambda: running.status()["gate"]["kv_cache_tokens"] == KV_TOKENS)
    assert wait_until(lambda: running.series(STALE) == 0)
    assert wait_until(lambda: running.series(CORRECTION) == 1, 10)
    yield running
    speak(running.engine)
    running.nothing_left()


def speak(engine: FaultyEngine, *, kv_tokens: int = KV_TOKENS) -> None:
    engine.page_s = 0.0
    engine.page = lambda: engine.gauges(kv_tokens=kv_tokens)


def dead(engine: FaultyEngine) -> None:
    engine.page = None


def renamed(engine: FaultyEngine) -> None:
    engine.page = lambda: engine.gauges().replace("vllm:", "vllm:former_")


def nonsense(engine: FaultyEngine) -> None:
    engine.page = lambda: "\n".join(
        f"{line.split()[0]} NaN" for line in engine.gauges().splitlines() if line
    )


def html(engine: FaultyEngine) -> None:
    engine.page = lambda: "<html><body>It works!</body></html>"


def slow(engine: FaultyEngine) -> None:
    engine.page_s = 3.0


@pytest.mark.parametrize("fault", [dead, renamed, nonsense, html, slow])
def test_unknown_is_neither_idle_nor_full(watched, fault):
    """An alarm, half the limits, and questions are answered; all is as before when it is over."""
    fault(watched.engine)
    assert wait_until(lambda: watched.series(STALE) == 1)
    assert wait_until(lambda: watched.series(CORRECTION) == 0.5, 15)
    gate = watched.status()["gate"]
    assert gate["engine_metrics_stale"]
    assert gate["capacity_tokens"] == pytest.approx(0.95 * KV_TOKENS / 2, rel=0.01)
    assert gate["concurrent"] == 4
    assert watched.ask(degrade=False).status_code == 200
    speak(watched.engine)
    assert wait_until(lambda: watched.series(STALE) == 0)
    assert wait_until(lambda: watched.series(CORRECTION) == 1, 10)


def test_a_frozen_page_does_not_open_the_gate(watched):
    """A page that stands still at "idle" lets nobody in beyond what we ourselves have there."""
    still = watched.engine.gauges()
    watched.engine.page = lambda: still
    watched.engine.play(first_token_s=0.2)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: watched.ask(degrade=False), range(16)))
    assert {a.status_code for a in answers} <= {200, 429}
    assert watched.engine.peak <= 8, "more were with the engine than the limit"


def test_a_page_that_stands_still_while_it_answers_is_unknown(watched):
    """Tokens come and no figure moves: the alarm and half the limits, until the page moves again."""
    still = watched.engine.gauges()
    watched.engine.page = lambda: still
    watched.engine.play(tokens=["word "] * 60, token_s=0.05)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(watched.ask, degrade=False)
        assert wait_until(lambda: watched.series(STALE) == 1)
        assert not asked.done(), "found out only after the answer"
        assert asked.result().status_code == 200
    assert wait_until(lambda: watched.series(CORRECTION) == 0.5, 15)
    assert watched.status()["gate"]["concurrent"] == 4
    assert watched.series(STALE) == 1, "believed again because nobody asks"
    speak(watched.engine)
    assert watched.ask(degrade=False).status_code == 200
    assert wait_until(lambda: watched.series(STALE) == 0)
    assert wait_until(lambda: watched.series(CORRECTION) == 1, 10)


def test_an_idle_engine_may_stand_still(watched):
    """No alarm while nobody asks, nor while one long prompt is read, nor when its tokens come."""
    assert not wait_until(lambda: watched.series(STALE) == 1, 1.5)
    watched.engine.play(first_token_s=1.2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(watched.ask, degrade=False)
        while not asked.done():
            assert watched.series(STALE) == 0
    assert asked.result().status_code == 200
    assert not wait_until(lambda: watched.series(STALE) == 1, 1.0)


def test_the_cache_bounds_what_is_let_in(watched):
    """With room for two prompts in the engine's cache, two run, whatever the request limit says."""
    speak(watched.engine, kv_tokens=2500)
    assert wait_until(lambda: watched.status()["gate"]["kv_cache_tokens"] == 2500)
    watched.engine.play(first_token_s=0.2)
    reserved = []
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(watched.ask, degrade=False) for _ in range(6)]
        while not all(one.done() for one in asked):
            reserved.append(watched.status()["gate"]["reserved_tokens"])
    assert {one.result().status_code for one in asked} <= {200, 429}
    assert 0 < max(reserved) <= 0.95 * 2500, "more of the engine's cache was given out than it has"
    assert watched.engine.peak < 6
