"""A control group of this machine's kernel; skipped where none can be made."""

import signal
import subprocess
import sys

import pytest

from loadtest.memory_group import NoMemoryGroup, memory_group

MIB = 1 << 20
LIMIT_BYTES = 96 * MIB
TAKE = "import time; kept = b'x' * {mib} * 1024 * 1024; print('taken', flush=True); time.sleep(60)"


@pytest.fixture(scope="module", autouse=True)
def _groups_can_be_made():
    try:
        with memory_group(LIMIT_BYTES):
            pass
    except NoMemoryGroup as exc:
        pytest.skip(str(exc))


def started(group, mib):
    """A process of the group that takes so much, and says when it has it."""
    with group.around_children():
        return subprocess.Popen(
            [sys.executable, "-c", TAKE.format(mib=mib)], stdout=subprocess.PIPE, text=True
        )


def test_what_is_started_in_the_group_is_counted_and_ended_with_it():
    """Its memory is in the figures, this process is not in the group, and nothing outlives it."""
    with memory_group(LIMIT_BYTES) as group:
        process = started(group, 40)
        with process.stdout:
            assert process.stdout.readline() == "taken\n"
        assert group.pids() == [process.pid]
        assert 40 * MIB < group.kept_bytes() < LIMIT_BYTES
        assert group.peak_bytes() > 40 * MIB
        assert group.kills() == 0
    assert process.wait(5) == -signal.SIGKILL


def test_who_takes_more_than_the_limit_is_killed_and_counted():
    """The kernel kills one of the group, and not us."""
    with memory_group(LIMIT_BYTES) as group, started(group, 200) as process:
        assert process.wait(30) == -signal.SIGKILL
        assert group.kills() == 1
        assert group.peak_bytes() == pytest.approx(LIMIT_BYTES, rel=0.05)


def test_the_peak_can_be_begun_anew():
    """What was taken before is not in it, where the kernel forgets."""
    with memory_group(LIMIT_BYTES) as group:
        with started(group, 40) as process:
            process.stdout.readline()
            process.kill()
        if not group.begin_peak():
            pytest.skip("this kernel keeps the peak for as long as the group lives")
        assert group.peak_bytes() < 40 * MIB
