"""The model server's figures, all of them known, and its page of series as Prometheus reads it."""

from prometheus_client.parser import text_string_to_metric_families

from model_server.lifecycle import State
from model_server.memory_pressure import Pressure
from model_server.memory_watch import CardProcess, MemoryReading
from model_server.metrics_page import Figures, metrics_page
from tests.unit.model_server.making import GIB, make_gpu

PREFIX = "tidegate_model_server_"

READING = MemoryReading(
    total_bytes=80 * GIB,
    free_bytes=16 * GIB,
    engine_bytes=60 * GIB,
    others_bytes=4 * GIB,
    host_total_bytes=128 * GIB,
    host_free_bytes=100 * GIB,
    engine_host_bytes=3 * GIB,
    cards=(
        make_gpu(16 * GIB, 80 * GIB, uuid="GPU-a", name='A "100"\n'),
        make_gpu(70 * GIB, 80 * GIB, uuid="GPU-b"),
    ),
    processes=(
        CardProcess("GPU-a", 101, 60 * GIB, "engine"),
        CardProcess("GPU-a", 7, 3 * GIB, "other"),
        CardProcess("GPU-b", 8, None, "unknown"),
    ),
)
FIGURES = Figures(
    started_at_s=1_790_000_000.5,
    state=State.READY,
    state_s=12.5,
    starts=7,
    restarts=3,
    hangs=1,
    wakes=3,
    unloads=4,
    last_start_s=41.5,
    last_unload_freed_bytes=5 * GIB,
    kv_tokens_planned=1000,
    kv_tokens_reported=940,
    planned_parts_bytes={"weights": GIB, "kv_cache": 2 * GIB, "activations": 3, "runtime": 4},
    planned_reserve_bytes=GIB // 2,
    planned_budget_bytes=70 * GIB,
    pressure=Pressure.CRITICAL,
    memory=READING,
)


def samples(figures):
    """Name (without the prefix) and labels to value, as Prometheus reads them; none twice."""
    found = {}
    for family in text_string_to_metric_families(metrics_page(figures)):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name.removeprefix(PREFIX), *sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found
