"""
What an engine says of itself in `/metrics`, as far as the gate needs it.

A scan for the few names that count: prometheus_client's parser takes 20 times as long. What is missing,
not a number or below zero is None, never zero: an unknown load is not an idle engine.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_BUCKET = "inter_token_latency_seconds_bucket"
_CONFIG = "cache_config_info"
_ITERATIONS = "iteration_tokens_total_count"
_REASONS = "num_requests_waiting_by_reason"
_SAMPLE = re.compile(
    r"^vllm:("
    "num_requests_running|num_requests_waiting|num_preemptions_total|prompt_tokens_total|"
    f"generation_tokens_total|kv_cache_usage_perc|{_REASONS}|{_ITERATIONS}|{_BUCKET}|{_CONFIG}"
    # A value that is missing is one that is no number: it must not drop out of a sum.
    r")(?![a-z0-9_:])(?:\{(.*)\})?[ \t]*(\S*)",
    re.MULTILINE,
)
_KV_TOKENS = re.compile(r'\bkv_cache_size_tokens="(\d{1,18})"')
_BOUND = re.compile(r'\ble="([^"]*)"')

Buckets = tuple[tuple[float, float], ...]
"""(upper bound in seconds, observations up to it), bounds rising, the last one infinite."""


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """
    One look at an engine; None for what it did not say. Several engines behind one address count as one.

    Attributes:
        kv_cache_tokens: Size of the KV cache.
        kv_usage: Held share of it, 0 to 1.
        waiting_capacity: Requests that wait for room, and for nothing else.
        iterations_total: Steps that brought somebody a token: the heartbeat.
        inter_token_s: Cumulative buckets of the time between two tokens of an answer.
    """

    kv_cache_tokens: int | None = None
    kv_usage: float | None = None
    running: int | None = None
    waiting: int | None = None
    waiting_capacity: int | None = None
    preemptions_total: int | None = None
    prompt_tokens_total: int | None = None
    generation_tokens_total: int | None = None
    iterations_total: int | None = None
    inter_token_s: Buckets | None = None

    def median_inter_token_s(self, previous: "EngineMetrics") -> float | None:
        """
        The median time between tokens since an earlier look, interpolated within its bucket.

        None if there was no token since, if the engine has restarted, or if either look has no
        buckets. Above the last bound it is that bound.
        """
        if not self.inter_token_s or not previous.inter_token_s:
            return None
        bounds = [bound for bound, _ in self.inter_token_s]
        if bounds != [bound for bound, _ in previous.inter_token_s]:
            return None
        pairs = zip(self.inter_token_s, previous.inter_token_s, strict=True)
        return _median(bounds, [now - before for (_, now), (_, before) in pairs])


def parse(text: str) -> EngineMetrics:
    """The figures in a page of Prometheus text; never raises."""
    samples: dict[str, list[tuple[str, float]]] = {}
    for name, labels, value in _SAMPLE.findall(text):
        samples.setdefault(name, []).append((labels, _number(value)))
    waiting = samples.get(_REASONS, ())
    return EngineMetrics(
        kv_cache_tokens=_kv_cache_tokens(samples.get(_CONFIG, ())),
        kv_usage=_mean_share(samples.get("kv_cache_usage_perc", ())),
        running=_whole(samples.get("num_requests_running", ())),
        waiting=_whole(samples.get("num_requests_waiting", ())),
        waiting_capacity=_whole([s for s in waiting if 'reason="capacity"' in s[0]]),
        preemptions_total=_whole(samples.get("num_preemptions_total", ())),
        prompt_tokens_total=_whole(samples.get("prompt_tokens_total", ())),
        generation_tokens_total=_whole(samples.get("generation_tokens_total", ())),
        iterations_total=_whole(samples.get(_ITERATIONS, ())),
        inter_token_s=_buckets(samples.get(_BUCKET, ())),
    )


def _number(text: str) -> float:
    """The value, or NaN for anything that no count or share can be."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if 0 <= number < math.inf else math.nan


def _sum(samples: Sequence[tuple[str, float]]) -> float:
    """Of the samples' values; NaN if there is none, or if one is unknown: part of a sum is no sum."""
    return sum(value for _, value in samples) if samples else math.nan


def _whole(samples: Sequence[tuple[str, float]]) -> int | None:
    total = _sum(samples)
    return int(total) if math.isfinite(total) else None


def _mean_share(samples: Sequence[tuple[str, float]]) -> float | None:
    """Each engine holds a share of its own cache; together they hold the mean."""
    share = _sum(samples) / max(1, len(samples))
    return share if share <= 1 else None


def _kv_cache_tokens(samples: Sequence[tuple[str, float]]) -> int | None:
    sizes = [int(found.group(1)) for labels, _ in samples if (found := _KV_TOKENS.search(labels))]
    return sum(sizes) if sizes and len(sizes) == len(samples) and all(sizes) else None


def _buckets(samples: Sequence[tuple[str, float]]) -> Buckets | None:
    counts: dict[float, float] = {}
    for labels, value in samples:
        found = _BOUND.search(labels)
        bound = (
            math.inf if found and found.group(1) == "+Inf" else _number(found[1] if found else "")
        )
        if math.isnan(bound) or math.isnan(value):
            return None
        counts[bound] = counts.get(bound, 0.0) + value
    rising = tuple(sorted(counts.items()))
    return rising if rising and rising[-1][0] == math.inf else None


def _median(bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """Of cumulative counts; the last bound is infinite."""
    total = counts[-1]
    below, lower = 0.0, 0.0
    if not 0 < total < math.inf:
        return None
    for bound, count in zip(bounds, counts, strict=True):
        if count < below:
            return None
        if count >= total / 2:
            if bound == math.inf:
                return lower
            return lower + (bound - lower) * (total / 2 - below) / (count - below)
        below, lower = count, bound
    return None
