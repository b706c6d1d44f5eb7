"""Every Prometheus series, its unit in its name. Built once by `app.py`; the rooms get callables."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


BREAKER_STATES = ("closed", "half_open", "open")


class HasState(Protocol):
    """Anything with a breaker's state."""

    @property
    def state(self) -> str:
        """One of BREAKER_STATES."""


class Metrics:
    """The series of one orchestrator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tidegate_requests",
            "Requests answered, by route and outcome code (ok or the error's code).",
            ["route", "code"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "tidegate_request_seconds",
            "Time from a request's arrival to its last byte, in seconds.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "tidegate_queue_seconds",
            "Time that admitted questions waited at the gate, in seconds.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.retrieve_seconds = Histogram(
            "tidegate_retrieve_seconds",
            "Time of retrieval, in seconds.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "tidegate_first_token_seconds",
            "Time from a question's arrival to its first token, in seconds.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "tidegate_prompt_tokens", "Prompt tokens of finished answers.", registry=self.registry
        )
        self.completion_tokens = Counter(
            "tidegate_completion_tokens", "Tokens of finished answers.", registry=self.registry
        )
        self.engine_retries = Counter(
            "tidegate_engine_retries",
            "Further attempts at the engine, by the failure that caused them.",
            ["code"],
            registry=self.registry,
        )
        self.degraded = Counter(
            "tidegate_degraded_answers",
            "Answers that were less than asked for, by level (L1, L2, L3).",
            ["level"],
            registry=self.registry,
        )
        self.wait_seconds = Histogram(
            "tidegate_bulkhead_wait_seconds",
            "Wait for a place in one of the bounded rooms (threads, lanes of the embedder), in seconds.",
            ["bulkhead"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._finished: dict[tuple[str, str], tuple[Counter, Histogram]] = {}
        self._waits: dict[str, Histogram] = {}
        """The few series of it: looking one up takes longer than counting in it."""
        self.loop_lag_seconds = Histogram(
            "tidegate_event_loop_lag_seconds",
            "How much too late the event loop woke up, in seconds.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.documents_ingested = Counter(
            "tidegate_documents_ingested",
            "Documents that left ingestion, by outcome code (ok or the error's code).",
            ["code"],
            registry=self.registry,
        )
        self.pages_ingested = Counter(
            "tidegate_pages_ingested", "Pages of documents made ready.", registry=self.registry
        )
        self.ingest_seconds = Histogram(
            "tidegate_ingest_seconds",
            "Time from taking a document up to its being ready, in seconds.",
            buckets=(*SECONDS, 300, 900),
            registry=self.registry,
        )

    def finished(self, route: str, code: str, seconds: float) -> None:
        """A request has ended. A series is looked up once: that takes longer than to count."""
        series = self._finished.get((route, code))
        if series is None:
            series = (
                self.requests.labels(route=route, code=code),
                self.request_seconds.labels(route=route),
            )
            self._finished[route, code] = series
        count, took = series
        count.inc()
        took.observe(seconds)

    def waited(self, bulkhead: str, wait_s: float) -> None:
        """Somebody waited for a place."""
        series = self._waits.get(bulkhead)
        if series is None:
            series = self._waits[bulkhead] = self.wait_seconds.labels(bulkhead=bulkhead)
        series.observe(wait_s)

    def breaker_gauge(self, breakers: Mapping[str, HasState]) -> None:
        """The state of each breaker, read when it is scraped."""
        gauge = Gauge(
            "tidegate_breaker_state",
            "State of a dependency's circuit breaker: 0 closed, 1 half open, 2 open.",
            ["name"],
            registry=self.registry,
        )
        for name, breaker in breakers.items():
            gauge.labels(name=name).set_function(partial(_state_number, breaker))

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A series whose value is read when it is scraped."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


def _state_number(breaker: HasState) -> float:
    return float(BREAKER_STATES.index(breaker.state))
