"""What the gate learns: the engine's speed, the length of answers, how true its forecasts were."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.resilience.load_estimates import (
    MIN_SAMPLES,
    AnswerPace,
    DrainMeter,
    Forecasts,
    LongAnswers,
    OutputLengths,
    RefusalStreak,
)


def work(meter, per_s, seconds, start_s, *, step_s=0.1):
    """A steady rate for some seconds; the time it ends."""
    for step in range(1, round(seconds / step_s) + 1):
        meter.done(round(per_s * step_s), start_s + step * step_s)
    return start_s + seconds


def test_the_rate_is_unknown_until_requests_have_waited():
    """Work on an engine that nobody waits for says nothing about how fast it can be."""
    meter = DrainMeter()
    work(meter, 1000, 5, 0.0)
    assert meter.tokens_per_s(5.0) is None
    meter.busy(5.0)
    meter.done(100, 5.1)
    assert meter.tokens_per_s(5.1) is None
    work(meter, 1000, 1, 5.1)
    assert meter.tokens_per_s(6.1) == pytest.approx(1000, rel=0.05)


def test_nothing_done_is_not_a_rate():
    """A queue before an engine that gives nothing predicts no wait rather than an endless one."""
    meter = DrainMeter()
    meter.busy(0.0)
    assert meter.tokens_per_s(10.0) is None


@given(st.integers(100, 20_000), st.floats(1, 60))
def test_a_steady_rate_is_measured_without_bias(per_s, seconds):
    """From the first second on the estimate is the true rate, however short the history."""
    meter = DrainMeter()
    meter.busy(0.0)
    end_s = work(meter, per_s, seconds, 0.0)
    assert meter.tokens_per_s(end_s) == pytest.approx(per_s, rel=0.1)


def test_idle_time_does_not_count():
    """An hour without anybody waiting leaves the rate as it was."""
    meter = DrainMeter()
    meter.busy(0.0)
    before = meter.tokens_per_s(work(meter, 1000, 10, 0.0))
    meter.idle(10.0)
    meter.done(5, 1800.0)
    assert meter.tokens_per_s(3600.0) == before
    meter.busy(3600.0)
    assert meter.tokens_per_s(3600.0) == before


@pytest.mark.parametrize(("before", "after"), [(5000, 500), (500, 5000)])
def test_a_tenfold_change_is_followed_within_two_half_lives(before, after):
    """Two half-lives after a step in speed three quarters of the way are gone."""
    meter = DrainMeter(half_life_s=4.0)
    meter.busy(0.0)
    end_s = work(meter, after, 8, work(meter, before, 60, 0.0))
    rate = meter.tokens_per_s(end_s)
    assert abs(rate - after) <= 0.27 * abs(before - after)


def test_busy_twice_and_idle_twice_change_nothing():
    """Whoever says it again is not counted again, and time that has passed is not lost."""
    rates = []
    for again in (False, True):
        meter = DrainMeter()
        meter.busy(0.0)
        meter.done(1000, 1.0)
        if again:
            meter.busy(2.0)
        meter.done(1000, 3.0)
        meter.idle(4.0)
        if again:
            meter.idle(5.0)
        rates.append(meter.tokens_per_s(9.0))
    assert rates[0] == pytest.approx(rates[1])


def test_answers_are_foretold_from_the_limit_until_enough_were_seen():
    """Half of max_tokens, never less than one token."""
    lengths = OutputLengths()
    for _ in range(MIN_SAMPLES - 1):
        lengths.learn(10)
    assert lengths.predict(400) == (200, 200)
    assert lengths.predict(1) == (1, 1)
    lengths.learn(10)
    assert lengths.predict(400) == (10, 10)


def test_four_in_five_answers_stay_below_the_foretold_length():
    """q80 and mean of what was seen, cut off at what the request may have."""
    lengths = OutputLengths()
    for tokens in range(1, 101):
        lengths.learn(tokens)
    assert lengths.predict(1000) == (80, 50)
    assert lengths.predict(30) == (30, 30)


def test_old_answers_are_forgotten():
    """Only the last window counts."""
    lengths = OutputLengths(window=20)
    for _ in range(50):
        lengths.learn(1000)
    assert lengths.predict(4096) == (1000, 1000)
    for _ in range(20):
        lengths.learn(10)
    assert lengths.predict(4096) == (10, 10)


def test_an_empty_answer_is_foretold_as_one_token():
    """Nothing is ever reserved for nothing."""
    lengths = OutputLengths()
    for _ in range(MIN_SAMPLES):
        lengths.learn(0)
    assert lengths.predict(100) == (1, 1)


def test_a_forecast_is_judged_when_its_work_has_left_the_queue():
    """Told over true: 10 s told, 5 s true is 2."""
    forecasts = Forecasts()
    assert forecasts.median_ratio() is None
    forecasts.promised(10.0, 300, now_s=100.0)
    forecasts.left(299, now_s=104.0)
    assert forecasts.count == 0
    forecasts.left(1, now_s=105.0)
    assert (forecasts.count, forecasts.median_ratio()) == (1, 2.0)


def test_the_middle_forecast_counts():
    """One forecast that was far off does not spoil the figure."""
    forecasts = Forecasts()
    for told_s in (4.0, 5.0, 500.0):
        forecasts.promised(told_s, 100, now_s=0.0)
    forecasts.left(100, now_s=5.0)
    assert forecasts.median_ratio() == 1.0


def test_what_an_empty_queue_cannot_judge_is_dropped():
    """Once nobody waits, nobody knows when the refused would have been served."""
    forecasts = Forecasts()
    forecasts.promised(10.0, 300, now_s=0.0)
    forecasts.emptied()
    forecasts.left(1000, now_s=500.0)
    assert forecasts.count == 0


def test_overload_is_sustained_after_five_seconds_of_refusals():
    """Not by a single burst, and not any more two seconds after the last refusal."""
    streak = RefusalStreak()
    assert not streak.sustained(0.0)
    for now_s in (10.0, 11.0, 12.5, 14.0):
        streak.refused(now_s)
        assert not streak.sustained(now_s)
    streak.refused(15.0)
    assert streak.sustained(15.0)
    assert streak.sustained(17.0)
    assert not streak.sustained(17.1)
    streak.refused(18.0)
    assert not streak.sustained(18.0)


def test_overload_lasts_as_long_as_its_queue():
    """A pause in the refusals beside a long queue is none; after a gap, a queue alone is no overload."""
    streak = RefusalStreak()
    streak.queue_stands(9.0)
    for now_s in (10.0, 12.0, 14.0):
        streak.refused(now_s)
    for now_s in (16.0, 18.0, 20.0):
        streak.queue_stands(now_s)
        assert streak.sustained(now_s)
    assert not streak.sustained(22.1)
    streak.queue_stands(22.1)
    assert not streak.sustained(22.1)


def answered(pace, *, streams=4, token_s=0.05, seconds=40, tokens=100):
    """Streams that get a token each `token_s`; answers that end after `tokens`; the time it ends."""
    pace.live(streams, 0.0)
    steps = round(seconds / token_s)
    for step in range(1, steps + 1):
        pace.done(streams, step * token_s)
        if step % tokens == 0:
            for _ in range(streams):
                pace.left(tokens, finished=True)
    return steps * token_s


def test_an_answer_takes_its_tokens_times_their_pace():
    """Known once enough answers have ended: how many share the engine, and how long one takes."""
    pace = AnswerPace()
    assert pace.seen(answered(pace, seconds=20)) is None
    pace = AnswerPace()
    seen = pace.seen(answered(pace))
    assert seen.running == pytest.approx(4.0)
    assert seen.answer_s == pytest.approx(100 * 0.05, rel=0.05)
    assert seen.token_s == pytest.approx(0.05, rel=0.05)


def test_one_slow_token_is_one_of_many():
    """A pause of a second moves the prediction a little, and a moment later hardly."""
    pace = AnswerPace()
    end_s = answered(pace)
    pace.done(4, end_s + 1.0)
    assert pace.seen(end_s + 1.0).answer_s <= 1.1 * 5.0


def test_a_slower_engine_is_followed():
    """Twenty seconds after its tokens began to take ten times as long, it is known."""
    pace = AnswerPace()
    end_s = answered(pace)
    for step in range(1, 41):
        pace.done(4, end_s + step * 0.5)
    assert pace.seen(end_s + 20.0).answer_s >= 15.0


def test_answers_that_were_cut_off_are_not_short():
    """Where only the short ones end, the mean counts what the others had got so far."""
    pace = AnswerPace()
    answered(pace)
    for _ in range(200):
        pace.left(100, finished=True)
        pace.left(300, finished=False)
    assert pace.seen(40.0).answer_s == pytest.approx(4 * 5.0, rel=0.1)


def test_a_pause_changes_no_pace():
    """An engine that nobody used is what it was, not a slow one and not an unknown one."""
    pace = AnswerPace()
    end_s = answered(pace)
    before = pace.seen(end_s)
    pace.live(0, end_s)
    assert pace.seen(end_s + 3600.0) == before
    pace.live(4, end_s + 3600.0)
    pace.done(4, end_s + 3600.05)
    assert pace.seen(end_s + 3600.05).answer_s == pytest.approx(before.answer_s, rel=0.01)


def long_of(lengths, *, window=50):
    """What is known after answers of these lengths, one after the other."""
    long_answers = LongAnswers(window=window)
    for number, tokens in enumerate(lengths):
        long_answers.began(number)
        long_answers.ended(number, tokens)
    return long_answers


def test_a_long_answer_is_one_that_few_are_longer_than():
    """One in fifty does not count, two do; those before the window are forgotten."""
    assert long_of([100] * 49 + [900]).tokens() == 100
    assert long_of([100] * 48 + [400, 900]).tokens() == 400
    assert long_of([900] * 50 + [100] * 50).tokens() == 100


def test_empty_answers_are_nothing_to_divide_by():
    """An engine that says of nothing that it is whole must not break the gate for all who come after."""
    assert long_of([0] * 50).tokens() == 1


def test_a_long_answer_is_unknown_until_a_window_was_seen():
    """The longest may be of any length until then."""
    assert long_of([100] * 49).tokens() == math.inf


def test_of_those_that_begin_together_the_short_ones_do_not_count_first():
    """One that goes on holds back all that began after it; whoever hung up does not."""
    long_answers = long_of([100] * 50)
    long_answers.began("long")
    for number in range(100, 200):
        long_answers.began(number)
        long_answers.ended(number, 5)
    assert long_answers.tokens() == 100
    long_answers.gave_up("long")
    assert long_answers.tokens() == 5


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), max_size=100))
def test_nothing_is_kept_of_those_that_have_left(steps):
    """However answers begin, end and are cut short: once nobody is left, nobody is waited for."""
    long_answers = LongAnswers(window=1)
    for answer, step in steps:
        if step == 0:
            long_answers.began(answer)
        else:
            long_answers.gave_up(answer)
    for answer in range(8):
        long_answers.gave_up(answer)
    long_answers.began("last")
    long_answers.ended("last", 77)
    assert long_answers.tokens() == 77
