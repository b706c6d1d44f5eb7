"""What counts as goodput, and what does not."""

import pytest

from loadtest.client_rules import ClientRules
from loadtest.figures import (
    Window,
    delivered,
    figures,
    good,
    outcome,
    percentile,
    recovery_s,
    served_share,
    spread,
)
from loadtest.generator import Attempt, Record

RULES = ClientRules(patience_s=30.0, first_token_slo_s=10.0)
WINDOW = Window(10.0, 20.0)


def attempt(code="ok", status=200, took_s=1.0, server_ms=None):
    return Attempt(code=code, status=status, took_s=took_s, server_ms=server_ms, told_s=None)


def answered(at_s=12.0, **having):
    given = {
        "size": "small",
        "tenant": "load",
        "band": "normal",
        "attempts": [attempt()],
        "whole": True,
        "tokens_s": (1.0, 1.4, 2.6, 3.0),
        "total_s": 3.0,
        "prompt_tokens": 1000,
        "completion_tokens": 100,
    }
    return Record(at_s=at_s, **{**given, **having})


def refused(at_s=12.0, **having):
    tries = [attempt("queue_full", 429, took_s=0.004, server_ms=2.0) for _ in range(3)]
    return answered(at_s, **{"whole": False, "tokens_s": (), "attempts": tries, **having})


@pytest.mark.parametrize(
    ("having", "word"),
    [
        ({}, "good"),
        ({"tokens_s": ()}, "good"),  # not streamed
        ({"degraded": "L1"}, "good L1"),
        ({"degraded": "L3"}, "L3"),
        ({"tokens_s": (10.1,)}, "too late"),
        ({"total_s": 30.1}, "too late"),
    ],
)
def test_only_a_full_answer_in_time_is_good(having, word):
    """Retrieval-only answers, late first tokens and late ends are no goodput, whatever came."""
    assert outcome(answered(**having), RULES) == word
    assert good(answered(**having), RULES) == word.startswith("good")


def test_passages_alone_are_counted_apart():
    """An L3 answer is in its own column, and in no other."""
    found = figures([answered(degraded="L3")], RULES, WINDOW)
    assert found.retrieval_only_rps == 0.1
    assert found.goodput_tok_s == found.work_tok_s == found.answers_rps == 0
    assert found.success["small"] == 0


def test_rates_count_what_came_and_shares_who_arrived():
    """An answer whose tokens come after the window gives it none, but was served."""
    found = figures([answered(9.0), answered(19.0), answered(5.0)], RULES, WINDOW)
    assert found.goodput_tok_s == 10.0
    assert found.work_tok_s == 110.0
    assert found.offered_rps == 0.1
    assert found.success == {"small": 1.0, "medium": None, "large": None}


@pytest.mark.parametrize(
    ("at_s", "having", "share"),
    [
        (12.0, {}, 1.0),
        (8.0, {}, 0.5),  # from 9 to 11, of which the window has the second half
        (18.0, {}, 0.5),
        (5.0, {"tokens_s": (2.0, 6.0, 14.0, 17.0), "total_s": 17.0}, 0.5),  # longer than the window
        (15.0, {"tokens_s": (1.0, 4.0, 5.1, 5.2), "total_s": 9.0}, 0.5),  # faster after it
        (2.0, {}, 0.0),
        (25.0, {}, 0.0),
        (18.0, {"tokens_s": ()}, 0.0),  # in one piece, after the window
        (8.0, {"tokens_s": ()}, 1.0),
        (12.0, {"tokens_s": (3.0,)}, 1.0),  # a single token
    ],
)
def test_an_answer_counts_by_what_of_it_came_within_the_window(at_s, having, share):
    """Half of an answer is half of its tokens, whichever end of the window cuts it."""
    assert delivered(answered(at_s, **having), WINDOW) == pytest.approx(share)
    found = figures([answered(at_s, **having)], RULES, WINDOW)
    assert found.goodput_tok_s == pytest.approx(share * 10.0)
    assert found.answers_rps == pytest.approx(share / 10)


def test_success_is_told_by_prompt_size():
    """Serving only short prompts shows."""
    records = [answered(), answered(), refused(size="large")]
    assert figures(records, RULES, WINDOW).success == {"small": 1.0, "medium": None, "large": 0.0}


def test_refusals_are_timed_by_both_sides():
    """The client's milliseconds and the server's stand beside each other."""
    found = figures([refused(), answered()], RULES, WINDOW)
    assert found.refusal_p99_ms == 4.0
    assert found.refusal_server_p99_ms == 2.0
    assert found.attempts == 2.0
    assert found.codes == {"queue_full": 3, "ok": 1}
    assert found.outcomes == {"queue_full": 1, "good": 1}


def test_what_the_server_does_not_say_is_missing():
    """Without Server-Timing there is no figure, and no zero."""
    tries = [attempt("queue_full", 429)]
    assert figures([refused(attempts=tries)], RULES, WINDOW).refusal_server_p99_ms is None


def test_a_hung_client_is_seen_wherever_it_arrived():
    """An attempt without an end counts, inside the window or not, and even if another one followed."""
    records = [answered(0.0, attempts=[attempt("gave_up", 0, 32.0), attempt()])]
    assert figures(records, RULES, WINDOW).hung == 1


def test_clients_at_once_are_those_who_are_there_together():
    """Whoever comes in the moment in which another one ends is not counted with that one."""
    records = [answered(0.0), answered(1.0), answered(3.0), answered(9.0)]
    assert figures(records, RULES, WINDOW).clients_peak == 2
    assert figures([], RULES, WINDOW).clients_peak == 0


def test_what_was_cut_off_early_is_not_held_against_the_system():
    """A request cut with the run counts only once it could not become good any more."""
    young = refused(cut=True, total_s=3.0)
    old = refused(cut=True, total_s=11.0)
    assert served_share([answered(), young], RULES) == 1.0
    assert served_share([answered(), old], RULES) == 0.5
    assert served_share([young], RULES) is None


def test_recovery_is_the_first_window_that_is_served():
    """Seconds from the burst's end to the start of the first window with 90 % served."""
    records = [
        answered(t / 10) if t / 10 >= 42.0 else refused(t / 10, attempts=[attempt("x", 429)])
        for t in range(600)
    ]
    took_s = recovery_s(records, RULES, burst_end_s=38.0, end_s=60.0)
    assert took_s == pytest.approx(4.0)


def test_a_system_that_does_not_recover_has_no_recovery_time():
    """Never is not a number."""
    records = [refused(t / 10) for t in range(600)]
    assert recovery_s(records, RULES, burst_end_s=38.0, end_s=60.0) is None


def test_percentiles_are_values_that_were_seen():
    """Nearest rank: no value is made up."""
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) is None


def test_a_spread_needs_every_repeat():
    """A repeat without a value is not left out silently."""
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert spread([3.0, None]) is None
    assert spread([]) is None
