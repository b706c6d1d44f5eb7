"""The page of series: readable by Prometheus, whole when all is known, silent about what is not."""

import dataclasses
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_server.lifecycle import State
from model_server.memory_pressure import Pressure
from model_server.metrics_page import metrics_page
from tests.unit.model_server.figures import FIGURES, PREFIX, READING, samples
from tests.unit.model_server.making import GIB

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def test_the_states_are_one_hot():
    """1 for the engine's own state, 0 for every other, whatever it is."""
    for now in State:
        told = samples(dataclasses.replace(FIGURES, state=now))
        assert {state: told["engine_state", ("state", state.value)] for state in State} == {
            state: float(state is now) for state in State
        }


def test_every_figure_is_on_the_page():
    """Each under its own name, in its own unit."""
    told = samples(FIGURES)
    expected = {
        "start_time_seconds": 1_790_000_000.5,
        "engine_state_age_seconds": 12.5,
        "engine_last_start_seconds": 41.5,
        "engine_starts_total": 7,
        "engine_restarts_total": 3,
        "engine_hangs_total": 1,
        "engine_wakes_total": 3,
        "engine_unloads_total": 4,
        "last_unload_freed_bytes": 5 * GIB,
        "planned_reserve_bytes": GIB // 2,
        "planned_budget_bytes": 70 * GIB,
        "kv_cache_planned_tokens": 1000,
        "kv_cache_reported_tokens": 940,
        "kv_cache_deviation_ratio": pytest.approx(-0.06),
        "memory_pressure": 2,
        "device_total_bytes": 80 * GIB,
        "device_free_bytes": 16 * GIB,
        "engine_memory_bytes": 60 * GIB,
        "others_memory_bytes": 4 * GIB,
        "host_total_bytes": 128 * GIB,
        "host_free_bytes": 100 * GIB,
        "engine_host_bytes": 3 * GIB,
    }
    assert {key[0]: value for key, value in told.items() if len(key) == 1} == expected


def test_the_plans_parts_add_up():
    """One sample a part; together they are all that the engine may take."""
    told = samples(FIGURES)
    parts = {key[1][1]: value for key, value in told.items() if key[0] == "planned_bytes"}
    assert parts == FIGURES.planned_parts_bytes


def test_cards_and_their_processes():
    """By uuid; a process of which the driver says nothing has no sample; odd names are escaped."""
    told = samples(FIGURES)
    first = ("name", 'A "100"\n'), ("uuid", "GPU-a")
    assert told["gpu_total_bytes", *first] == 80 * GIB
    assert told["gpu_free_bytes", *first] == 16 * GIB
    assert told["gpu_free_bytes", ("name", "Test GPU"), ("uuid", "GPU-b")] == 70 * GIB
    processes = {key[1:]: value for key, value in told.items() if key[0] == "gpu_process_bytes"}
    assert processes == {
        (("owner", "engine"), ("pid", "101"), ("uuid", "GPU-a")): 60 * GIB,
        (("owner", "other"), ("pid", "7"), ("uuid", "GPU-a")): 3 * GIB,
    }


@pytest.mark.parametrize(
    ("unknown", "missing"),
    [
        ({"last_start_s": None}, {"engine_last_start_seconds"}),
        ({"last_unload_freed_bytes": None}, {"last_unload_freed_bytes"}),
        ({"pressure": None}, {"memory_pressure"}),
        (
            {"kv_tokens_reported": None},
            {"kv_cache_reported_tokens", "kv_cache_deviation_ratio"},
        ),
        ({"kv_tokens_planned": 0}, {"kv_cache_deviation_ratio"}),
        (
            {
                "memory": dataclasses.replace(
                    READING, free_bytes=None, total_bytes=None, engine_bytes=None, others_bytes=None
                )
            },
            {
                "device_total_bytes",
                "device_free_bytes",
                "engine_memory_bytes",
                "others_memory_bytes",
            },
        ),
        ({"memory": dataclasses.replace(READING, engine_host_bytes=None)}, {"engine_host_bytes"}),
    ],
)
def test_what_is_unknown_is_left_out(unknown, missing):
    """Never a 0 in its place; the rest of the page is as before."""
    whole, told = samples(FIGURES), samples(dataclasses.replace(FIGURES, **unknown))
    assert {key[0] for key in whole.keys() - told.keys()} == missing


def test_before_the_first_look_the_page_has_no_memory():
    """State and plan are there at once."""
    told = {key[0] for key in samples(dataclasses.replace(FIGURES, memory=None, pressure=None))}
    assert "engine_state" in told
    assert not any("device" in name or "gpu" in name for name in told)


def test_what_was_zero_is_zero():
    """An engine that holds nothing, a plan that was met exactly, no pressure: known, and shown."""
    told = samples(
        dataclasses.replace(
            FIGURES,
            kv_tokens_reported=1000,
            last_unload_freed_bytes=0,
            pressure=Pressure.NONE,
            memory=dataclasses.replace(READING, engine_bytes=0),
        )
    )
    for name in (
        "kv_cache_deviation_ratio",
        "last_unload_freed_bytes",
        "memory_pressure",
        "engine_memory_bytes",
    ):
        assert told[name,] == 0


def test_every_series_is_documented_and_named_by_the_rules():
    """docs/operations.md explains each; names end in a base unit, or in what they count."""
    text = OPERATIONS.read_text()
    units = ("_seconds", "_bytes", "_tokens", "_ratio", "_total")
    for family in text_string_to_metric_families(metrics_page(FIGURES)):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name.startswith(PREFIX)
        assert name.endswith(units) or name.removeprefix(PREFIX) in {
            "engine_state",
            "memory_pressure",
        }
        assert re.search(rf"`{name}[`{{]", text), name
