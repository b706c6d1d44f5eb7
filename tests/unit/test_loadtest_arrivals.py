"""The load is decided before it is sent, and the same for every system."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest

from loadtest.arrivals import Flow, Mix, poisson, schedule

POOL = ("small", "small", "medium", "large")
FLOW = Flow(rate_per_s=20.0, end_s=50.0)


def dice(seed):
    return random.Random(seed)  # noqa: S311 - a reproducible draw


def asks(*flows, seed=1, mix=None, salt=""):
    return schedule(flows, pool=POOL, mix=mix or Mix(), seed=seed, salt=salt)


def test_the_same_seed_gives_the_same_requests():
    """Two systems are sent the very same load."""
    assert asks(FLOW) == asks(FLOW)
    assert asks(FLOW) != asks(FLOW, seed=2)


def test_a_salt_changes_the_nonces_and_nothing_else():
    """A run does not find its prompts in the prefix cache, and is the same load otherwise."""
    plain, salted = asks(FLOW), asks(FLOW, salt="engine")
    assert not {a.nonce for a in plain} & {a.nonce for a in salted}
    assert [replace(a, nonce="") for a in plain] == [replace(a, nonce="") for a in salted]


def test_nonces_are_unique_and_of_the_placeholders_length():
    """No two requests of a run share a prompt, and a nonce does not change its length."""
    found = {a.nonce for a in asks(FLOW)}
    assert len(found) == len(asks(FLOW))
    assert {len(nonce) for nonce in found} == {16}


def test_another_flow_beside_it_changes_nothing():
    """The light tenant asks the same alone and beside a hog."""
    light = replace(FLOW, tenant="light")
    alone = asks(light)
    beside = asks(light, replace(FLOW, tenant="hog", rate_per_s=90.0))
    assert [a for a in beside if a.tenant == "light"] == list(alone)
    assert [a.at_s for a in beside] == sorted(a.at_s for a in beside)


def test_arrivals_are_a_poisson_process():
    """Gaps have the mean and the spread of an exponential distribution, within the bounds asked for."""
    times = poisson(50.0, begin_s=10.0, end_s=210.0, rng=dice(3))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.08)
    assert times[0] >= 10.0
    assert times[-1] < 210.0


def test_no_rate_no_arrivals():
    """A flow of nothing sends nothing, and ends."""
    assert poisson(0.0, begin_s=0.0, end_s=10.0, rng=dice(1)) == []


def test_answer_lengths_have_their_mean_and_their_cap():
    """`max_tokens` is log-normal, and never above the cap."""
    mix = Mix(mean_tokens=100.0, cap_tokens=512, sigma=0.5)
    drawn = [a.max_tokens for a in asks(replace(FLOW, end_s=200.0), mix=mix)]
    assert sum(drawn) / len(drawn) == pytest.approx(100, rel=0.06)
    assert max(drawn) <= 512
    assert max(a.max_tokens for a in asks(FLOW, mix=replace(mix, cap_tokens=64))) == 64


def test_sizes_come_in_their_shares():
    """Each size class has the share that the mix gives it."""
    found = asks(replace(FLOW, end_s=200.0))
    sizes = Counter(POOL[a.prompt] for a in found)
    assert sizes["small"] / len(found) == pytest.approx(0.4, abs=0.04)
    assert sizes["large"] / len(found) == pytest.approx(0.2, abs=0.04)
