"""Levels of pressure: monotone in what is left, quick to rise, and without flapping."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.memory_pressure import (
    Pressure,
    PressureGauge,
    Thresholds,
    pressure,
    room_bytes,
)
from model_server.planner import Goals, make_plan
from tests.unit.model_server.making import GIB, make_cpu, make_gpu, make_shape

MIB = 1024**2
rooms = st.integers(0, 4 * GIB)
reserves = st.integers(0, 2 * GIB)


@pytest.mark.parametrize(
    ("room_mib", "level"),
    [
        (2048, Pressure.NONE),
        (512, Pressure.NONE),
        (511, Pressure.HIGH),
        (256, Pressure.HIGH),
        (255, Pressure.CRITICAL),
        (0, Pressure.CRITICAL),
    ],
)
def test_levels_begin_at_shares_of_the_reserve(room_mib, level):
    """Half of a reserve of 1 GiB, and a quarter of it."""
    assert pressure(room_mib * MIB, reserve_bytes=GIB) is level
    assert PressureGauge().look(room_mib * MIB, reserve_bytes=GIB) is level


@given(rooms, rooms, reserves)
def test_more_room_is_never_more_pressure(one, other, reserve):
    """Monotone in what is left, whatever the reserve."""
    less, more = sorted((one, other))
    assert pressure(less, reserve_bytes=reserve).rank >= pressure(more, reserve_bytes=reserve).rank


@given(st.lists(rooms, max_size=30), rooms, rooms, reserves)
def test_the_gauge_is_monotone_too(before, one, other, reserve):
    """After the same past, the look with more room never gives the higher level."""
    less, more = sorted((one, other))
    levels = []
    for last in (less, more):
        gauge = PressureGauge()
        for room in before:
            gauge.look(room, reserve_bytes=reserve)
        levels.append(gauge.look(last, reserve_bytes=reserve).rank)
    assert levels[0] >= levels[1]


@given(st.lists(rooms, max_size=50), reserves)
def test_the_gauge_never_says_less_than_there_is(looks, reserve):
    """It rises with the very look that a level begins with."""
    gauge = PressureGauge()
    for room in looks:
        assert (
            gauge.look(room, reserve_bytes=reserve).rank
            >= pressure(room, reserve_bytes=reserve).rank
        )


@pytest.mark.parametrize("begins_mib", [512, 256])
@given(data=st.data())
def test_nothing_flaps_within_the_band(begins_mib, data):
    """Between where a level begins and half as much again, no sequence of looks changes the level."""
    band = st.integers(begins_mib * MIB, begins_mib * MIB * 3 // 2 - 1)
    for start in (begins_mib * MIB - 1, 4 * GIB):
        gauge = PressureGauge()
        first = gauge.look(start, reserve_bytes=GIB)
        if start > GIB:
            # From above: high may have begun already where critical's band is.
            first = gauge.look(data.draw(band), reserve_bytes=GIB)
        for room in data.draw(st.lists(band, max_size=20)):
            assert gauge.look(room, reserve_bytes=GIB) is first


def test_it_falls_with_clearly_more_room():
    """Critical ends at three eighths of the reserve, high at three quarters."""
    gauge = PressureGauge()
    told = [gauge.look(room * MIB, reserve_bytes=GIB) for room in (100, 383, 384, 767, 768)]
    assert told == ["critical", "critical", "high", "high", "none"]


def test_all_at_once_is_well_again():
    """From critical to none in one look, when everything was given back."""
    gauge = PressureGauge()
    gauge.look(0, reserve_bytes=GIB)
    assert gauge.look(4 * GIB, reserve_bytes=GIB) is Pressure.NONE


@pytest.mark.parametrize("level_mib", [100, 400, 2000])
def test_what_is_unknown_changes_nothing(level_mib):
    """A look that saw nothing leaves the level as it was."""
    gauge = PressureGauge()
    before = gauge.look(level_mib * MIB, reserve_bytes=GIB)
    assert gauge.look(None, reserve_bytes=GIB) is before


def test_nothing_left_is_critical_also_without_a_reserve():
    """Whoever reserves nothing is told all the same when there is nothing."""
    assert pressure(0, reserve_bytes=0) is Pressure.CRITICAL
    assert pressure(64 * MIB, reserve_bytes=0) is Pressure.NONE


def test_levels_have_an_order():
    """None, high, critical: as text they would not sort."""
    assert sorted(Pressure, key=lambda level: level.rank) == ["none", "high", "critical"]


@pytest.mark.parametrize(
    "wrong", [{"high": 0.2}, {"critical": 0}, {"relief": 0.9}, {"relief": 2.0}, {"high": 1.0}]
)
def test_thresholds_that_would_stick_or_flap_are_refused(wrong):
    """Levels in order, relief at least 1, and back at none with the reserve whole."""
    with pytest.raises(ValueError, match="thresholds"):
        Thresholds(**wrong)


def test_what_the_engine_has_not_taken_yet_is_not_free():
    """Of 10 GiB free it will take 6 more; one that holds more than was planned takes none back."""
    assert room_bytes(10 * GIB, planned_bytes=8 * GIB, engine_bytes=2 * GIB) == 4 * GIB
    assert room_bytes(10 * GIB, planned_bytes=8 * GIB, engine_bytes=9 * GIB) == 10 * GIB
    assert room_bytes(1 * GIB, planned_bytes=8 * GIB, engine_bytes=2 * GIB) == 0
    assert room_bytes(10 * GIB, planned_bytes=8 * GIB, engine_bytes=None) == 10 * GIB


@pytest.mark.parametrize(
    ("device", "shape"),
    [
        (make_cpu(6 * GIB), make_shape()),
        (make_gpu(), make_shape()),
        (make_gpu(78 * GIB, 80 * GIB), make_shape(weight_bytes=16 * GIB)),
        (make_gpu(20 * GIB, 80 * GIB), make_shape(weight_bytes=14 * GIB)),
    ],
    ids=["cpu", "gpu", "large gpu", "shared gpu"],
)
@given(data=st.data())
def test_an_engine_within_its_plan_is_no_pressure(device, shape, data):
    """From its first byte to its last, with nobody else on the device, also of a plan that takes all."""
    plan = make_plan(device=device, shape=shape, goals=Goals())
    engine = data.draw(st.integers(0, plan.total_bytes))
    room = room_bytes(
        device.free_bytes - engine, planned_bytes=plan.total_bytes, engine_bytes=engine
    )
    assert room >= plan.sums.reserve
    assert pressure(room, reserve_bytes=plan.sums.reserve) is Pressure.NONE


@given(st.integers(0, 23 * GIB))
def test_what_others_take_of_the_reserve_is_pressure(others):
    """Whatever the engine has taken so far: what counts is what is left of the reserve in the end."""
    device = make_gpu()
    plan = make_plan(device=device, shape=make_shape(), goals=Goals())
    spare = device.free_bytes - plan.total_bytes
    levels = {
        pressure(
            room_bytes(
                max(0, device.free_bytes - engine - others),
                planned_bytes=plan.total_bytes,
                engine_bytes=engine,
            ),
            reserve_bytes=plan.sums.reserve,
        )
        for engine in (0, plan.total_bytes // 2, plan.total_bytes)
    }
    assert levels == {pressure(max(0, spare - others), reserve_bytes=plan.sums.reserve)}
