"""Decisions from numbers: what fits, who goes first, who is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain import Band
from orchestrator.resilience.admission_policy import (
    Action,
    AdmissionLimits,
    Bound,
    Capacity,
    Demand,
    Load,
    Waiting,
    bound,
    brownout,
    decide,
    future_peak_tokens,
    predicted_wait_s,
    remaining_tokens,
    retry_after_s,
    serving_order,
    standing,
)

LIMITS = AdmissionLimits(max_concurrent=4, max_queued=3, wait_target_s=10.0)
LIVE = st.tuples(st.integers(0, 500), st.integers(0, 60))
DEMAND = Demand(prompt_tokens=100, output_tokens=50, mean_output_tokens=40, max_tokens=200)


def played_out(live):
    """The same peak, by letting everybody grow a token at a time until all have ended."""
    last = max((remaining for _, remaining in live), default=0)
    return max(
        sum(tokens + step for tokens, remaining in live if remaining >= step)
        for step in range(last + 1)
    )


@given(st.lists(LIVE, max_size=12))
def test_the_peak_is_the_one_that_playing_it_out_shows(live):
    """The formula and the step-by-step play agree for every set of requests."""
    assert future_peak_tokens(live) == played_out(live)


@given(st.lists(LIVE, max_size=8), LIVE, st.integers(0, 50), st.integers(0, 50))
def test_the_peak_never_falls_when_somebody_needs_more(live, extra, tokens, remaining):
    """One request more, or more tokens of one, never make the peak smaller."""
    with_it = future_peak_tokens([*live, extra])
    assert with_it >= future_peak_tokens(live)
    larger = (extra[0] + tokens, extra[1] + remaining)
    assert future_peak_tokens([*live, larger]) >= with_it


@given(st.integers(0, 300))
def test_an_answer_that_outgrows_its_prediction_never_passes_its_limit(produced):
    """What is still to come is never negative and never goes beyond max_tokens."""
    left = remaining_tokens(produced, DEMAND)
    assert 0 <= left <= max(0, DEMAND.max_tokens - produced)
    if produced < DEMAND.output_tokens:
        assert left == DEMAND.output_tokens - produced


def test_an_outgrown_answer_is_taken_to_grow_by_a_quarter():
    """At least 16 tokens more, or a quarter of what there is."""
    demand = Demand(100, 50, 40, 10_000)
    assert remaining_tokens(50, demand) == 16
    assert remaining_tokens(400, demand) == 100


def test_one_request_alone_always_fits():
    """What is too large for everything is still tried: the engine has the last word."""
    giant = Demand(10**6, 10**6, 10**6, 10**6)
    assert bound(giant, Band.BATCH, Load([], 0), Capacity(100, 1, 10), LIMITS) is None


def test_requests_are_bounded_by_number():
    """As many as the engine may have of ours, and not one more; batch stops earlier."""
    capacity = Capacity(None, 4, 10**6)
    load = [Load([(1, 1)] * n, 0) for n in range(6)]
    normal = [bound(DEMAND, Band.NORMAL, one, capacity, LIMITS) for one in load]
    batch = [bound(DEMAND, Band.BATCH, one, capacity, LIMITS) for one in load]
    assert normal == [None] * 4 + [Bound.SEATS] * 2
    assert batch == [None] * 2 + [Bound.SEATS] * 4


def test_prompts_are_read_a_window_at_a_time():
    """A prompt waits for the ones before it, unless none is being read; batch's window is less."""
    capacity = Capacity(None, 10, 1000)
    long = Demand(950, 10, 10, 10)
    middle = Demand(500, 10, 10, 10)
    giant = Demand(5000, 1, 1, 1)
    assert bound(long, Band.NORMAL, Load([(1, 1)], 50), capacity, LIMITS) is None
    assert bound(long, Band.NORMAL, Load([(1, 1)], 51), capacity, LIMITS) is Bound.PROMPTS
    assert bound(giant, Band.NORMAL, Load([(1, 1)], 0), capacity, LIMITS) is None
    assert bound(middle, Band.NORMAL, Load([(1, 1)], 200), capacity, LIMITS) is None
    assert bound(middle, Band.BATCH, Load([(1, 1)], 200), capacity, LIMITS) is Bound.PROMPTS


