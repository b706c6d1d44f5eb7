"""The clients of the load test try again exactly when the official client would."""

import random

import httpx2
import openai
import pytest
from openai._models import FinalRequestOptions

from loadtest.client_rules import NO_STATUS, ClientRules, retry_after_s, worth_retrying

RULES = ClientRules()
HEADERS = [
    {},
    {"retry-after": "3"},
    {"retry-after-ms": "1500"},
    {"retry-after-ms": "1500", "retry-after": "9"},
    {"retry-after-ms": "soon", "retry-after": "9"},
    {"retry-after": "0"},
    {"retry-after": "-2"},
    {"retry-after": "nan"},
    {"retry-after": "later"},
    {"x-should-retry": "false"},
    {"x-should-retry": "true"},
    {"x-should-retry": "perhaps"},
    {"x-should-retry": "false", "retry-after": "3"},
]


def dice(seed):
    return random.Random(seed)  # noqa: S311 - a reproducible draw


@pytest.fixture(scope="module")
def official():
    with openai.OpenAI(base_url="http://127.0.0.1:9", api_key="none") as client:
        yield client


@pytest.mark.parametrize("headers", HEADERS, ids=str)
@pytest.mark.parametrize("status", [400, 404, 408, 409, 422, 429, 500, 502, 503, 504])
def test_tries_again_when_the_official_client_does(official, status, headers):
    """Statuses and `x-should-retry` mean what they mean to the openai client."""
    response = httpx2.Response(status, headers=headers)
    assert worth_retrying(status, headers) == official._should_retry(response)


@pytest.mark.parametrize("headers", HEADERS, ids=str)
@pytest.mark.parametrize("retries", [0, 1])
def test_waits_as_long_as_the_official_client(official, retries, headers):
    """The wait is the server's, or the same back-off with jitter at most a quarter shorter."""
    options = FinalRequestOptions(method="post", url="/", max_retries=2)
    wanted_s = official._calculate_retry_timeout(2 - retries, options, httpx2.Headers(headers))
    waited_s = RULES.wait_s(
        status=429,
        headers={**headers, "x-should-retry": "true"},
        retries=retries,
        rng=dice(1),
    )
    assert waited_s is not None
    told_s = retry_after_s(headers)
    if told_s is not None and told_s > 0:
        assert waited_s == wanted_s
    else:
        base_s = 0.5 * 2**retries
        assert 0.75 * base_s <= waited_s <= base_s
        assert 0.75 * base_s <= wanted_s <= base_s


def test_gives_up_after_two_retries():
    """Three attempts are made at most."""
    waits = [RULES.wait_s(status=503, headers={}, retries=n, rng=dice(1)) for n in range(3)]
    assert [wait is None for wait in waits] == [False, False, True]


def test_a_retry_after_of_more_than_a_minute_is_ignored():
    """As older clients do: the back-off takes its place."""
    waited_s = RULES.wait_s(status=429, headers={"retry-after": "61"}, retries=0, rng=dice(1))
    assert waited_s is not None
    assert waited_s <= 0.5


def test_a_dropped_connection_is_tried_again():
    """Resets and timeouts carry no status, and are retried."""
    assert worth_retrying(NO_STATUS, {})


def test_a_date_is_understood():
    """`Retry-After` may be an HTTP date."""
    headers = {"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}
    assert retry_after_s(headers, clock=lambda: 90.0) == 10.0
