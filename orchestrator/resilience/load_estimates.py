"""What the gate has learnt: how fast the engine works, how long answers get, how true forecasts were."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

QUANTILE = 0.8
MIN_SAMPLES = 20
PRIOR_SHARE = 0.5
"""Share of `max_tokens` that an answer is taken to use while too few have been seen."""
KEPT = 0.97
"""What an answer still counts after the next one, in the mean length."""
LONG_QUANTILE = 0.98
WINDOW = 256
"""Answers whose lengths are remembered."""
SUSTAINED_AFTER_S = 5.0
STREAK_GAP_S = 2.0
"""A longer time without a refusal ends a streak of them, unless the queue stayed as long."""


class DrainMeter:
    """
    Tokens a second that the engine gets done while requests wait for it.

    Idle time is left out: an engine that nobody uses is not slow. Older work counts less, by half
    every `half_life_s` of busy seconds.

    Args:
        half_life_s: Seconds.
        min_busy_s: Busy seconds before the rate is believed.
    """

    def __init__(self, *, half_life_s: float = 4.0, min_busy_s: float = 0.5) -> None:
        self._decay_per_s = math.log(2) / half_life_s
        self._min_busy_s = min_busy_s
        self._tokens = 0.0
        self._busy_s = 0.0
        self._since_s: float | None = None

    def busy(self, now_s: float) -> None:
        """From now on requests wait."""
        if self._since_s is None:
            self._since_s = now_s

    def idle(self, now_s: float) -> None:
        """From now on nobody waits."""
        self._advance(now_s)
        self._since_s = None

    def done(self, tokens: int, now_s: float) -> None:
        """The engine got `tokens` done."""
        if self._since_s is not None:
            self._advance(now_s)
            self._tokens += tokens

    def tokens_per_s(self, now_s: float) -> float | None:
        """The rate; None until it is known."""
        self._advance(now_s)
        return self.last_tokens_per_s

    @property
    def last_tokens_per_s(self) -> float | None:
        """The rate when something last happened; None until it is known."""
        if self._busy_s < self._min_busy_s or not self._tokens:
            return None
        return self._tokens / self._busy_s

    def _advance(self, now_s: float) -> None:
        if self._since_s is None:
            return
        elapsed_s = max(0.0, now_s - self._since_s)
        kept = math.exp(-self._decay_per_s * elapsed_s)
        self._tokens *= kept
        # The integral of the weights over the time that has passed keeps the rate unbiased.
        self._busy_s = self._busy_s * kept + (1 - kept) / self._decay_per_s
        self._since_s = now_s


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How long answers take on the engine as it is now.

    Attributes:
        running: Requests with the engine, in the mean.
        answer_s: Seconds of a mean answer, prompt and all.
        token_s: Seconds that one more token of an answer takes, everybody's prompts included.
    """

    running: float
    answer_s: float
    token_s: float


class AnswerPace:
    """
    How long a mean answer takes at the pace that the engine has now, prompt and all.

    The pace is live seconds over generated tokens, of everybody with the engine: one slow token is
    one of many. Idle time is left out: after a pause an engine is taken to be what it was, since those
    who then come all at once are let in before it has shown anything, and while their prompts are
    read it seems to stand still. The mean length is all tokens over answers that came to their end, so that those
    cut off count too: by the finished alone, the slower an engine, the shorter its answers seem.

    Args:
        half_life_s: Busy seconds after which what was seen counts half.
        min_busy_s: Busy seconds before the pace is believed.
    """

    def __init__(self, *, half_life_s: float = 10.0, min_busy_s: float = 2.0) -> None:
        self._decay_per_s = math.log(2) / half_life_s
        self._min_busy_s = min_busy_s
        self._tokens = self._live_s = self._busy_s = 0.0
        self._live, self._since_s = 0, 0.0
        self._left_tokens = self._finished = 0.0
        self._num_finished = 0

    def live(self, count: int, now_s: float) -> None:
        """From now on so many are with the engine."""
        self._advance(now_s)
        self._live = count

    def done(self, tokens: int, now_s: float) -> None:
        """The engine has generated `tokens` more."""
        self._advance(now_s)
        self._tokens += tokens

    def left(self, tokens: int, *, finished: bool) -> None:
        """An answer left with this many tokens, at its end or before."""
        self._left_tokens = KEPT * self._left_tokens + tokens
        self._finished = KEPT * self._finished + finished
        self._num_finished += finished

    def seen(self, now_s: float) -> Pace | None:
        """What there is to say; None if it is not known yet."""
        self._advance(now_s)
        if self._num_finished < MIN_SAMPLES or self._busy_s < self._min_busy_s:
            return None
        token_s = self._live_s / max(self._tokens, 1.0)
        mean_tokens = self._left_tokens / max(self._finished, 1.0)
        return Pace(
            running=self._live_s / self._busy_s,
            answer_s=max(mean_tokens * token_s, 1e-3),
            token_s=token_s,
        )

    def _advance(self, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._since_s)
        self._since_s = now_s
        if not self._live:
            return
        kept = math.exp(-self._decay_per_s * elapsed_s)
        weight_s = (1 - kept) / self._decay_per_s
        self._tokens *= kept
        self._live_s = self._live_s * kept + self._live * weight_s
        self._busy_s = self._busy_s * kept + weight_s


