"""How late the event loop is, who blocks it, and a sign of life from another thread."""

import httpx2
import pytest

from orchestrator.telemetry.loop_lag import DEAD_S, Liveness, LoopLag


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now_s = 50.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def test_lag_is_what_a_tick_is_late(clock):
    """On time is no lag; each measurement is told; the worst is kept until it is read."""
    told = []
    lag = LoopLag(interval_s=0.1, clock=clock, on_lag=told.append)
    lag.expect_tick()
    for late_s in (0.0, 0.4, 0.01):
        clock.now_s += 0.1 + late_s
        lag.ticked()
    assert told == pytest.approx([0.0, 0.4, 0.01])
    assert lag.take_max_s() == pytest.approx(0.4)
    assert lag.take_max_s() == pytest.approx(0.0)


def test_a_tick_that_does_not_come_is_lag_already(clock):
    """Who asks during a standstill hears of it."""
    lag = LoopLag(interval_s=0.1, clock=clock)
    assert lag.lag_s == 0
    lag.expect_tick()
    clock.now_s += 3.1
    assert lag.lag_s == pytest.approx(3.0)
    assert lag.take_max_s() == pytest.approx(3.0)


def test_each_standstill_is_logged_once(clock, caplog):
    """One warning a standstill, and none while the loop is merely slow."""
    lag = LoopLag(interval_s=0.1, stall_s=1.0, clock=clock)
    lag.look()
    lag.expect_tick()
    clock.now_s += 0.9
    lag.look()
    assert not caplog.records
    for _ in range(3):
        clock.now_s += 1.0
        lag.look()
    assert (len(caplog.records), lag.stalls) == (1, 1)
    lag.ticked()
    clock.now_s += 1.2
    lag.look()
    assert (len(caplog.records), lag.stalls) == (2, 2)


def ask(door, path="/healthz"):
    return httpx2.get(f"http://127.0.0.1:{door.port}{path}", timeout=5, trust_env=False)


def test_liveness_answers_while_the_loop_cannot(clock):
    """200 with the lag; 503 once the loop counts as dead; 404 elsewhere."""
    lag = LoopLag(interval_s=0.1, clock=clock)
    lag.expect_tick()
    door = Liveness(0, lag)
    door.start()
    try:
        clock.now_s += 2.1
        alive = ask(door)
        clock.now_s += DEAD_S
        dead = ask(door)
        elsewhere = ask(door, "/metrics")
    finally:
        door.close()
    assert (alive.status_code, alive.json()) == (200, {"loop_lag_s": 2.0})
    assert (dead.status_code, dead.json()) == (503, {"loop_lag_s": 32.0})
    assert elsewhere.status_code == 404
    assert door.port == 0
