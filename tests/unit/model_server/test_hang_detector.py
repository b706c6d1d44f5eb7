"""Hung or not: found in time, and never said of an engine that works, is full, or was not looked at."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.hang_detector import HangDetector, Patience, Pulse, Verdict

PATIENCE = Patience(hang_s=60, look_s=1)


def watch(detector, pulses):
    """The verdicts; a canary is sent when it is asked for, and never answered."""
    told = []
    for pulse in pulses:
        told.append(detector.look(pulse, after_s=1))
        if told[-1] is Verdict.ASK:
            detector.asked()
    return told


def standing(looks, *, busy=True, steps=100):
    return [Pulse(steps, busy)] * looks


@pytest.mark.parametrize(
    ("pulses", "asked_at"),
    [
        (standing(61), 10),
        (standing(61, busy=False), 20),
        ([None] * 61, 10),
        ([*standing(5, busy=False), *[None] * 56], 10),
    ],
    ids=["with requests", "idle", "no answer", "idle, then no answer"],
)
def test_a_hang_is_found_within_its_time(pulses, asked_at):
    """Asked once, and hung when that is not answered; at the latest after `hang_s` looks."""
    told = watch(HangDetector(PATIENCE), pulses)
    assert told.index(Verdict.ASK) + 1 == asked_at
    assert told.count(Verdict.ASK) == 1
    assert told.index(Verdict.HUNG) + 1 <= 60


def test_every_step_is_a_sign_of_life():
    """Whatever else is slow: an engine that counts on is never asked."""
    pulses = [Pulse(n // 9, busy=True) for n in range(1000)]
    assert set(watch(HangDetector(PATIENCE), pulses)) == {Verdict.FINE}


def test_a_canary_that_waits_in_a_full_engine_condemns_nobody():
    """It is not answered for minutes, and the steps go on: fine."""
    detector = HangDetector(PATIENCE)
    watch(detector, standing(12))
    assert set(watch(detector, [Pulse(101 + n // 9, busy=True) for n in range(500)])) == {
        Verdict.FINE
    }


def test_an_engine_that_hangs_with_a_canary_in_its_queue_is_found():
    """The canary of an earlier silence is still out: no second one, and the time runs all the same."""
    detector = HangDetector(PATIENCE)
    watch(detector, standing(12))
    watch(detector, [Pulse(101 + n, busy=True) for n in range(30)])
    told = watch(detector, standing(61, steps=130))
    assert Verdict.ASK not in told
    assert told.index(Verdict.HUNG) + 1 <= 60


def test_a_canary_that_is_answered_begins_anew():
    """An engine without metrics is asked again and again, and lives."""
    detector = HangDetector(PATIENCE)
    for _ in range(20):
        assert Verdict.HUNG not in [detector.look(None, after_s=1) for _ in range(9)]
        assert detector.look(None, after_s=1) is Verdict.ASK
        detector.asked()
        detector.look(None, after_s=1)
        detector.answered()
        assert detector.silent_s == 0


def test_a_canary_that_is_refused_is_sent_again_and_the_time_runs_on():
    """A hung engine with a full queue refuses everybody: that is no sign of life."""
    detector = HangDetector(PATIENCE)
    told = []
    while Verdict.HUNG not in told:
        told.append(detector.look(Pulse(100, busy=True), after_s=1))
        if told[-1] is Verdict.ASK:
            detector.asked()
            detector.unanswered()
    assert len(told) <= 60
    assert told.count(Verdict.ASK) > 1


def test_there_is_never_a_second_canary_beside_one():
    """Piled up probes have brought engines down."""
    detector = HangDetector(Patience(hang_s=600, look_s=1))
    assert watch(detector, standing(300)).count(Verdict.ASK) == 1


def test_a_look_counts_for_as_long_as_it_took_and_no_longer():
    """Looks that nobody answers take longer; a pause of the whole machine is not the engine's."""
    detector = HangDetector(PATIENCE)
    for _ in range(3):
        detector.look(None, after_s=3.0)
    assert detector.silent_s == 9
    detector.look(None, after_s=3600)
    assert detector.silent_s == 12


@given(st.lists(st.sampled_from(["step", "stand", "none", "answered", "refused"]), max_size=300))
def test_nobody_is_condemned_without_having_been_silent_for_long(events):
    """Between the last sign of life and HUNG lie a question and forty silent looks."""
    detector = HangDetector(PATIENCE)
    steps, silent, asked_silent, asked = 0, 0, 0, False
    detector.look(Pulse(steps, busy=True), after_s=1)
    for event in events:
        if event in {"answered", "refused"}:
            if event == "answered":
                detector.answered()
                silent, asked = 0, False
            else:
                detector.unanswered()
            continue
        steps += event == "step"
        verdict = detector.look(None if event == "none" else Pulse(steps, busy=True), after_s=1)
        if event == "step":
            silent, asked = 0, False
            assert verdict is Verdict.FINE
            continue
        silent += 1
        asked_silent += asked
        if verdict is Verdict.ASK:
            detector.asked()
            asked_silent, asked = (asked_silent if asked else 0), True
        if verdict is Verdict.HUNG:
            assert asked
            assert asked_silent >= 40
            assert silent >= 50


@pytest.mark.parametrize(("hang_s", "look_s"), [(0, 1), (5, 1), (60, 0)])
def test_a_patience_without_room_for_looks_is_refused(hang_s, look_s):
    """There must be looks between each of the steps to the verdict."""
    with pytest.raises(ValueError, match="patience"):
        Patience(hang_s=hang_s, look_s=look_s)
