"""The simulator's command line: vLLM's flags, with the profile's defaults."""

import pytest

from model_server.simulator.__main__ import _config, _parser, _profile, main
from model_server.simulator.latency import PROFILES


def config_of(*arguments):
    options = _parser().parse_args(["--port", "0", *arguments])
    return _config(options, PROFILES[options.profile])


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_defaults_are_the_profiles(name):
    """Sizes and limits as vLLM would choose them; no limit on the queue, a chunk a token."""
    config, profile = config_of("--profile", name), PROFILES[name]
    for field in ("kv_cache_tokens", "block_size", "max_num_seqs", "max_num_batched_tokens"):
        assert getattr(config, field) == getattr(profile, field)
    assert (config.model, config.stream_interval, config.time_scale) == (name, 1, 1.0)
    assert (config.max_num_queued_reqs, config.max_num_queued_tokens) == (None, None)


def test_flags_win():
    """Each flag sets the field of its name."""
    config = config_of("--max-num-seqs", "7", "--max-num-queued-tokens", "0", "--model", "m")
    assert (config.max_num_seqs, config.max_num_queued_tokens, config.model) == (7, 0, "m")


def test_answers_are_as_long_as_one_wants():
    """Far above `max_tokens` they all end there, as those of random weights do."""
    options = _parser().parse_args(["--port", "0", "--answer-tokens", "4000"])
    assert _profile(options).answer_tokens == 4000
    assert _profile(_parser().parse_args(["--port", "0"])) is PROFILES["smollm2-cpu"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kv-cache-tokens", "1000"], "cannot hold one request of max_model_len=4096"),
        (["--stream-interval", "0"], "1 or more"),
        (["--time-scale", "0"], "above 0"),
        (["--answer-tokens", "0"], "above 0"),
        (["--profile", "tpu"], "invalid choice"),
        (["--port", "x"], "invalid int"),
    ],
)
def test_a_wrong_flag_is_told_before_anything_listens(capsys, arguments, words):
    """Exit code 2, and what is wrong."""
    with pytest.raises(SystemExit) as ended:
        main(["--port", "0", *arguments])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
