"""What a load test says of where it ran."""

from types import SimpleNamespace

import pytest

from loadtest.programs import commit
from loadtest.stack import MODELLED, Device, device_of


class Planned:
    """A model_server that answers /plan with this device."""

    def __init__(self, **device):
        plan = {"device": device, "max_num_seqs": 48}
        answer = SimpleNamespace(json=lambda: plan)
        answer.raise_for_status = lambda: answer
        self.http = SimpleNamespace(get=lambda path: {"/plan": answer}[path])


@pytest.mark.parametrize(("kind", "large"), [("cuda", True), ("cpu", False)])
def test_what_vllm_is_asked_is_what_its_device_can(kind, large):
    """By the plan: a GPU gets long prompts and answers, whichever model it has."""
    assert device_of("vllm", Planned(name="it", kind=kind)) == Device("it", large, 48)


def test_the_simulator_is_a_large_engine():
    """It has no plan to be asked for."""
    assert device_of("simulator", None) == MODELLED
    assert MODELLED.large


def test_without_git_a_commit_is_unknown(monkeypatch):
    """Where a tree was unpacked: an hour of figures is not lost over it."""
    monkeypatch.setenv("PATH", "")
    assert commit() == "unknown"
