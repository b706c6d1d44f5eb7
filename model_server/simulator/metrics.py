"""
What vLLM 0.32 says about itself in `/metrics`: the part that a caller can steer by, written by hand.

Names, types, labels and buckets are vLLM's; the contract tests compare them with a real one.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_REQUEST_S = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960),
    *(1920, 7680),
)
_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80, 160, 640, 2560),
)
_INTER_TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80),
)
_ITERATION_TOKENS = (1, 8, *(2**power for power in range(4, 15)))
_FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")
REJECTION_REASONS = ("max_num_queued_reqs", "max_num_queued_tokens")

Samples = Iterable[tuple[str, float]]
_Family = Callable[[str, str, Samples], None]


class Histogram:
    """Observations in buckets, as Prometheus counts them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = [float(bound) for bound in bounds]
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, once or several times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def lines(self, name: str, labels: str) -> Iterable[str]:
        """The exposition: cumulative buckets, count and sum."""
        total = 0
        for bound, count in zip([*self._bounds, "+Inf"], self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}'
        yield f"{name}_count{{{labels}}} {float(total)}"
        yield f"{name}_sum{{{labels}}} {self._sum}"


@dataclass(slots=True)
class Gauges:
    """What the engine's core reported last; like vLLM's, they stand still when the core does."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0


@dataclass(slots=True)
class EngineMetrics:
    """All counters of one engine."""

    gauges: Gauges = field(default_factory=Gauges)
    preemptions: int = 0
    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_FINISHED_REASONS, 0))
    rejections: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REJECTION_REASONS, 0))
    first_token_s: Histogram = field(default_factory=lambda: Histogram(_FIRST_TOKEN_S))
    inter_token_s: Histogram = field(default_factory=lambda: Histogram(_INTER_TOKEN_S))
    iteration_tokens: Histogram = field(default_factory=lambda: Histogram(_ITERATION_TOKENS))
    e2e_s: Histogram = field(default_factory=lambda: Histogram(_REQUEST_S))

    def page(self, *, model: str, cache_config: Mapping[str, str]) -> str:
        """The whole text, for Prometheus."""
        only_model = f'model_name="{model}"'
        labels = f'engine="0",{only_model}'
        lines: list[str] = []

        def family(name: str, kind: str, samples: Samples) -> None:
            metric = name.removesuffix("_total") if kind == "counter" else name
            lines.append(f"# HELP vllm:{name} Simulated vllm:{metric}.")
            lines.append(f"# TYPE vllm:{name} {kind}")
            lines.extend(f"vllm:{name}{{{text}}} {float(value)}" for text, value in samples)

        self._gauge_families(family, labels)
        self._counter_families(family, labels, only_model)
        for name, histogram in (
            ("iteration_tokens_total", self.iteration_tokens),
            ("time_to_first_token_seconds", self.first_token_s),
            ("inter_token_latency_seconds", self.inter_token_s),
            ("e2e_request_latency_seconds", self.e2e_s),
        ):
            family(name, "histogram", ())
            lines.extend(histogram.lines(f"vllm:{name}", labels))
        config = ",".join(f'{key}="{value}"' for key, value in sorted(cache_config.items()))
        family("cache_config_info", "gauge", [(f'{config},engine="0"', 1.0)])
        return "\n".join(lines) + "\n"

    def _gauge_families(self, family: _Family, labels: str) -> None:
        now = self.gauges
        family("num_requests_running", "gauge", [(labels, now.running)])
        family("num_requests_waiting", "gauge", [(labels, now.waiting)])
        reasons = [(f'{labels},reason="capacity"', float(now.waiting))]
        reasons.append((f'{labels},reason="deferred"', 0.0))
        family("num_requests_waiting_by_reason", "gauge", reasons)
        family("kv_cache_usage_perc", "gauge", [(labels, now.kv_usage)])

    def _counter_families(self, family: _Family, labels: str, only_model: str) -> None:
        for name, value in (
            ("prefix_cache_queries_total", self.prefix_queries),
            ("prefix_cache_hits_total", self.prefix_hits),
            ("num_preemptions_total", self.preemptions),
            ("prompt_tokens_total", self.prompt_tokens),
            ("prompt_tokens_cached_total", self.prompt_tokens_cached),
            ("generation_tokens_total", self.generation_tokens),
        ):
            family(name, "counter", [(labels, value)])
        computed = self.prompt_tokens - self.prompt_tokens_cached
        sources = {
            "local_compute": computed,
            "local_cache_hit": self.prompt_tokens_cached,
            "external_kv_transfer": 0,
        }
        family(
            "prompt_tokens_by_source_total",
            "counter",
            [(f'{labels},source="{source}"', value) for source, value in sources.items()],
        )
        family(
            "request_success_total",
            "counter",
            [
                (f'engine="0",finished_reason="{reason}",{only_model}', value)
                for reason, value in self.finished.items()
            ],
        )
        family(
            "admission_rejections_total",
            "counter",
            [(f'{only_model},reason="{why}"', value) for why, value in self.rejections.items()],
        )
