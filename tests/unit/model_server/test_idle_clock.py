"""How long nobody has asked."""

from hypothesis import given
from hypothesis import strategies as st

from model_server.hang_detector import Pulse
from model_server.idle_clock import IdleClock


def pulse(finished, *, busy=False):
    return Pulse(0.0, busy=busy, finished=finished)


def after(looks):
    """Seconds of idleness after (pulse, own) looks, one second apart."""
    clock = IdleClock()
    for seen, own in looks:
        clock.look(seen, after_s=1.0, own=own)
    return clock.idle_s


def test_an_engine_that_nobody_asks_is_idle():
    """The first look only begins; each further one counts."""
    assert after([(pulse(5), 0)] * 4) == 3


def test_a_request_starts_it_anew():
    """A running request does, and so does one that came and went between two looks."""
    assert after([(pulse(5), 0)] * 4 + [(pulse(5, busy=True), 0)]) == 0
    assert after([(pulse(5), 0)] * 4 + [(pulse(6), 0)]) == 0


def test_our_own_canary_is_nobody():
    """Neither a canary on its way nor its end is a request; time with one out does not count."""
    quiet = [(pulse(5), 0)] * 4
    out = [(pulse(5, busy=True), None), (pulse(6), None)]
    assert after([*quiet, *out, (pulse(6), 1)]) == 4


def test_a_request_beside_a_canary_is_seen():
    """One that ended while a canary was out counts once the canary is back."""
    assert after([(pulse(5), 0)] * 4 + [(pulse(7), None), (pulse(7), 1)]) == 0


def test_what_is_not_known_does_not_count():
    """A silent engine, and one that does not count its requests, is never idle."""
    assert after([(pulse(5), 0), (None, 0), (None, 0)]) == 0
    assert after([(Pulse(0.0, busy=False), 0)] * 9) == 0


@given(
    requests=st.lists(st.integers(min_value=0, max_value=3), min_size=1, max_size=40),
    canaries=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_it_is_the_time_since_the_last_request(requests, canaries):
    """Whatever canaries come in between, idleness is the looks since somebody else asked."""
    clock, theirs, ours, expected = IdleClock(), 0, 0, None
    for asked, canary in zip(requests, canaries, strict=False):
        theirs, ours = theirs + asked, ours + canary
        clock.look(pulse(theirs + ours), after_s=1.0, own=ours)
        expected = 0 if asked or expected is None else expected + 1
    assert clock.idle_s == expected