class LongAnswers:
    """
    The length that only one answer in fifty exceeds, in tokens.

    Answers count in the order in which they began: of those that begin together the short ones end
    first, and by these a full engine's answers would all seem short.

    Args:
        window: Answers that are remembered, and have to be seen first.
    """

    def __init__(self, *, window: int = WINDOW) -> None:
        self._begun: dict[object, int | None] = {}
        self._lengths: deque[int] = deque(maxlen=window)
        self._quantile: int | None = None

    def began(self, answer: object) -> None:
        """One began."""
        self._begun[answer] = None

    def ended(self, answer: object, tokens: int) -> None:
        """
        One ended with so many.

        Or with all that it might have had, if it ran out of time: by what it had got, the slower an
        engine, the shorter its answers, and the more would be let in.
        """
        self._begun[answer] = tokens
        self._take()

    def gave_up(self, answer: object) -> None:
        """One was cut short for a reason that says nothing of its length."""
        self._begun.pop(answer, None)
        self._take()

    def tokens(self) -> float:
        """The length, at least 1; infinite until it is known."""
        if len(self._lengths) < (self._lengths.maxlen or 1):
            return math.inf
        if self._quantile is None:
            # An engine whose answers are all empty takes no time for them: nothing to divide by.
            self._quantile = max(1, _quantile(sorted(self._lengths), LONG_QUANTILE))
        return self._quantile

    def _take(self) -> None:
        """Remember those that all began before any that goes on."""
        while self._begun:
            first, tokens = next(iter(self._begun.items()))
            if tokens is None:
                return
            del self._begun[first]
            self._lengths.append(tokens)
            self._quantile = None


class OutputLengths:
    """
    How long the answers of one route get, in tokens.

    Args:
        window: Answers that are remembered.
    """

    def __init__(self, *, window: int = WINDOW) -> None:
        self._seen: deque[int] = deque(maxlen=window)
        self._q80: int | None = None
        self._mean = 0.0

    def learn(self, tokens: int) -> None:
        """An answer ended with this many."""
        self._seen.append(tokens)
        self._q80 = None

    def predict(self, max_tokens: int) -> tuple[int, int]:
        """(q80, mean) of an answer that may have `max_tokens`; both at least 1."""
        if len(self._seen) < MIN_SAMPLES:
            prior = max(1, math.ceil(max_tokens * PRIOR_SHARE))
            return prior, prior
        if self._q80 is None:
            ordered = sorted(self._seen)
            self._q80 = _quantile(ordered, QUANTILE)
            self._mean = statistics.fmean(ordered)
        return (
            max(1, min(self._q80, max_tokens)),
            max(1, min(round(self._mean), max_tokens)),
        )


class RefusalStreak:
    """Whether requests have been refused for so long that a retry only adds to the load."""

    def __init__(self) -> None:
        self._since_s = self._last_s = float("-inf")

    def refused(self, now_s: float) -> None:
        """A request was refused."""
        if now_s - self._last_s > STREAK_GAP_S:
            self._since_s = now_s
        self._last_s = now_s

    def queue_stands(self, now_s: float) -> None:
        """
        The queue is long at this moment: a pause in the refusals is then none in the load.

        Places come free in clumps. Who was refused in such a pause came back into the same queue,
        and its answer began too late: a sixth of what an engine on a CPU did at twice its capacity.
        """
        if now_s - self._last_s <= STREAK_GAP_S:
            self._last_s = now_s

    def sustained(self, now_s: float) -> bool:
        """Whether refusals, or the long queue they left, have lasted 5 s without a gap of 2 s."""
        going_on = now_s - self._last_s <= STREAK_GAP_S
        return going_on and now_s - self._since_s >= SUSTAINED_AFTER_S


class Forecasts:
    """
    Whether the Retry-After that refused callers were told was right.

    A refused request is followed as if it had been let in: it would have been served once the work
    that was ahead of it, and its own, had left the queue.

    Args:
        window: Forecasts that are remembered.
    """

    def __init__(self, *, window: int = 512) -> None:
        self._pending: deque[tuple[float, float, float]] = deque(maxlen=window)
        self._ratios: deque[float] = deque(maxlen=window)
        self._left_tokens = 0.0

    def promised(self, wait_s: float, work_tokens: int, now_s: float) -> None:
        """Somebody was told `wait_s` with this much work up to and with its own."""
        self._pending.append((self._left_tokens + work_tokens, now_s, wait_s))

    def left(self, work_tokens: int, now_s: float) -> None:
        """This much work left the queue."""
        self._left_tokens += work_tokens
        while self._pending and self._pending[0][0] <= self._left_tokens:
            _, told_s, wait_s = self._pending.popleft()
            self._ratios.append(wait_s / max(now_s - told_s, 1e-3))

    def emptied(self) -> None:
        """Nobody waits any more: what is still pending cannot be judged."""
        self._pending.clear()

    @property
    def count(self) -> int:
        """Forecasts that could be judged."""
        return len(self._ratios)

    def median_ratio(self) -> float | None:
        """Told over true, the median; None without any."""
        return statistics.median(self._ratios) if self._ratios else None


def _quantile(ordered: Sequence[int], share: float) -> int:
    return ordered[math.ceil(share * len(ordered)) - 1]