def test_a_widened_window_is_not_for_batch_work():
    """Who is urgent would read behind it; batch has no more than the window as it is set."""
    set_to = LIMITS.prefill_window_tokens
    wide = Capacity(None, 10, 100 * set_to)
    full = Load([(1, 1)], set_to)
    assert bound(DEMAND, Band.NORMAL, full, wide, LIMITS) is None
    assert bound(DEMAND, Band.BATCH, full, wide, LIMITS) is Bound.PROMPTS
    nearly = Load([(1, 1)], set_to - DEMAND.prompt_tokens)
    assert bound(DEMAND, Band.BATCH, nearly, wide, LIMITS) is None


@given(st.lists(LIVE, min_size=1, max_size=8), st.sampled_from(Band), st.integers(100, 3000))
def test_what_fits_stays_within_the_cache(live, band, kv_tokens):
    """Whoever is let in beside others leaves the foreseeable peak within the budget."""
    new = (DEMAND.prompt_tokens, DEMAND.output_tokens)
    capacity = Capacity(kv_tokens, 100, 10**6)
    share = LIMITS.batch_share if band is Band.BATCH else 1.0
    inside = future_peak_tokens([*live, new]) <= kv_tokens * share
    assert bound(DEMAND, band, Load(live, 0), capacity, LIMITS) is (None if inside else Bound.CACHE)


WAITING = st.builds(
    Waiting,
    tenant=st.sampled_from("abc"),
    band=st.sampled_from(Band),
    deadline_s=st.floats(0, 100),
    charge=st.integers(1, 1000),
    work_tokens=st.integers(1, 1000),
)
CHARGED = st.dictionaries(st.sampled_from("abc"), st.floats(0, 1e4))


@given(st.lists(WAITING, max_size=12), CHARGED)
def test_the_order_is_by_band_and_within_a_tenant_by_deadline(waiting, charged):
    """Everybody is served once, higher bands first, a tenant's own in the order of deadlines."""
    order = serving_order(waiting, charged)
    assert sorted(order) == list(range(len(waiting)))
    served = [waiting[index] for index in order]
    assert [w.band for w in served] == sorted(w.band for w in served)
    for band in Band:
        for tenant in "abc":
            own = [w.deadline_s for w in served if (w.band, w.tenant) == (band, tenant)]
            assert own == sorted(own)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 100)), min_size=2, max_size=20),
)
def test_no_tenant_gets_ahead_by_more_than_one_request(asks):
    """While two both wait, their charges are never further apart than the largest request."""
    waiting = [Waiting(t, Band.NORMAL, float(i), charge, 1) for i, (t, charge) in enumerate(asks)]
    left = {tenant: sum(w.tenant == tenant for w in waiting) for tenant in "ab"}
    got = dict.fromkeys("ab", 0)
    for index in serving_order(waiting, {}):
        if not all(left.values()):
            return
        got[waiting[index].tenant] += waiting[index].charge
        left[waiting[index].tenant] -= 1
        assert abs(got["a"] - got["b"]) <= max(charge for _, charge in asks)


def test_who_was_charged_less_goes_first():
    """A tenant with a lead in charges waits until the other has caught up."""
    waiting = [Waiting("hog", Band.NORMAL, 1.0, 100, 100) for _ in range(3)]
    waiting += [Waiting("light", Band.NORMAL, 9.0, 100, 100) for _ in range(3)]
    assert serving_order(waiting, {"hog": 150.0}) == [3, 4, 0, 5, 1, 2]


def test_standing_counts_the_work_of_those_before():
    """An arrival is told what goes before it, and who comes last if that is somebody else's."""
    hog = [Waiting("hog", Band.NORMAL, float(i), 100, 80) for i in range(3)]
    light = Waiting("light", Band.NORMAL, 50.0, 100, 80)
    assert standing(light, [], {}).ahead_tokens == 0
    there = standing(light, hog, {})
    assert (there.ahead_tokens, there.before) == (80, 2)
    more = standing(Waiting("hog", Band.NORMAL, 1.5, 100, 80), hog, {})
    assert (more.ahead_tokens, more.before) == (160, None)
    behind = standing(Waiting("hog", Band.BATCH, 0.0, 100, 80), hog, {})
    assert (behind.ahead_tokens, behind.before) == (240, None)
    person = standing(Waiting("hog", Band.INTERACTIVE, 99.0, 100, 80), hog, {})
    assert (person.ahead_tokens, person.before) == (0, 2)


