"""From a plan to TGI's command line and environment."""

import itertools
from pathlib import Path

import pytest

from model_server.engines.base import Engine, Serving
from model_server.engines.tgi import TgiEngine
from model_server.errors import DoesNotFit
from model_server.planner import Goals, make_plan
from tests.public_models import CARDS_GB, PUBLIC_MODELS, card
from tests.unit.model_server.making import make_cpu, make_gpu, make_shape


def engine(device, *, extra_args=(), shape=None, port=8000, **goals) -> TgiEngine:
    """An engine for a plan on `device`."""
    plan = make_plan(device=device, shape=shape or make_shape(), goals=Goals(**goals))
    serving = Serving(model=Path("/m"), name="smol", host="127.0.0.1", port=port, drain_s=10)
    launcher = Path("/tgi/bin/text-generation-launcher")
    return TgiEngine(launcher=launcher, plan=plan, serving=serving, extra_args=extra_args)


def option(argv, name):
    """The value that follows an option."""
    return argv[argv.index(name) + 1]


def test_the_plan_becomes_the_launchers_flags():
    """Lengths, batch and memory are the plan's, and one card is one shard."""
    made = engine(make_gpu(), enforce_eager=False)
    typed: Engine = made
    argv = typed.argv
    assert argv[0] == "/tgi/bin/text-generation-launcher"
    assert option(argv, "--model-id") == "/m"
    assert (option(argv, "--hostname"), option(argv, "--port")) == ("127.0.0.1", "8000")
    assert option(argv, "--num-shard") == "1"
    assert option(argv, "--max-total-tokens") == "8192"
    assert option(argv, "--max-input-tokens") == "8191"
    assert option(argv, "--max-batch-size") == "256"
    assert option(argv, "--max-concurrent-requests") == "384"
    assert option(argv, "--max-batch-total-tokens") == str(made.plan.kv_tokens)
    assert option(argv, "--cuda-memory-fraction") == str(made.plan.gpu_memory_utilization)
    assert option(argv, "--dtype") == "bfloat16"
    assert option(argv, "--usage-stats") == "off"
    assert "--cuda-graphs" not in argv


def test_what_the_launcher_would_refuse_is_not_asked_of_it():
    """An input shorter than the whole, a whole that fits the cache, a prompt that fits a prefill."""
    started = 0
    for gigabytes, shape in itertools.product(CARDS_GB, PUBLIC_MODELS.values()):
        try:
            argv = engine(card(gigabytes), shape=shape).argv
        except DoesNotFit:
            continue
        started += 1
        longest_prompt, whole, prefill, cache = (
            int(option(argv, f"--max-{what}-tokens"))
            for what in ("input", "total", "batch-prefill", "batch-total")
        )
        assert longest_prompt < whole <= cache
        assert longest_prompt <= prefill
    assert started > len(PUBLIC_MODELS)


def test_an_eager_plan_captures_no_graphs():
    """The launcher's word for none is a batch size of 0."""
    assert option(engine(make_gpu()).argv, "--cuda-graphs") == "0"


def test_a_quantized_model_keeps_its_own_dtype():
    """The launcher refuses a dtype beside a quantization."""
    assert "--dtype" not in engine(make_gpu(), shape=make_shape(quantization="awq")).argv


def test_a_cpu_has_no_share_of_a_card():
    """The fraction and the card's uuid are a GPU's."""
    made = engine(make_cpu())
    assert "--cuda-memory-fraction" not in made.argv
    assert made.variables == {"HF_HUB_OFFLINE": "1"}


def test_two_servers_do_not_meet_in_one_place():
    """The socket between its processes is named after the port."""
    places = {option(engine(make_gpu(), port=port).argv, "--shard-uds-path") for port in (1, 2)}
    assert len(places) == 2


def test_extra_arguments_come_last():
    """What the operator adds is there, after the planned ones."""
    argv = engine(make_gpu(), extra_args=("--trust-remote-code",)).argv
    assert argv[-1] == "--trust-remote-code"


def test_the_environment_is_offline_on_one_card_and_overrules_nothing():
    """Variables that the launcher reads as flags, and modules of ours, do not reach it."""
    inherited = {
        "PATH": "/bin",
        "PYTHONPATH": "/ours",
        "QUANTIZE": "eetq",
        "KV_CACHE_DTYPE": "fp8_e5m2",
        "SHARDED": "true",
        "MAX_INPUT_LENGTH": "100",
    }
    assert engine(make_gpu()).environment(inherited) == {
        "PATH": "/bin",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "GPU-1234",
    }


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("INFO text_generation_launcher: Starting check and download process for /m", "looking"),
        ("INFO shard-manager: text_generation_launcher: Starting shard rank=0", "loading weights"),
        ("INFO text_generation_launcher: Shard ready in 12.3s rank=0", "weights loaded"),
        ("INFO text_generation_router_v3: Warming up model", "allocating KV cache"),
        ("INFO text_generation_router_v3: Setting max batch total tokens to 9000", "engine's"),
        ("INFO text_generation_router::server: Connected", None),
    ],
)
def test_lines_of_the_log_become_phases(line, phase):
    """Lines that TGI 3 writes while it starts are told apart; others say nothing."""
    found = engine(make_gpu()).phase(line)
    assert found is None if phase is None else str(found).startswith(phase)


def test_the_end_of_draining_is_recognised():
    """Once the router is gone no request is left; the shards, which hold the memory, go after it."""
    made = engine(make_gpu())
    lines = (
        "INFO text_generation_launcher: Terminating webserver",
        "INFO text_generation_launcher: Waiting for webserver to gracefully shutdown",
        "INFO text_generation_launcher: webserver terminated",
        "INFO text_generation_launcher: Shutting down shards",
    )
    assert [made.has_drained(line) for line in lines] == [False, False, True, False]
