"""The page of figures: a new run takes the place of the old one, and of nothing else."""

import pytest

from loadtest.performance_page import _picture, kept

PAGE = """# Performance

## vllm (smollm2): curve, recovery

- commit: a

## vllm (8B) on NVIDIA H100 80GB HBM3: curve

- commit: b

## simulator (h100-8b): curve

- commit: c
"""
CPU, GPU, SIMULATOR = "a", "b", "c"


def run_of(engine, *scenarios):
    checks = [{"check": {"scenario": name}} for name in (*scenarios, "every run")]
    return {"engine": engine, "checks": checks}


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


def test_a_gpus_picture_does_not_replace_the_cpus():
    """Both engines are vLLM."""
    cpu = _picture({"engine": "vllm (smollm2) on AMD EPYC"})
    gpu = _picture({"engine": "vllm (smollm2) on NVIDIA H100 80GB HBM3"})
    assert (cpu, gpu) == ("pictures/curve-vllm.svg", "pictures/curve-vllm-h100.svg")
