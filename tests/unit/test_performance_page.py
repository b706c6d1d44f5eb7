"""The page of figures: a new run takes the place of the old one, and of nothing else."""

import pytest

from loadtest.performance_page import _is_pictured, _picture, kept

PAGE = """# Performance

## vllm (smollm2): curve, recovery

- commit: a

## vllm (8B) on NVIDIA H100 80GB HBM3: curve

- commit: b

## simulator (h100-8b): curve

- commit: c
"""
CPU, GPU, SIMULATOR = "a", "b", "c"


def run_of(engine, *scenarios, rows=()):
    checks = [{"check": {"scenario": name}} for name in (*scenarios, "every run")]
    runs = [{"scenario": "curve", "load_x": x, "system": system} for x, system in rows]
    return {"engine": engine, "checks": checks, "runs": runs}


@pytest.mark.parametrize(
    ("engine", "scenarios", "left"),
    [
        ("vllm (smollm2) on AMD EPYC", ("recovery", "curve"), [GPU, SIMULATOR]),
        ("vllm (smollm2) on AMD EPYC", ("curve",), [CPU, GPU, SIMULATOR]),
        ("vllm (other) on NVIDIA H100 80GB HBM3", ("curve", "latency"), [CPU, SIMULATOR]),
        ("simulator (h100-8b) on a model", ("curve",), [CPU, GPU]),
    ],
)
def test_what_was_measured_anew_is_replaced(engine, scenarios, left):
    """All its scenarios, on the same kind of engine: else the page would lose figures."""
    sections = kept(PAGE, [run_of(engine, *scenarios)])
    assert [text.split("commit: ")[1].strip() for text in sections] == left
    assert kept("# Performance\n" + "\n".join(sections), []) == sections


WHOLE = """## vllm (smollm2): curve

![goodput against offered load](pictures/curve-vllm.svg)

| load | system | goodput tok/s |
| --- | --- | --- |
| 0.5x | Tidegate | 33 |
| 0.5x | the service that people write first | 0 |
| 2x | Tidegate | 29 |
"""


def test_a_part_of_a_curve_is_beside_the_whole_one():
    """Longer rows of two systems do not cost the page what it has of the others, or its picture."""
    page = "# Performance\n\n" + WHOLE
    part = run_of("vllm (smollm2)", "curve", rows=[(0.5, "tidegate"), (2.0, "tidegate")])
    assert kept(page, [part]) == [WHOLE]
    assert _is_pictured(part, [WHOLE])
    all_of_it = run_of(
        "vllm (smollm2)", "curve", rows=[(0.5, "tidegate"), (0.5, "naive"), (2.0, "tidegate")]
    )
    assert kept(page, [all_of_it]) == []
    assert not _is_pictured(all_of_it, [])


def test_a_gpus_picture_does_not_replace_the_cpus():
    """Both engines are vLLM."""
    cpu = _picture({"engine": "vllm (smollm2) on AMD EPYC"})
    gpu = _picture({"engine": "vllm (smollm2) on NVIDIA H100 80GB HBM3"})
    assert (cpu, gpu) == ("pictures/curve-vllm.svg", "pictures/curve-vllm-h100.svg")