def arrival(**changes):
    facts = {
        "fits_now": False,
        "anyone_ahead": True,
        "num_waiting": 1,
        "goes_before_last": False,
        "turn_s": 2.0,
        "eta_s": 3.0,
        "remaining_s": 60.0,
        "service_s": 1.0,
        "limits": LIMITS,
    }
    return decide(**(facts | changes))


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({}, Action.WAIT, ""),
        ({"fits_now": True, "anyone_ahead": False}, Action.ADMIT, ""),
        ({"fits_now": True}, Action.WAIT, ""),
        ({"remaining_s": 3.9}, Action.REFUSE, "deadline_too_short"),
        ({"remaining_s": 4.0}, Action.WAIT, ""),
        ({"turn_s": 10.1, "eta_s": 10.2}, Action.REFUSE, "wait_too_long"),
        ({"turn_s": 9.9, "eta_s": 30.0}, Action.WAIT, ""),
        ({"num_waiting": 3}, Action.REFUSE, "queue_full"),
        ({"num_waiting": 3, "goes_before_last": True}, Action.DISPLACE, ""),
        ({"turn_s": None, "eta_s": None}, Action.WAIT, ""),
        ({"turn_s": None, "eta_s": None, "num_waiting": 3}, Action.REFUSE, "queue_full"),
        (
            {"limits": AdmissionLimits(1, 0, 10.0), "num_waiting": 0, "goes_before_last": True},
            Action.REFUSE,
            "queue_full",
        ),
    ],
)
def test_what_becomes_of_an_arrival(changes, action, reason):
    """Admitted, made to wait, let in for another, or refused for the first reason that holds."""
    decision = arrival(**changes)
    assert (decision.action, decision.reason) == (action, reason)
    assert (decision.retry_after_s is not None) == (action is Action.REFUSE)


def test_the_refused_are_told_when_they_would_have_been_served():
    """The predicted wait, between 1 s and the 60 s that clients obey; the target if unknown."""
    assert arrival(turn_s=20.0, eta_s=21.0).retry_after_s == 21.0
    assert arrival(turn_s=None, eta_s=None, num_waiting=3).retry_after_s == LIMITS.wait_target_s
    assert retry_after_s(0.01) == 1.0
    assert retry_after_s(3600.0) == 60.0


def test_a_wait_is_predicted_from_work_and_drain():
    """Work ahead and one's own over the rate; unknown without a rate."""
    assert predicted_wait_s(300, 100, 200.0) == 2.0
    assert predicted_wait_s(300, 100, None) is None
    assert predicted_wait_s(300, 100, 0.0) is None


@given(st.lists(st.none() | st.floats(2.01, 3.99), max_size=20), st.booleans())
def test_brownout_does_not_flap_between_its_marks(etas_s, before):
    """From 20 to 40 % of the wait target, and while nothing is known, it stays what it was."""
    active = before
    for eta_s in etas_s:
        active = brownout(active, eta_s, LIMITS)
    assert active is before


def test_brownout_begins_above_one_mark_and_ends_below_the_other():
    """On over 40 % of the wait target, off at 20 %."""
    assert brownout(active=False, eta_s=4.1, limits=LIMITS)
    assert not brownout(active=True, eta_s=1.9, limits=LIMITS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_concurrent": 0},
        {"max_queued": -1},
        {"wait_target_s": 0.0},
        {"safety": 0.0},
        {"safety": 1.1},
        {"batch_share": 0.0},
        {"brownout_at": 0.1},
    ],
)
def test_limits_that_cannot_work_are_refused(wrong):
    """A limit that nothing could pass, or marks in the wrong order, fail where they are set."""
    good = {"max_concurrent": 1, "max_queued": 0, "wait_target_s": 1.0}
    AdmissionLimits(**good)
    with pytest.raises(ValueError, match="not usable"):
        AdmissionLimits(**(good | wrong))


def test_who_is_urgent_does_not_wait_for_the_less_urgent_to_end_in_time():
    """The limit of answers that end in time counts those who are as urgent, the seats count all."""
    room = Capacity(kv_tokens=None, concurrent=4, prefill_tokens=4096, in_time=2)
    three = [(10, 10)] * 3
    four = [(10, 10)] * 4
    assert bound(DEMAND, Band.INTERACTIVE, Load(three, peers=1), room, LIMITS) is None
    assert bound(DEMAND, Band.NORMAL, Load(three, peers=3), room, LIMITS) is Bound.TIME
    assert bound(DEMAND, Band.INTERACTIVE, Load(four, peers=1), room, LIMITS) is Bound.SEATS
