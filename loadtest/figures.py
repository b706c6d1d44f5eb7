"""
From what the clients saw to figures. Pure: records in, numbers out.

Goodput counts only what a person can use: a full answer, complete within the client's patience, whose
first token came within the objective; both counted from the first attempt. An answer of passages
alone (`degraded.level` L3) is counted apart and never as goodput.
"""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadtest.arrivals import SIZES
from loadtest.client_rules import ClientRules
from loadtest.generator import Attempt, Record

RETRIEVAL_ONLY = "L3"
REFUSALS = {429, 503}
NO_ANSWER_YET = "gave_up"


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a run that is looked at, in seconds from its start."""

    begin_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end_s - self.begin_s

    def holds(self, at_s: float) -> bool:
        """Whether a moment lies in it."""
        return self.begin_s <= at_s < self.end_s


@dataclass(frozen=True, slots=True)
class Figures:
    """
    What came of one run.

    Attributes:
        offered_rps: Logical requests a second.
        goodput_tok_s: Completion tokens a second of good answers, as they reached the clients.
        work_tok_s: Prompt and completion tokens of them.
        answers_rps: Good answers a second, each by the part of it that came within the window.
        retrieval_only_rps: Answers of passages alone.
        success: Share of arrivals that got a good answer, by prompt size.
        outcomes: Logical requests by how they ended.
        codes: Attempts by code.
        attempts: Tries of clients a logical request.
        ttft_p50_s: From arrival to first token, of whole answers.
        refusal_p50_ms: From sending to the refusal, as clients see it.
        refusal_server_p99_ms: The same as the server says, where it does.
        clients_peak: The most that were being served, or waited to be, at the same time.
        hung: Attempts that had no end, long after the client's patience.
        late_p99_ms: How much later than planned the generator sent.
    """

    offered_rps: float
    goodput_tok_s: float
    work_tok_s: float
    answers_rps: float
    retrieval_only_rps: float
    success: Mapping[str, float | None]
    outcomes: Mapping[str, int]
    codes: Mapping[str, int]
    attempts: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    refusal_p50_ms: float | None
    refusal_p99_ms: float | None
    refusal_server_p50_ms: float | None
    refusal_server_p99_ms: float | None
    clients_peak: int
    hung: int
    late_p99_ms: float | None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)), 1) - 1]


def good(record: Record, rules: ClientRules) -> bool:
    """Whether the person got what was asked for, in time."""
    return (
        record.whole
        and record.degraded != RETRIEVAL_ONLY
        and record.total_s <= rules.patience_s
        and (record.first_token_s or 0.0) <= rules.first_token_slo_s
    )


def outcome(record: Record, rules: ClientRules) -> str:
    """How a logical request ended, in a word."""
    if good(record, rules):
        return f"good {record.degraded}" if record.degraded else "good"
    if record.whole:
        return RETRIEVAL_ONLY if record.degraded == RETRIEVAL_ONLY else "too late"
    if record.cut:
        return "cut"
    return record.attempts[-1].code


def served_share(records: Iterable[Record], rules: ClientRules) -> float | None:
    """
    The share of arrivals that got a good answer; None of none.

    Requests that were cut off with the run count only if they could not have become good any more.
    """
    decided = [r for r in records if not r.cut or r.total_s > rules.first_token_slo_s]
    if not decided:
        return None
    return sum(good(r, rules) for r in decided) / len(decided)


def answered_share(records: Iterable[Record], rules: ClientRules) -> float | None:
    """The share of arrivals that got an answer or the passages, in time; None of none."""
    counted = [outcome(record, rules) for record in records]
    if not counted:
        return None
    return sum(word == RETRIEVAL_ONLY or word.startswith("good") for word in counted) / len(counted)


def delivered(record: Record, window: Window) -> float:
    """
    The share of an answer that came within the window.

    What came in one piece came at its end. To count whole answers by their ends instead would count
    by waves where an answer takes as long as half of a window: all who were let in together end
    together. To spread an answer evenly would favour who is busiest at the end of the load: as soon
    as nobody's prompts are read any more, tokens come three times as fast.
    """
    times_s = record.tokens_s or (record.total_s,)
    return sum(window.holds(record.at_s + at_s) for at_s in times_s) / len(times_s)


def figures(records: Sequence[Record], rules: ClientRules, window: Window) -> Figures:
    """The figures of one run: rates by when answers came, shares by when requests arrived."""
    arrived = [r for r in records if window.holds(r.at_s)]
    ended = [r for r in records if window.holds(r.at_s + r.total_s)]
    answers = [(r, delivered(r, window)) for r in records if good(r, rules)]
    completion = sum(share * r.completion_tokens for r, share in answers)
    prompt = sum(share * r.prompt_tokens for r, share in answers)
    only = [r for r in ended if r.whole and r.degraded == RETRIEVAL_ONLY]
    attempts = [attempt for r in arrived for attempt in r.attempts]
    refused = [a for a in attempts if a.status in REFUSALS]
    server_ms = [a.server_ms for a in refused if a.server_ms is not None]
    first_s = [r.first_token_s for r in arrived if r.whole and r.first_token_s is not None]
    return Figures(
        offered_rps=len(arrived) / window.seconds,
        goodput_tok_s=completion / window.seconds,
        work_tok_s=(prompt + completion) / window.seconds,
        answers_rps=sum(share for _, share in answers) / window.seconds,
        retrieval_only_rps=len(only) / window.seconds,
        success={s: served_share([r for r in arrived if r.size == s], rules) for s in SIZES},
        outcomes=dict(Counter(outcome(r, rules) for r in arrived)),
        codes=dict(Counter(a.code for a in attempts)),
        attempts=len(attempts) / len(arrived) if arrived else 0.0,
        ttft_p50_s=percentile(first_s, 0.5),
        ttft_p99_s=percentile(first_s, 0.99),
        refusal_p50_ms=percentile([a.took_s * 1000 for a in refused], 0.5),
        refusal_p99_ms=percentile([a.took_s * 1000 for a in refused], 0.99),
        refusal_server_p50_ms=percentile(server_ms, 0.5),
        refusal_server_p99_ms=percentile(server_ms, 0.99),
        clients_peak=_peak(records),
        hung=sum(_hung(attempt) for r in records for attempt in r.attempts),
        late_p99_ms=percentile([r.late_s * 1000 for r in arrived], 0.99),
    )


def _peak(records: Iterable[Record]) -> int:
    """The most at the same time; who ends at a moment and who comes at it are not together."""
    steps = sorted(step for r in records for step in ((r.at_s, 1), (r.at_s + r.total_s, -1)))
    return max(itertools.accumulate(change for _, change in steps), default=0)


def recovery_s(
    records: Sequence[Record],
    rules: ClientRules,
    *,
    burst_end_s: float,
    end_s: float,
    window_s: float = 3.0,
    share: float = 0.9,
    step_s: float = 0.5,
) -> float | None:
    """
    Seconds after a burst until a sliding window of arrivals is served again; None if it never is.

    The window begins where the result says, so that it holds nothing that came before.

    Args:
        records: Of the whole run.
        rules: What counts as served.
        burst_end_s: When the load fell, in seconds from the start of the run.
        end_s: When the load ended.
        window_s: Length of the window.
        share: How many of its arrivals must be served.
        step_s: How far it slides.
    """
    begin_s = burst_end_s
    while begin_s + window_s <= end_s:
        window = Window(begin_s, begin_s + window_s)
        served = served_share([r for r in records if window.holds(r.at_s)], rules)
        if served is not None and served >= share:
            return begin_s - burst_end_s
        begin_s += step_s
    return None


def spread(values: Sequence[float | None]) -> tuple[float, float, float] | None:
    """Median, least and greatest of the repeats; None if one of them is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return statistics.median(known), min(known), max(known)


def _hung(attempt: Attempt) -> bool:
    return attempt.code == NO_ANSWER_YET
