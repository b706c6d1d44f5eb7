"""What vLLM's last lines mean: its own words, and what follows from them."""

import pytest

from model_server.errors import (
    CheckpointError,
    ConfigurationError,
    DoesNotFit,
    EngineEnvironmentError,
    PortInUse,
    UnsupportedModel,
)
from model_server.start_errors import Cure, find_cause

# As vLLM 0.32 writes them: v1/core/kv_cache_utils.py, v1/worker/utils.py, v1/worker/cpu_worker.py.
TOO_LONG = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV "
    "cache is needed, which is larger than the available KV cache memory (4.2 GiB). Based on the "
    "available memory, the estimated maximum model length is 34400. Try increasing "
    "`gpu_memory_utilization`"
)
TAKEN = (
    "ValueError: Free memory on device cuda:0 (3.1/23.6 GiB) on startup is less than desired GPU "
    "memory utilization (0.9, 21.2 GiB). Decrease GPU memory utilization or reduce GPU memory used"
)
TAKEN_CPU = (
    "ValueError: Available memory on node 0 (3.1/23.6 GiB) on startup is less than desired CPU "
    "memory utilization (0.9, 21.2 GiB)."
)
PROFILE = (
    "INFO Free memory on device (70.1/79.2 GiB) on startup. Desired GPU memory utilization is (0.9, "
    "71.3 GiB). Actual usage is 16.2 GiB for consumed memory (weights + non-torch)"
)


@pytest.mark.parametrize(
    ("line", "cure", "error"),
    [
        (TOO_LONG, Cure.SHORTER_CONTEXT, DoesNotFit),
        (TAKEN, Cure.LESS_MEMORY, DoesNotFit),
        (TAKEN_CPU, Cure.LESS_MEMORY, DoesNotFit),
        ("torch.OutOfMemoryError: CUDA out of memory.", Cure.LESS_MEMORY, DoesNotFit),
        ("DefaultCPUAllocator: can't allocate memory: you tried", Cure.LESS_MEMORY, DoesNotFit),
        ("OSError: [Errno 12] Cannot allocate memory", Cure.LESS_MEMORY, DoesNotFit),
        ("ValueError: No available memory for the cache blocks.", Cure.NONE, DoesNotFit),
        (TOO_LONG.split("Based", maxsplit=1)[0], Cure.NONE, DoesNotFit),
        ("safetensors_rust.SafetensorError: Error while", Cure.NONE, CheckpointError),
        ("OSError: [Errno 98] Address already in use", Cure.NONE, PortInUse),
        ("api_server.py: error: unrecognized arguments: --x", Cure.NONE, ConfigurationError),
        ("ValueError: Model architectures ['X'] are not supported", Cure.NONE, UnsupportedModel),
        ("ModuleNotFoundError: No module named 'vllm'", Cure.NONE, EngineEnvironmentError),
    ],
)
def test_each_fault_has_its_cure(line, cure, error):
    """A line of the log among others, indented as in a traceback."""
    found = find_cause(["INFO starting", f"    {line}  ", "ERROR EngineCore failed to start."])
    assert found is not None
    assert (found.cure, found.error) == (cure, error)
    assert found.line == line.strip()


def test_the_length_that_would_fit_is_read():
    """The number, and not that of the length that does not fit."""
    assert find_cause([TOO_LONG]).max_model_len == 34_400


WARNING = "WARNING Triton is not used: No module named 'triton'"


@pytest.mark.parametrize("line", [PROFILE, WARNING, "ERROR EngineCore died", "", "KeyError: 'x'"])
def test_what_names_no_fault_is_not_guessed(line):
    """A report of memory is no complaint of it, and an unknown error is unknown."""
    assert find_cause([line]) is None


def test_the_fault_itself_counts_before_what_follows_from_it():
    """A context that is too long before a hopeless fault, and that before want of memory."""
    memory, damaged = "torch.OutOfMemoryError", "SafetensorError: HeaderTooLarge"
    assert find_cause([memory, damaged]).error is CheckpointError
    assert find_cause([memory, damaged, TOO_LONG]).cure is Cure.SHORTER_CONTEXT


def test_a_line_without_an_end_is_cut():
    """What is shown to people stays readable."""
    assert len(find_cause([f"{'x' * 5000} CUDA out of memory"]).line) == 400
