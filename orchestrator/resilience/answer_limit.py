"""
How many may share the engine so that their answers end in time: decisions 0014, 0028 and 0029.

No clock, no await, no I/O: time comes in as a number.
"""

import math
import statistics
from collections.abc import Collection

from orchestrator.resilience.admission_ticket import Ticket
from orchestrator.resilience.load_estimates import AnswerPace, DrainMeter, LongAnswers

ANSWER_SHARE = 0.25
"""
Share of its time that a mean answer may always take on an engine that many share.

Lengths are uneven: one in a hundred is four times the mean (log-normal, sigma 0.7), and what is cut
off was made for nobody.
"""
LONG_ANSWER_SHARE = 0.8
"""
Share of its time that an answer may take which only one in fifty is longer than.

Where lengths are alike, most of all where `max_tokens` ends them, this is what counts: a quarter for
the mean would leave a third of such an engine unused. A fifth is left for a pace that changes.
"""
FEW = 2.0
"""
So many shares, divided by those who share, that a mean answer may take more and a long one less.

A step costs much the same for one as for a few, so where there are few, fewer still would lose more
than late answers do; and each one's prompt is felt by all the others, so that the pace changes more.
"""
FIRST_SHARE = 0.5
"""
Share of its time that a mean answer may take, and `FEW` more, while no length is known.

Between the two above: nobody knows yet whether lengths are alike.
"""
LIMIT_GROWTH = 1.25
"""Factor a second by which a limit that is too low may grow."""
EVERY_S = 1.0
ALLOWED_SMOOTHING = 0.1


def answer_limit(
    limit: float,
    *,
    running: float,
    answer_s: float,
    long_s: float,
    allowed_s: float,
) -> float:
    """
    How many requests may share the engine so that their answers end in time; infinite for "any".

    The more share it, the longer an answer takes, at the most in proportion (Little's law at a
    constant rate). So what few see says what more could have: a limit that is too low grows by that
    alone, and one that nobody needs just now stays for the next who come all at once.

    Args:
        limit: What this was a second ago.
        running: Requests with the engine meanwhile, in the mean.
        answer_s: Seconds that a mean answer takes at that.
        long_s: Seconds that one takes that only one in fifty is longer than.
        allowed_s: Seconds that a request has left when it is let in, as a rule.
    """
    few = FEW / max(running, 1.0)
    room = allowed_s * max((ANSWER_SHARE + few) / answer_s, (LONG_ANSWER_SHARE - few) / long_s)
    if room < 1.0:
        return max(1.0, min(limit, running * room))
    return max(limit, min(limit * LIMIT_GROWTH, running * room))


def first_answer_limit(
    *, running: int, work_tokens: float, tokens_per_s: float, allowed_s: float
) -> float:
    """
    The same before any answer's length or pace is known: by the work that gets done a second.

    Who comes to a cold engine all at once would else be let in as far as the cache goes, and on a
    slow one run out of time together.

    Args:
        running: Requests with the engine.
        work_tokens: What one request is, in the mean: its prompt, and its answer as it is guessed.
        tokens_per_s: What the engine gets done, prompts included.
        allowed_s: Seconds that a request has left when it is let in, as a rule.

    Source:
        Little's law: as many are there as come in a second, times the seconds that each may take.
    """
    share = FIRST_SHARE + FEW / max(running, 1)
    return max(1.0, allowed_s * share * tokens_per_s / work_tokens)


class AnswersInTime:
    """
    How many may share the engine so that their answers end in time, from what is seen of them.

    Attributes:
        limit: So many; infinite for "any".
    """

    def __init__(self) -> None:
        self._pace = AnswerPace()
        self._long_answers = LongAnswers()
        self._allowed_s: float | None = None
        self._looked_s = 0.0
        self.limit = math.inf

    def live(self, count: int, now_s: float) -> None:
        """From now on so many are with the engine."""
        self._pace.live(count, now_s)

    def let_in(self, ticket: Ticket, now_s: float) -> None:
        """One goes to the engine."""
        self._long_answers.began(ticket)
        allowed_s = ticket.deadline_s - now_s
        before_s = allowed_s if self._allowed_s is None else self._allowed_s
        self._allowed_s = before_s + ALLOWED_SMOOTHING * (allowed_s - before_s)

    def produced(self, tokens: int, now_s: float) -> None:
        """The engine has generated `tokens` more."""
        self._pace.done(tokens, now_s)

    def taken_back(self, ticket: Ticket) -> None:
        """One that was let in waits again: nothing is known of its answer."""
        self._long_answers.gave_up(ticket)

    def ended(self, ticket: Ticket, now_s: float) -> None:
        """One left the engine, at its answer's end or before."""
        if ticket.prefilled:
            self._pace.left(ticket.produced, finished=ticket.finished)
        if ticket.finished:
            self._long_answers.ended(ticket, ticket.produced)
        elif ticket.prefilled and now_s >= ticket.deadline_s:
            self._long_answers.ended(ticket, ticket.demand.max_tokens)
        else:
            self._long_answers.gave_up(ticket)

    def look(self, now_s: float, live: Collection[Ticket], drain: DrainMeter) -> None:
        """
        Follow the engine's pace, once a second.

        Args:
            now_s: Seconds on the gate's clock.
            live: Those with the engine.
            drain: What it gets done while others wait.
        """
        if now_s - self._looked_s < EVERY_S:
            return
        self._looked_s = now_s
        if self._allowed_s is None:
            return
        seen, rate = self._pace.seen(now_s), drain.tokens_per_s(now_s)
        if seen is not None:
            self.limit = answer_limit(
                self.limit,
                running=seen.running,
                answer_s=seen.answer_s,
                long_s=self._long_answers.tokens() * seen.token_s,
                allowed_s=self._allowed_s,
            )
        elif rate and live:
            self.limit = first_answer_limit(
                running=len(live),
                work_tokens=statistics.fmean(t.demand.work_tokens for t in live),
                tokens_per_s=rate,
                allowed_s=self._allowed_s,
            )
