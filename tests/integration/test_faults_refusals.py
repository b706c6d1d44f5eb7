"""Rows 17 to 19 of the fault table: engines that refuse, that fail often, that become slow."""

import concurrent.futures
import statistics
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.fake_engine import FakeEngine, Script, serving
from tests.faults import bench, is_passages_only, refused, wait_until

BURST = 10
"""Retries that a quiet service may have saved up."""
SEATS = 6


@pytest.fixture(scope="module")
def stand_in():
    """An engine that nobody asks unless the first one cannot."""
    with serving(FakeEngine()) as engine:
        yield engine


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One orchestrator for the file, with few seats at the engine."""
    folder, seats = tmp_path_factory.mktemp("refusals"), str(SEATS)
    # A budget that grows with the requests alone, so that a slow machine has no larger one.
    with bench(folder, max_concurrent_requests=seats, retry_per_s="0") as made:
        yield made


@pytest.fixture
def broken(running):
    """The orchestrator, healed; after the test nothing may be left."""
    running.heal()
    yield running
    running.engine.play()
    running.nothing_left()


def busy(retry_after: dict[str, str]):
    return (429, {"error": {"message": "Model is overloaded", "type": "overloaded"}}, retry_after)


class TestRow17Overloaded:
    """Up, but full: not a failure, and not to be hammered."""

    @pytest.mark.parametrize(
        ("headers", "least_s", "most_s"),
        [
            ({}, None, None),
            ({"Retry-After": "7"}, 7, 7),
            ({"retry-after-ms": "6500"}, 6.5, 7),
            ({"Retry-After": "soon"}, None, None),
            ({"Retry-After": "86400"}, 60, 60),
            ({"Retry-After": "-5"}, 0, 1),
            ({"Retry-After": "in 20 s"}, 15, 22),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_is_told_to_the_caller(self, broken, headers, least_s, most_s):
        """429 with the engine's own pause, within what clients obey; nonsense is no pause."""
        if headers.get("Retry-After") == "in 20 s":
            later = datetime.now(UTC) + timedelta(seconds=20)
            headers = {"Retry-After": format_datetime(later, usegmt=True)}
        broken.engine.play(statuses=[busy(headers)] * 9)
        response = broken.ask(degrade=False)
        assert refused(response) == (429, "engine_overloaded")
        if least_s is not None:
            assert least_s <= int(response.headers["retry-after-ms"]) / 1000 <= most_s
            assert int(response.headers["retry-after"]) <= 60
        assert broken.breaker() == "closed"

    def test_is_no_failure_of_the_engine(self, broken):
        """However often it happens, the breaker stays closed; our own limit shrinks."""
        broken.engine.play(statuses=[busy({"Retry-After": "9"})] * 30)
        for _ in range(30):
            broken.ask(degrade=False)
        assert broken.breaker() == "closed"
        assert wait_until(lambda: broken.status()["gate"]["correction"] < 1)

    def test_a_short_pause_is_waited(self, broken):
        """A pause that fits the deadline is kept, and the caller gets an answer."""
        broken.engine.play(statuses=[busy({"retry-after-ms": "300"})])
        began_s = time.monotonic()
        assert broken.ask(degrade=False).status_code == 200
        assert time.monotonic() - began_s >= 0.3

    def test_gives_the_passages_to_who_takes_them(self, broken):
        """Full is a reason to degrade, too."""
        broken.engine.play(statuses=[busy({"Retry-After": "9"})])
        assert is_passages_only(broken.ask())


