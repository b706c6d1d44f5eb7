"""
When a client tries again, and how long it waits first: what the official OpenAI client does.

Pure: numbers and headers in, a decision out.
"""

import email.utils
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

NO_STATUS = 0
"""Stands for a status where none came: connection refused, reset, or nothing in time."""

REQUEST_TIMEOUT = 408
CONFLICT = 409
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500

MAX_RETRY_AFTER_S = 60.0
"""Older clients ignore a longer `Retry-After`, newer ones one above 120 s: the stricter rule."""


@dataclass(frozen=True, slots=True)
class ClientRules:
    """
    How patient a client is, and how it tries again.

    Attributes:
        patience_s: Longest time of one attempt, from sending to the last byte; then it hangs up.
            The server is told (`timeout_s`).
        first_token_slo_s: A first token later than this, counted from the first attempt, is no
            good to the person who waits.
        grace_s: How long after `patience_s` the client still listens, to tell a late answer from
            none: whoever gets no end by then counts as hung.
        max_retries: Further attempts.
        first_wait_s: Back-off before the second attempt; it doubles with each.
        max_wait_s: Longest back-off.

    Source:
        openai 3.54, `_base_client.py`, `_calculate_retry_timeout` and `_should_retry`; the waits,
        the jitter and the number of retries are its defaults.
    """

    patience_s: float = 30.0
    first_token_slo_s: float = 10.0
    grace_s: float = 2.0
    max_retries: int = 2
    first_wait_s: float = 0.5
    max_wait_s: float = 8.0

    def wait_s(
        self, *, status: int, headers: Mapping[str, str], retries: int, rng: random.Random
    ) -> float | None:
        """
        Seconds until the next attempt; None if there will be none.

        Args:
            status: Of the failed attempt; NO_STATUS if none came.
            headers: Of its answer, names in lower case.
            retries: Attempts after the first that were made already.
            rng: For the jitter.
        """
        if retries >= self.max_retries or not worth_retrying(status, headers):
            return None
        told_s = retry_after_s(headers)
        if told_s is not None and 0 < told_s <= MAX_RETRY_AFTER_S:
            return told_s
        backoff_s: float = min(self.first_wait_s * 2.0**retries, self.max_wait_s)
        return backoff_s * (1 - 0.25 * rng.random())


def worth_retrying(status: int, headers: Mapping[str, str]) -> bool:
    """Whether the client tries again after this status, as far as the server does not forbid it."""
    told = headers.get("x-should-retry")
    if told in {"true", "false"}:
        return told == "true"
    return (
        status in {NO_STATUS, REQUEST_TIMEOUT, CONFLICT, TOO_MANY_REQUESTS}
        or status >= SERVER_ERROR
    )


def retry_after_s(
    headers: Mapping[str, str], *, clock: Callable[[], float] = time.time
) -> float | None:
    """Seconds that the server asked to wait; None if it did not, or not in a way to be understood."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return seconds
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else email.utils.mktime_tz(date) - clock()
