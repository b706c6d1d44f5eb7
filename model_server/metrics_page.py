"""
The model server's series for Prometheus, as text.

What is unknown is left out: a scraper must not take it for 0.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from model_server.lifecycle import State
from model_server.memory_pressure import Pressure
from model_server.memory_watch import MemoryReading

_PREFIX = "tidegate_model_server_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """
    What the page shows; None is unknown, or not there yet.

    Attributes:
        started_at_s: When this program started, in seconds of Unix time.
        state_s: Seconds that the engine has been in its state.
        starts: Starts of the engine, whatever for.
        restarts: Those after it ended unasked.
        hangs: How often it lived and did nothing.
        wakes: Starts because somebody asked a sleeping engine.
        unloads: How often it was put to sleep.
        last_start_s: Seconds that its last start took.
        last_unload_freed_bytes: What putting it to sleep gave back last.
        kv_tokens_planned: Tokens that its cache is to hold.
        kv_tokens_reported: Tokens that it says its cache holds.
        planned_parts_bytes: What it may take, by part; together all of it.
        planned_reserve_bytes: What the plan leaves to others.
        planned_budget_bytes: What the engine might take in all.
        pressure: Level of memory pressure; None before the first look.
        memory: The last look at memory.
    """

    started_at_s: float
    state: State
    state_s: float
    starts: int
    restarts: int
    hangs: int
    wakes: int
    unloads: int
    last_start_s: float | None
    last_unload_freed_bytes: int | None
    kv_tokens_planned: int
    kv_tokens_reported: int | None
    planned_parts_bytes: Mapping[str, int]
    planned_reserve_bytes: int
    planned_budget_bytes: int
    pressure: Pressure | None
    memory: MemoryReading | None

    @property
    def kv_deviation(self) -> float | None:
        """How much more the cache holds than was planned, as a share; less is below 0."""
        if self.kv_tokens_reported is None or not self.kv_tokens_planned:
            return None
        return self.kv_tokens_reported / self.kv_tokens_planned - 1


def metrics_page(figures: Figures) -> str:
    """The page, in Prometheus' text format 0.0.4."""
    return generate_latest(_Page(figures)).decode()


class _Page:
    """The families of one page, as `prometheus_client` collects them."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Each family, once."""
        yield from _life(self._figures)
        yield from _plan(self._figures)
        if self._figures.memory is not None:
            yield from _device(self._figures.memory)
            yield from _cards(self._figures.memory)


def _life(figures: Figures) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        f"{_PREFIX}engine_state", "1 for the state that the engine is in.", labels=["state"]
    )
    for one in State:
        state.add_metric([one.value], float(one is figures.state))
    yield state
    yield from _gauge("start_time_seconds", "Unix time of this start.", figures.started_at_s)
    yield from _gauge("engine_state_age_seconds", "Time in this state.", figures.state_s)
    yield from _gauge(
        "engine_last_start_seconds", "What its last start took.", figures.last_start_s
    )
    yield _counter("engine_starts", "Starts of the engine, whatever for.", figures.starts)
    yield _counter("engine_restarts", "Starts after it ended unasked.", figures.restarts)
    yield _counter("engine_hangs", "How often it lived and did nothing.", figures.hangs)
    yield _counter("engine_wakes", "Starts because somebody asked.", figures.wakes)
    yield _counter("engine_unloads", "How often it was put to sleep.", figures.unloads)
    yield from _gauge(
        "last_unload_freed_bytes",
        "Memory that putting it to sleep gave back last.",
        figures.last_unload_freed_bytes,
    )


def _plan(figures: Figures) -> Iterator[Metric]:
    parts = GaugeMetricFamily(
        f"{_PREFIX}planned_bytes", "What the engine may take, by part.", labels=["part"]
    )
    for part, num_bytes in figures.planned_parts_bytes.items():
        parts.add_metric([part], num_bytes)
    yield parts
    yield from _gauge(
        "planned_reserve_bytes", "What the plan leaves to others.", figures.planned_reserve_bytes
    )
    yield from _gauge(
        "planned_budget_bytes",
        "What the engine might take under every cap.",
        figures.planned_budget_bytes,
    )
    yield from _gauge(
        "kv_cache_planned_tokens", "Tokens that its cache is to hold.", figures.kv_tokens_planned
    )
    yield from _gauge(
        "kv_cache_reported_tokens",
        "Tokens that it says its cache holds.",
        figures.kv_tokens_reported,
    )
    yield from _gauge(
        "kv_cache_deviation_ratio", "Reported over planned, less 1.", figures.kv_deviation
    )
    yield from _gauge(
        "memory_pressure",
        "How little memory is left: 0 none, 1 high, 2 critical.",
        None if figures.pressure is None else figures.pressure.rank,
    )


def _device(memory: MemoryReading) -> Iterator[Metric]:
    for name, text, value in (
        ("device_total_bytes", "Memory of the engine's device.", memory.total_bytes),
        ("device_free_bytes", "What a new process could take of it.", memory.free_bytes),
        ("engine_memory_bytes", "What the engine holds of it.", memory.engine_bytes),
        ("others_memory_bytes", "What all others hold of a GPU.", memory.others_bytes),
        ("host_total_bytes", "The machine's RAM, or the container's.", memory.host_total_bytes),
        ("host_free_bytes", "What a new process could take of it.", memory.host_free_bytes),
        ("engine_host_bytes", "What the engine holds of it.", memory.engine_host_bytes),
    ):
        yield from _gauge(name, text, value)


def _cards(memory: MemoryReading) -> Iterator[Metric]:
    total = GaugeMetricFamily(
        f"{_PREFIX}gpu_total_bytes", "Memory of each GPU.", labels=["uuid", "name"]
    )
    free = GaugeMetricFamily(
        f"{_PREFIX}gpu_free_bytes", "What is free of it.", labels=["uuid", "name"]
    )
    for card in memory.cards:
        total.add_metric([card.uuid, card.name], card.total_bytes)
        free.add_metric([card.uuid, card.name], card.free_bytes)
    used = GaugeMetricFamily(
        f"{_PREFIX}gpu_process_bytes",
        "What each process that computes on a GPU holds of it.",
        labels=["uuid", "pid", "owner"],
    )
    for process in memory.processes:
        if process.used_bytes is not None:
            labels = [process.card, str(process.pid), process.owner]
            used.add_metric(labels, process.used_bytes)
    yield from (total, free, used)


def _gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    """One family with one sample; none at all where the value is unknown."""
    if value is not None:
        yield GaugeMetricFamily(_PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value=value)
