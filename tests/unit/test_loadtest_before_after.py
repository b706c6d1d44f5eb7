"""What people of the before/after comparison got, and what Tidegate is held to."""

import json
from dataclasses import replace

import pytest

from loadtest.asking import Outcomes, outcomes
from loadtest.before_after import Result, missed, table
from loadtest.http_client import Response

JSON = {"content-type": "application/json"}
WHOLE = Outcomes(answered=3, told=0, failed={}, answer_s=(2.0, 3.5))
KEPT = Result(
    system="tidegate",
    case="3 at once, cold",
    outcomes=WHOLE,
    uploads=2,
    accepted=2,
    killed=0,
    died=0,
    peak_bytes=3 << 30,
    kept_bytes=2 << 30,
    documents=4,
    expected=4,
)


def response(status, body, *, ending="whole", took_s=1.0, **headers):
    return Response(
        ending=ending,
        status=status,
        headers=JSON | {name.replace("_", "-"): value for name, value in headers.items()},
        body=body if isinstance(body, bytes) else json.dumps(body).encode(),
        took_s=took_s,
    )


def test_answers_are_counted_with_their_times():
    """The median and the longest are those of whole answers alone."""
    found = outcomes([
        *(response(200, {"answer": "At 3.40 m."}, took_s=t) for t in (2.0, 9.0, 4.0)),
        response(0, b"", ending="gave_up", took_s=60.0),
    ])
    assert (found.asks, found.answered, found.answer_s) == (4, 3, (4.0, 9.0))


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_that_says_when_to_come_back_is_told(status):
    """It is neither an answer nor a failure."""
    refused = response(status, {"error": {"code": "queue_full"}}, retry_after="3")
    found = outcomes([refused])
    assert (found.answered, found.told, found.failed, found.answer_s) == (0, 1, {}, None)


@pytest.mark.parametrize(
    ("got", "failure"),
    [
        (response(503, {"error": {"code": "engine_unavailable"}}), "engine_unavailable"),
        (response(500, b"Internal Server Error"), "HTTP 500"),
        (response(500, b"Internal Server Error", retry_after="3"), "HTTP 500"),
        (response(200, b'{"answer": "At 3.'), "incomplete"),
        (response(200, b"", ending="reset"), "reset"),
        (response(0, b"", ending="refused"), "refused"),
        (response(0, b"", ending="gave_up"), "gave_up"),
        (response(200, {"answer": "…", "degraded": {"level": "L3"}}), "degraded L3"),
    ],
)
def test_everything_else_is_a_failure(got, failure):
    """A refusal without a time, an error, half an answer, a broken connection and lost patience."""
    assert outcomes([got]).failed == {failure: 1}


def test_a_run_without_a_fault_misses_nothing():
    """Refusals that say when to come back are no fault."""
    assert missed([KEPT, replace(KEPT, outcomes=replace(WHOLE, told=7))]) == []


@pytest.mark.parametrize(
    "fault",
    [
        {"outcomes": replace(WHOLE, failed={"reset": 1})},
        {"accepted": 1},
        {"killed": 1},
        {"died": 1},
        {"documents": 3},
    ],
)
def test_each_fault_of_tidegate_counts_and_none_of_the_other(fault):
    """A failed question, a failed upload, a killed process, a death and a lost document."""
    faulty = replace(KEPT, **fault)
    (line,) = missed([faulty])
    assert line.startswith("3 at once, cold: ")
    assert missed([replace(faulty, system="naive")]) == []


def test_the_table_has_a_row_for_each_case():
    """Failures stand in it by their kind, documents as what is left of what there was."""
    died = replace(
        KEPT,
        system="naive",
        outcomes=Outcomes(0, 0, {"reset": 9, "HTTP 500": 1}, None),
        uploads=0,
        killed=1,
        documents=0,
        expected=2,
    )
    head, rule, kept, lost = table([KEPT, died]).splitlines()
    assert head.count("|") == rule.count("|") == kept.count("|") == lost.count("|")
    assert "| 2.0 / 3.5 s | 2 of 2 |" in kept
    assert "| 10 | 0 | 0 | 1 HTTP 500, 9 reset |" in lost
    assert lost.endswith("| 0 of 2 |")
