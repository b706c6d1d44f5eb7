"""
Faults that an engine can be told to have while it runs, and for which requests they fall due.

    status            answer `status` with `body` and `retry_after`
    hang              take the request and never answer
    slow              `first_token_s` more before the first token
    drip              `token_s` more before each further chunk
    reset             RST after `chunks` chunks
    cut               close after `chunks` chunks, without [DONE]
    garbage           a frame that is no JSON, after `chunks` chunks
    error_event       an error in the stream and [DONE], after `chunks` chunks
    abort             finish_reason "abort" and [DONE], after `chunks` chunks
    no_finish_reason  everything but a finish_reason
    latency_factor    every step takes `factor` times as long
    freeze            no step is taken any more; /health stays 200
    metrics           `mode` dead, stale, renamed, nan or slow (`delay_s`)
    startup           503 to everything

The first ten befall a request with `probability`, `count` of them in all; the others last `seconds`,
or until they are cleared when that is 0.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

REQUEST_KINDS = frozenset({
    *("status", "hang", "slow", "drip", "reset", "cut", "garbage", "error_event", "abort"),
    "no_finish_reason",
})
ENGINE_KINDS = frozenset({"latency_factor", "freeze", "metrics", "startup"})
_METRICS_MODES = frozenset({"dead", "stale", "renamed", "nan", "slow"})


@dataclass(slots=True)
class Fault:
    """
    One fault. What a kind does not use is ignored.

    Attributes:
        count: Requests that it still befalls; None is no limit.
        retry_after: The header's value, as it is.
        chunks: Chunks with text that come before it.
    """

    kind: str
    probability: float = 1.0
    count: int | None = None
    status: int = 503
    retry_after: str | None = None
    body: Any = None
    first_token_s: float = 0.0
    token_s: float = 0.0
    chunks: int = 1
    factor: float = 1.0
    mode: str = "dead"
    delay_s: float = 5.0
    seconds: float = 0.0

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "Fault":
        """
        A fault from its JSON.

        Raises:
            ValueError: If it has no such kind or field, or a value out of range.
        """
        unknown = set(given) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        try:
            fault = cls(**given)
            in_range = 0 <= fault.probability <= 1 and fault.factor > 0 and fault.chunks >= 0
        except TypeError as exc:
            raise ValueError(f"not a fault: {exc}") from exc
        if fault.kind not in REQUEST_KINDS | ENGINE_KINDS:
            raise ValueError(
                f"{fault.kind!r} is no fault; there are {sorted(REQUEST_KINDS)} "
                f"and {sorted(ENGINE_KINDS)}"
            )
        if fault.kind == "metrics" and fault.mode not in _METRICS_MODES:
            raise ValueError(f"mode is one of {sorted(_METRICS_MODES)}")
        if not in_range:
            raise ValueError("probability is 0 to 1, factor above 0, chunks 0 or more")
        return fault


class Faults:
    """The faults in force."""

    def __init__(self, *, seed: int, clock: Callable[[], float]) -> None:
        self._seed = seed
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._faults: list[Fault] = []
        self._since_s: list[float] = []

    def add(self, fault: Fault) -> None:
        """Put one in force, beside those that are."""
        self._faults.append(fault)
        self._since_s.append(self._clock())

    def clear(self) -> None:
        """End them all; the dice start over too, so that runs can be repeated."""
        self._faults.clear()
        self._since_s.clear()
        self._random.seed(self._seed)

    def as_json(self) -> list[dict[str, Any]]:
        """What is in force."""
        return [asdict(fault) for fault in self._faults]

    def for_request(self) -> dict[str, Fault]:
        """What befalls a request that arrives now, by kind; the dice are thrown for each fault."""
        due: dict[str, Fault] = {}
        for fault in self._faults:
            if fault.kind not in REQUEST_KINDS or fault.count == 0 or fault.kind in due:
                continue
            if self._random.random() < fault.probability:
                due[fault.kind] = fault
                if fault.count is not None:
                    fault.count -= 1
        return due

    def of_engine(self, kind: str) -> Fault | None:
        """The fault of this kind that is in force; the last one given."""
        for fault, since_s in zip(reversed(self._faults), reversed(self._since_s), strict=True):
            if fault.kind == kind and (
                not fault.seconds or self._clock() < since_s + fault.seconds
            ):
                return fault
        return None
