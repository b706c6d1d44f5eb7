"""What an engine's no means."""

import json
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import (
    EngineError,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)
from orchestrator.generation.engine_refusals import (
    MAX_ERROR_CHARS,
    MAX_RETRY_AFTER_S,
    refusal,
    retry_after_s,
    told_in_stream,
)

# As vLLM 0.32 spells them: QueueOverflowError, MaxQueuedTokensError, RetryableRequestError.
BUSY = {
    "message": "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance.",
    "type": "Service Unavailable",
    "param": None,
    "code": 503,
}
BACKLOG = {**BUSY, "message": "The engine has reached its prefill token backlog limit."}
TRY_AGAIN = {
    "message": "Request failed; please retry",
    "type": "ServiceUnavailableError",
    "code": 503,
}


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (503, BUSY, EngineOverloaded),
        (503, BACKLOG, EngineOverloaded),
        (503, {**BACKLOG, "type": "ServiceUnavailableError"}, EngineOverloaded),
        (503, {**BUSY, "message": "not now"}, EngineOverloaded),
        (503, {"message": "The waiting queue is full"}, EngineOverloaded),
        (429, "Model is overloaded", EngineOverloaded),
        (429, None, EngineOverloaded),
        (503, TRY_AGAIN, EngineUnavailable),
        (503, None, EngineUnavailable),
        (502, BUSY, EngineUnavailable),
        (504, None, EngineTimeout),
        (500, {"message": "boom"}, EngineProtocolError),
        (501, None, EngineProtocolError),
        (400, {"message": "too long"}, EngineRejected),
        (404, None, EngineRejected),
        (307, None, EngineRejected),
    ],
)
def test_a_status_and_a_body_have_one_meaning(status, error, kind):
    """Full, absent, late, broken or unwilling."""
    text = json.dumps({"error": error})
    assert type(refusal("engine", status, {}, text)) is kind


def test_the_engine_is_called_by_its_name():
    """With several engines, a message says which."""
    assert "fallback engine" in str(refusal("fallback engine", 500, {}, "x"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BUSY, EngineOverloaded),
        ({"message": "Model is overloaded", "http_status_code": 422}, EngineOverloaded),
        ("Model is overloaded", EngineOverloaded),
        ({"message": "Input validation error: …", "http_status_code": 422}, EngineProtocolError),
        ({"message": "EngineCore died", "code": 500}, EngineProtocolError),
        (TRY_AGAIN, EngineProtocolError),
        ("died", EngineProtocolError),
        ({"message": "odd", "code": "503"}, EngineProtocolError),
    ],
)
def test_an_error_inside_a_200_means_the_same(error, kind):
    """An engine tells of its full queue in the stream if the headers are out already."""
    assert type(told_in_stream(error)) is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "7", "retry-after-ms": "soon"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "86400"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "1e999"}, MAX_RETRY_AFTER_S),
        ({"retry-after": "9" * 5000}, MAX_RETRY_AFTER_S),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "in a minute"}, None),
        ({"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}, None),
        (
            {
                "date": "Mon, 23 Nov 2026 10:00:00 GMT",
                "retry-after": "Mon, 23 Nov 2026 10:00:09 GMT",
            },
            9.0,
        ),
        (
            {
                "date": "Mon, 23 Nov 2026 10:00:00 GMT",
                "retry-after": "Mon, 23 Nov 2026 09:00:00 GMT",
            },
            0.0,
        ),
    ],
)
def test_every_spelling_of_a_pause_is_understood(headers, seconds):
    """Seconds, milliseconds, a date by the engine's own clock, nonsense, and far too much."""
    assert retry_after_s(headers) == seconds


def test_a_date_without_the_engines_clock_is_read_by_ours():
    """Good to a second or so."""
    pause_s = retry_after_s({"retry-after": formatdate(time.time() + 20, usegmt=True)})
    assert pause_s is not None
    assert 18 <= pause_s <= 20


@given(st.text(max_size=40))
def test_no_header_is_a_surprise(text):
    """Whatever a header holds, it is a pause within bounds, or none."""
    for name in ("retry-after", "retry-after-ms"):
        pause_s = retry_after_s({name: text})
        assert pause_s is None or 0 <= pause_s <= MAX_RETRY_AFTER_S


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@given(
    st.integers(300, 599),
    st.text(max_size=99)
    | json_values.map(json.dumps)
    | json_values.map(lambda error: json.dumps({"error": error})),
)
def test_no_body_is_a_surprise(status, text):
    """Whatever a refusal says, it is one of our errors, with a message of bounded length."""
    error = refusal("engine", status, {}, text)
    assert isinstance(error, EngineError)
    assert len(str(error)) < MAX_ERROR_CHARS + 200


def test_a_body_nested_without_end_is_no_surprise():
    """Deeper than a parser goes."""
    assert isinstance(refusal("engine", 500, {}, "[" * 100_000), EngineProtocolError)