class TestRow18Storms:
    """Failures that come often."""

    def test_retries_are_within_the_budget(self, broken):
        """With 30 % of requests failing the engine gets a tenth more than was asked of it."""
        pattern = [503 if n % 10 in {0, 3, 6} else None for n in range(1000)]
        broken.engine.refuse = pattern.__getitem__
        asked = 150
        with concurrent.futures.ThreadPoolExecutor(SEATS) as pool:
            answers = pool.map(lambda _: broken.ask(degrade=False), range(asked))
            statuses = [answer.status_code for answer in answers]
        assert len(broken.engine.requests) <= 1.1 * asked + BURST
        assert len(broken.engine.requests) > asked, "nothing was retried"
        assert statuses.count(200) >= 0.7 * asked
        assert broken.breaker() == "closed"

    @pytest.mark.parametrize(
        ("status", "told"),
        [
            (500, (502, "engine_protocol_error")),
            (502, (503, "engine_unavailable")),
            (504, (504, "engine_timeout")),
        ],
    )
    def test_opens_tries_once_and_closes(self, broken, status, told):
        """At 100 % it opens within two seconds, lets one request try, and closes by itself."""
        broken.engine.refuse = lambda _: status
        began_s = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(SEATS) as pool:
            while broken.breaker() == "closed":
                asked = [pool.submit(broken.ask, degrade=False) for _ in range(SEATS)]
                assert {refused(one.result()) for one in asked} <= {told, (503, "circuit_open")}
                assert time.monotonic() - began_s < 2
        assert is_passages_only(broken.ask())
        assert wait_until(lambda: broken.breaker() == "half_open")
        broken.engine.play(tokens=["a"] * 7, token_s=0.4)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(broken.ask, degrade=False)
            assert wait_until(lambda: broken.engine.running == 1)
            for _ in range(3):
                assert refused(broken.ask(degrade=False)) == (503, "circuit_open")
            assert broken.engine.running == len(broken.engine.requests) == 1
            assert first.result().status_code == 200
        assert broken.breaker() == "closed"

    def test_a_failed_try_opens_it_for_longer(self, broken):
        """The single request that tries and fails costs the engine nothing more for a while."""
        broken.engine.refuse = lambda _: 500
        assert wait_until(lambda: refused(broken.ask(degrade=False))[1] == "circuit_open", 10), (
            "an engine that always fails is asked again and again"
        )
        assert wait_until(lambda: broken.breaker() == "half_open")
        broken.engine.requests.clear()
        broken.ask(degrade=False)
        assert refused(broken.ask(degrade=False)) == (503, "circuit_open")
        assert len(broken.engine.requests) == 1


class TestRow19LatencyStep:
    """The engine becomes ten times slower, at once."""

    def test_what_it_can_do_is_still_used(self, broken):
        """The slow engine's seats are nine tenths full, and waits are foretold anew."""
        broken.engine.play(tokens=["a"] * 10, token_s=0.02)
        over = threading.Event()

        def client() -> None:
            while not over.is_set():
                broken.ask(degrade=False)

        with concurrent.futures.ThreadPoolExecutor(2 * SEATS) as pool:
            clients = [pool.submit(client) for _ in range(2 * SEATS)]
            time.sleep(1)
            broken.engine.script = Script(tokens=["a"] * 10, token_s=0.2)
            time.sleep(2.5)
            taken, longest_eta_s = [], 0.0
            until_s = time.monotonic() + 2.5
            while time.monotonic() < until_s:
                taken.append(broken.engine.running)
                longest_eta_s = max(longest_eta_s, broken.status()["gate"]["eta_s"] or 0.0)
                time.sleep(0.02)
            over.set()
            for one in clients:
                one.result()
        assert statistics.mean(taken) >= 0.9 * SEATS
        assert 0.35 <= longest_eta_s <= 4, "six wait for six seats of two seconds each"


class TestFallback:
    """L2: another engine answers."""

    def test_the_first_that_can_answers(self, tmp_path, stand_in):
        """One that is not there is passed over; the answer says who gave it."""
        urls = f'["http://127.0.0.1:9", "{stand_in.url}"]'
        with bench(tmp_path, fallback_engine_urls=urls) as made:
            assert stand_in.requests == []
            made.proxy.play(refuse=True)
            assert wait_until(lambda: made.status()["dependencies"]["engine"]["status"] == "down")
            answer = made.ask()
            assert (answer.status_code, answer.headers["x-tidegate-degraded"]) == (200, "L2")
            assert answer.json()["answer"] == "The gate closes [1]."
            assert "fallback-2" in answer.json()["degraded"]["reason"]
            assert refused(made.ask(degrade=False)) == (503, "engine_unavailable")
            assert made.series('tidegate_degraded_answers_total{level="L2"}') == 1
            made.proxy.play()
            assert wait_until(lambda: made.ask().json()["degraded"] is None)
            made.nothing_left()
