"""From a plan to vLLM's command line and environment."""

import sys
from pathlib import Path

import pytest

from model_server.engines import vllm
from model_server.engines.base import Engine, Serving
from model_server.engines.vllm import VllmEngine, missing_build_tools
from model_server.errors import EngineEnvironmentError
from model_server.planner import Goals, make_plan
from tests.unit.model_server.making import make_cpu, make_gpu, make_shape


def engine(device, *, extra_args=(), shape=None, **goals) -> VllmEngine:
    """An engine for a plan on `device`."""
    plan = make_plan(device=device, shape=shape or make_shape(), goals=Goals(**goals))
    serving = Serving(model=Path("/m"), name="smol", host="127.0.0.1", port=8000, drain_s=10)
    return VllmEngine(
        python=Path("/env/bin/python"), plan=plan, serving=serving, extra_args=extra_args
    )


def option(argv, name):
    """The value that follows an option."""
    return argv[argv.index(name) + 1]


def test_the_cpu_command_line():
    """On a CPU the plan's numbers are vLLM's flags, and the KV cache is given in exact bytes."""
    cpu = engine(make_cpu())
    typed: Engine = cpu
    argv = typed.argv
    assert argv[:3] == ("/env/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert option(argv, "--model") == "/m"
    assert option(argv, "--served-model-name") == "smol"
    assert option(argv, "--max-model-len") == "4096"
    assert option(argv, "--max-num-seqs") == "32"
    assert option(argv, "--max-num-queued-reqs") == "48"
    assert option(argv, "--kv-cache-memory-bytes") == str(65_536 * 23_040)
    assert option(argv, "--dtype") == "bfloat16"
    assert option(argv, "--shutdown-timeout") == "10"
    assert "--enforce-eager" in argv
    assert "--enable-prompt-tokens-details" in argv
    assert "--gpu-memory-utilization" not in argv


def test_the_cuda_command_line():
    """On a GPU the same flags are there, with the planned share of its memory."""
    gpu = engine(make_gpu(), enforce_eager=False)
    assert option(gpu.argv, "--kv-cache-memory-bytes") == str(gpu.plan.kv_cache_bytes)
    assert 0.85 <= float(option(gpu.argv, "--gpu-memory-utilization")) <= 0.90
    assert "--enforce-eager" not in gpu.argv


def test_extra_arguments_come_last():
    """What the operator adds wins, because vLLM takes the last of an option."""
    argv = engine(make_cpu(), extra_args=("--max-num-seqs", "4")).argv
    assert argv[-2:] == ("--max-num-seqs", "4")


def test_a_quantized_model_keeps_its_own_dtype():
    """The engine chooses the type of a quantized model; bfloat16 is refused by some methods."""
    assert "--dtype" not in engine(make_cpu(), shape=make_shape(quantization="awq")).argv


def test_the_environment_is_offline_quiet_and_the_engines_own():
    """No hub, no usage statistics, no modules of ours, and nothing that overrules the plan."""
    inherited = {
        "PATH": "/bin",
        "PYTHONPATH": "/ours",
        "PYTHONHOME": "/ours",
        "VLLM_CPU_KVCACHE_SPACE": "40",
    }
    environment = engine(make_cpu()).environment(inherited)
    assert environment == {
        "PATH": "/bin",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "PYTHONUNBUFFERED": "1",
    }


def test_the_planned_gpu_is_the_one_that_is_used():
    """The engine sees the GPU that was planned for, by its uuid, and no other."""
    assert engine(make_gpu()).environment({})["CUDA_VISIBLE_DEVICES"] == "GPU-1234"


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("INFO [cpu_model_runner.py:68] Starting to load model /m...", "loading weights"),
        ("INFO [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens", "allocating KV cache"),
        ("INFO [backends.py] Starting torch.compile", "compiling"),
        ("INFO [entry.py:140] Starting vLLM server on http://…", "starting the HTTP server"),
        ("INFO:     Application startup complete.", None),
    ],
)
def test_lines_of_the_log_become_phases(line, phase):
    """Lines that vLLM 0.32 writes while it starts are told apart; others say nothing."""
    assert engine(make_cpu()).phase(line) == phase


def test_the_end_of_draining_is_recognised():
    """The line that vLLM 0.32 writes when no request is left is told from its neighbours."""
    cpu = engine(make_cpu())
    start = "INFO [core.py:1635] [shutdown] EngineCore: start mode=drain timeout=10s"
    end = (
        "INFO [core.py:1666] [shutdown] EngineCore: request processing complete; "
        "starting resource teardown"
    )
    assert [cpu.has_drained(line) for line in (start, end)] == [False, True]


def test_an_interpreter_without_vllm_is_refused():
    """The interpreter of the tests has no vLLM: the message says where to set another."""
    with pytest.raises(EngineEnvironmentError, match=r"has no vLLM.*MODEL_SERVER_ENGINE_PYTHON"):
        missing_build_tools(Path(sys.executable))


@pytest.mark.parametrize("content", [None, "#!/bin/sh\nexit 3\n", "#!/bin/sh\necho hello\n"])
def test_what_is_no_interpreter_is_refused(tmp_path, content):
    """A file that is missing, fails, or is another program is not taken for an interpreter."""
    python = tmp_path / "python"
    if content is not None:
        python.write_text(content)
        python.chmod(0o755)
    with pytest.raises(EngineEnvironmentError, match="does not run as a Python interpreter"):
        missing_build_tools(python)


@pytest.mark.parametrize(
    ("has_compiler", "has_header", "words"),
    [
        (True, True, None),
        (False, True, "g++"),
        (True, False, "python3-dev"),
        (False, False, "g++) and Python.h"),
    ],
)
def test_missing_build_tools_are_named_with_what_to_install(
    tmp_path, monkeypatch, has_compiler, has_header, words
):
    """A missing compiler or Python.h is named with the package that brings it."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '[true, {str(has_header).lower()}]'\n")
    python.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    if has_compiler:
        (tools / "g++").write_text("")
        (tools / "g++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    missing = vllm.missing_build_tools(python)
    assert missing is None if words is None else words in (missing or "")
