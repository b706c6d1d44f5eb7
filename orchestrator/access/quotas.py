"""How much may be used up with a key in a minute: token buckets, kept in memory."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.access.api_keys import ApiKey
from orchestrator.errors import RateLimited

MINUTE_S = 60.0


class Bucket:
    """
    What is left of an allowance that fills up again all the time.

    It may be overdrawn by one who takes more than a whole minute's worth at once: that is let through
    when the bucket is full, and waited for afterwards.

    Args:
        per_min: Filled by so much in a minute; holds as much.
        clock: Monotonic seconds.
    """

    def __init__(self, per_min: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_min = per_min
        self._clock = clock
        self._left = per_min
        self._counted_at_s = clock()

    def take(self, amount: float) -> float:
        """0.0 if it was taken; else nothing was, and this is in how many seconds it can be."""
        now_s = self._clock()
        grown = (now_s - self._counted_at_s) * self.per_min / MINUTE_S
        self._left = min(self.per_min, self._left + grown)
        self._counted_at_s = now_s
        missing = min(amount, self.per_min) - self._left
        if missing > 1e-9:  # noqa: PLR2004 - rounding
            return missing * MINUTE_S / self.per_min
        self._left -= amount
        return 0.0

    def give_back(self, amount: float) -> None:
        """Of what was taken so much was not used; a negative number was used on top."""
        self._left = min(self.per_min, self._left + amount)


class Spending:
    """
    Tokens that one request took before it began, until it is known what it used.

    Attributes:
        used: Set when that is known; until then all that was taken counts as used.
    """

    __slots__ = ("taken", "used")

    def __init__(self, taken: int) -> None:
        self.taken = taken
        self.used = taken


class Quotas:
    """
    The buckets of all keys. A restart fills them.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def request(self, key: ApiKey) -> None:
        """
        Count one request.

        Raises:
            RateLimited: If the key's requests of this minute are used up.
        """
        limit = key.limits.requests_per_min
        if limit is not None:
            self._take(key, "requests", limit, 1)

    @contextmanager
    def tokens(self, key: ApiKey | None, amount: int) -> Iterator[Spending]:
        """
        Take tokens for the time of the block, and settle at its end by what was used.

        Args:
            key: Whose; None has no limit.
            amount: What the request may use, at most.

        Raises:
            RateLimited: If the key's tokens of this minute are used up.
        """
        spending = Spending(amount)
        limit = None if key is None else key.limits.tokens_per_min
        if key is None or limit is None:
            yield spending
            return
        bucket = self._take(key, "tokens", limit, amount)
        try:
            yield spending
        finally:
            bucket.give_back(spending.taken - spending.used)

    def _take(self, key: ApiKey, what: str, per_min: int, amount: int) -> Bucket:
        bucket = self._buckets.get((key.id, what))
        if bucket is None or bucket.per_min != per_min:
            bucket = self._buckets[key.id, what] = Bucket(per_min, clock=self._clock)
        wait_s = bucket.take(amount)
        if wait_s:
            raise RateLimited(
                f"This key may use {per_min} {what} a minute, and they are used up. Try again in "
                f"{math.ceil(wait_s)} s, or ask whoever runs this service for more.",
                retry_after_s=wait_s,
            )
        return bucket
