"""What the composition root refuses before anything starts."""

import pytest

from orchestrator import assembly
from orchestrator.settings import Settings, SettingsError


def test_an_index_on_a_gpu_that_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch):
    """With the setting's name, and what to do."""
    monkeypatch.setattr(assembly, "why_no_gpu", lambda device: f"no number {device}")
    with pytest.raises(SettingsError, match=r"ORCHESTRATOR_INDEX_DEVICE=cuda:1: no number 1\."):
        assembly.assemble(Settings(data_dir=tmp_path, index_device="cuda:1"))


def test_an_index_on_a_gpu_is_one_by_choice(tmp_path, monkeypatch):
    """By default there is none; chosen, it has the memory that the settings say."""
    monkeypatch.setattr(assembly, "why_no_gpu", lambda _device: None)
    assert assembly.assemble(Settings(data_dir=tmp_path)).indexes.on_gpu() is None
    parts = assembly.assemble(Settings(data_dir=tmp_path, index_device="cuda"))
    state = parts.indexes.on_gpu()
    assert state is not None
    assert (state["device"], state["max_bytes"], state["failure"]) == (0, 1 << 30, None)
