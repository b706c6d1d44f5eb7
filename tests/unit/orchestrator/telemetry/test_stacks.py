"""A process that hangs says where, and goes on."""

import os
import signal
import subprocess
import sys

import pytest

WAITS = """
import asyncio, sys, threading
from orchestrator.telemetry.stacks import told_on_signal

def wait_for_the_tide(ebb):
    ebb.wait(30)

async def wait_for_the_gate():
    await asyncio.sleep(30)

async def main():
    ebb = threading.Event()
    threading.Thread(target=wait_for_the_tide, args=(ebb,), daemon=True).start()
    task = asyncio.create_task(wait_for_the_gate(), name="gatekeeper")
    with told_on_signal():
        print("waiting", flush=True)
        assert await asyncio.to_thread(sys.stdin.readline) == "go\\n"
    task.cancel()
    print("went on", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def waiting():
    """A process with a thread and a task that wait."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        yield process
        process.kill()


def test_a_signal_tells_what_every_thread_and_task_waits_for(waiting):
    """By name; and the process goes on as if nothing had been asked."""
    os.kill(waiting.pid, signal.SIGUSR1)
    told = ""
    while "wait_for_the_gate" not in told or "wait_for_the_tide" not in told:
        line = waiting.stderr.readline()
        assert line, told
        told += line
    assert "task gatekeeper:" in told
    out, _ = waiting.communicate("go\n", timeout=10)
    assert out == "went on\n"
    assert waiting.returncode == 0
