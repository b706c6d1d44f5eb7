"""Who is let in, and as whom."""

import pytest
from fastapi import Request

from orchestrator.access.api_keys import ApiKey, Identity
from orchestrator.api.access import identity, is_loopback
from orchestrator.api.question_limits import QuestionLimits
from orchestrator.domain import Band
from orchestrator.errors import InvalidApiKey

LIMITS = QuestionLimits(
    max_question_chars=100,
    max_history_messages=2,
    top_k=5,
    max_top_k=10,
    max_tokens=100,
    max_max_tokens=200,
    request_timeout_s=10,
)


def request(found):
    state = {} if found is None else {"identity": found}
    return Request({"type": "http", "headers": [], "state": state, "client": ("10.0.0.9", 1)})


def asked_by(found, priority):
    return LIMITS.question(
        "When?",
        request=request(found),
        collection="papers",
        document_ids=[],
        top_k=None,
        priority=priority,
    )


def of_key(band):
    key = ApiKey(id="k1", name="n", owner="ann", digest=b"", created_at=0, band=band)
    return Identity(owner="ann", key=key, admin=False)


@pytest.mark.parametrize(
    ("band", "priority", "given"),
    [
        (Band.INTERACTIVE, "interactive", Band.INTERACTIVE),
        (Band.INTERACTIVE, "batch", Band.BATCH),
        (Band.NORMAL, "interactive", Band.NORMAL),
        (Band.BATCH, "interactive", Band.BATCH),
        (Band.BATCH, "normal", Band.BATCH),
    ],
)
def test_nobody_goes_before_what_their_key_may(band, priority, given):
    """Less may be asked for, more is not given; fairness counts by the key."""
    question = asked_by(of_key(band), priority)
    assert (question.caller.band, question.caller.tenant) == (given, "k1")
    assert question.collection == "ann/papers"


def test_without_keys_fairness_counts_by_address():
    """And collections are called what they always were."""
    question = asked_by(Identity(), "normal")
    assert question.caller.tenant == "10.0.0.9"
    assert question.collection == "papers"


def test_a_route_that_was_left_open_shows_nothing():
    """Nobody is not everybody."""
    with pytest.raises(InvalidApiKey):
        identity(request(None))


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.4", False),
        ("tidegate.example", False),
    ],
)
def test_which_addresses_are_this_machines_alone(host, only_here):
    """A name that may lead anywhere is not."""
    assert is_loopback(host) == only_here
