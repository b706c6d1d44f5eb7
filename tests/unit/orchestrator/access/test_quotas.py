"""What may be used up with a key in a minute."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.access.api_keys import ApiKey, KeyLimits
from orchestrator.access.quotas import Bucket, Quotas
from orchestrator.errors import RateLimited


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def key(name="k", **limits):
    return ApiKey(
        id=name, name=name, owner=name, digest=b"", created_at=0, limits=KeyLimits(**limits)
    )


def test_requests_beyond_the_minutes_are_refused_until_there_are_some_again(clock):
    """With the time to wait, after which one goes through, and not two."""
    quotas, limited = Quotas(clock=clock), key(requests_per_min=6)
    for _ in range(6):
        quotas.request(limited)
    with pytest.raises(RateLimited) as refused:
        quotas.request(limited)
    assert refused.value.retry_after_s == pytest.approx(10)
    clock.now_s += refused.value.retry_after_s
    quotas.request(limited)
    with pytest.raises(RateLimited):
        quotas.request(limited)


def test_keys_do_not_use_up_each_other(clock):
    """And one without a limit has none."""
    quotas = Quotas(clock=clock)
    quotas.request(key("a", requests_per_min=1))
    quotas.request(key("b", requests_per_min=1))
    for _ in range(1000):
        quotas.request(key("c"))
    with quotas.tokens(key("c"), 10**9), quotas.tokens(None, 10**9):
        pass


def test_tokens_that_were_not_used_are_given_back(clock):
    """And what was used is not."""
    quotas, limited = Quotas(clock=clock), key(tokens_per_min=1000)
    with quotas.tokens(limited, 900) as spending:
        with pytest.raises(RateLimited), quotas.tokens(limited, 200):
            pytest.fail("more than there was")
        spending.used = 100
    with quotas.tokens(limited, 900):
        pass
    with pytest.raises(RateLimited), quotas.tokens(limited, 1):
        pytest.fail("whoever does not say what was used has used it all")


def test_one_request_larger_than_the_minute_is_let_through_and_waited_for(clock):
    """Else it could never be; the next one comes when the debt is paid."""
    quotas, limited = Quotas(clock=clock), key(tokens_per_min=600)
    with quotas.tokens(limited, 6000) as spending:
        spending.used = 1200
    with pytest.raises(RateLimited) as refused, quotas.tokens(limited, 10):
        pytest.fail("600 are owed")
    assert refused.value.retry_after_s == pytest.approx(61)


def test_a_limit_that_is_changed_holds_at_once(clock):
    """A key may be made anew with the same id; what counts is its limit now."""
    quotas = Quotas(clock=clock)
    quotas.request(key(requests_per_min=1))
    quotas.request(key(requests_per_min=2))


@given(
    per_min=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60),
)
def test_no_more_than_the_allowance_in_any_time(per_min, steps):
    """What was taken in t seconds is at most the bucket and what grew in t, whoever asks how."""
    clock = Clock()
    bucket = Bucket(per_min, clock=clock)
    taken = 0
    for pause_s, amount in steps:
        clock.now_s += pause_s
        within = min(amount, per_min)
        wait_s = bucket.take(within)
        assert wait_s >= 0
        if not wait_s:
            taken += within
    grown = (clock.now_s - 100) * per_min / 60
    assert taken <= per_min + grown + 1e-6
