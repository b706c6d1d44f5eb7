"""How limits follow what the engine shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.resilience.correction_policy import (
    MAX_CORRECTION,
    MIN_CORRECTION,
    UNKNOWN_CORRECTION,
    Signals,
    corrected,
    our_share,
)

SIGNALS = st.builds(
    Signals,
    known=st.booleans(),
    preempted=st.integers(0, 3),
    starved=st.booleans(),
    refused=st.booleans(),
    late=st.booleans(),
    slowed=st.booleans(),
)


@given(st.lists(SIGNALS, max_size=60))
def test_the_correction_stays_within_its_bounds(looks):
    """Whatever the engine shows, limits are never cut below 30 % and never raised above 100 %."""
    correction = MAX_CORRECTION
    for signals in looks:
        correction = corrected(correction, signals)
        assert MIN_CORRECTION <= correction <= MAX_CORRECTION


@pytest.mark.parametrize("sign", ["preempted", "starved", "refused", "slowed", "late"])
def test_congestion_cuts_at_once_and_quiet_raises_slowly(sign):
    """One sign takes 15 % away; getting it back takes eight quiet looks."""
    cut = corrected(1.0, Signals(known=True, **{sign: 1}))
    assert cut == pytest.approx(0.85)
    looks = 0
    while cut < 1.0:
        cut = corrected(cut, Signals(known=True))
        looks += 1
    assert looks == 8


def test_how_far_each_sign_cuts():
    """Congestion cuts to 30 %; what is unknown, or may be the callers' doing, to half."""
    floors = {}
    for name, signals in {
        "congested": Signals(known=True, preempted=1),
        "unknown": Signals(known=False),
        "late": Signals(known=True, late=True),
    }.items():
        correction = 1.0
        for _ in range(50):
            correction = corrected(correction, signals)
        floors[name] = correction
    assert floors == {
        "congested": MIN_CORRECTION,
        "unknown": UNKNOWN_CORRECTION,
        "late": UNKNOWN_CORRECTION,
    }


@pytest.mark.parametrize("signals", [Signals(known=False), Signals(known=True, late=True)])
def test_what_was_cut_below_half_is_not_raised_by_not_knowing(signals):
    """Neither silence nor lateness is a reason to send more."""
    assert corrected(0.4, signals) == 0.4


@given(st.floats(1, 1e5), st.floats(0, 2e5))
def test_our_share_is_what_others_leave_and_at_least_half(limit, foreign):
    """Somebody else's use is respected down to half the limit, so nobody can push us out."""
    share = our_share(limit, foreign)
    assert limit / 2 <= share <= limit
    if foreign <= limit / 2:
        assert share == limit - foreign
