"""How many may share the engine so that their answers end in time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.resilience.answer_limit import answer_limit, first_answer_limit


def limit_of(limit=math.inf, *, running=100.0, answer_s=5.0, long_x=4.0, allowed_s=30.0):
    return answer_limit(
        limit, running=running, answer_s=answer_s, long_s=long_x * answer_s, allowed_s=allowed_s
    )


def test_answers_that_end_in_time_limit_nothing():
    """A quarter of the time that clients allow is theirs, and more where few share the engine."""
    assert limit_of(answer_s=7.5) == math.inf
    assert limit_of(running=4.0, answer_s=22.0) == math.inf


def test_answers_that_take_too_long_limit_how_many_share_the_engine():
    """As many as there is time for, however many were let in before, and always one."""
    assert limit_of(answer_s=16.2) == pytest.approx(50.0)
    assert limit_of(20.0, answer_s=16.2) == 20.0
    assert limit_of(running=1.0, answer_s=1e6) == 1.0
    assert limit_of(allowed_s=0.0) == 1.0


def test_answers_of_one_length_may_take_most_of_the_time():
    """With nothing much longer than the mean, a quarter for the mean would leave the engine idle."""
    assert limit_of(answer_s=23.0, long_x=1.0) == math.inf
    assert limit_of(answer_s=26.0, long_x=1.5) == pytest.approx(60.0)
    assert limit_of(running=4.0, answer_s=24.0, long_x=1.0) == pytest.approx(3.75)
    assert limit_of(answer_s=16.2, long_x=100.0) == pytest.approx(50.0)


def test_a_limit_that_is_too_low_grows():
    """By a quarter a second towards what there is time for, which few on a fast engine show, too."""
    assert limit_of(4.0, running=4.0, answer_s=1.0) == 5.0
    assert limit_of(4.0, running=4.0, answer_s=20.0) == pytest.approx(4.5)
    assert limit_of(4.0, running=0.5, answer_s=20.0) == 4.0
    assert limit_of(4.0, running=0.5, answer_s=2.0) == 5.0


def test_before_any_answer_the_work_done_limits_how_many_share_the_engine():
    """Little's law: what gets done a second, times half of the time, and more among few."""

    def first(running, tokens_per_s):
        return first_answer_limit(
            running=running, work_tokens=1000.0, tokens_per_s=tokens_per_s, allowed_s=25.0
        )

    assert first(100, 20_000.0) == pytest.approx(25 * 20 * 0.52)
    assert first(10, 1_000.0) == pytest.approx(25 * 1 * 0.7)
    assert first(1, 1e-3) == 1.0


@given(
    st.floats(1, 1e6) | st.just(math.inf),
    st.floats(1e-9, 1e4),
    st.floats(1e-3, 1e9),
    st.floats(1e-3, 1e9),
    st.floats(-10, 1e6),
)
def test_one_answer_may_always_be_made(limit, running, answer_s, long_s, allowed_s):
    """Whatever the pace, the limit is at least one and a number."""
    assert (
        answer_limit(limit, running=running, answer_s=answer_s, long_s=long_s, allowed_s=allowed_s)
        >= 1.0
    )
