"""A data folder belongs to one orchestrator, and is free again when that one is gone."""

import subprocess
import sys

import pytest

from orchestrator.data_folder import DataFolder
from orchestrator.errors import StoreUnavailable

_HOLDER = """
import sys
from pathlib import Path
from orchestrator.data_folder import DataFolder
folder = DataFolder(Path(sys.argv[1]))
folder.claim()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_second_one_is_told_who_has_it(tmp_path):
    """With the other's process id; after kill -9 of that one the folder is free."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreUnavailable, match=f"in use by another.*pid {holder.pid}"):
            DataFolder(tmp_path).claim()
    finally:
        holder.kill()
        holder.communicate()
    free = DataFolder(tmp_path)
    free.claim()
    free.release()
    again = DataFolder(tmp_path)
    again.claim()
    again.release()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    """The message names the folder and the setting."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="ORCHESTRATOR_DATA_DIR"):
        DataFolder(tmp_path / "file" / "data").claim()
