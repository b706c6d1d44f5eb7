"""The runner behind `make run`, with small real programs in the place of the two big ones."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0

# Answers as both programs do once they are ready; writes its pid and that of a child of its own.
SERVER = """
import http.server, json, os, signal, subprocess, sys
port, pid_file, *flags = sys.argv[1:]
if "stubborn" in flags:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pids = [os.getpid()]
if "parent" in flags:
    pids.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"ready": True, "state": "ready", "phase": "ready"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
with open(pid_file, "a") as file:
    file.write("".join(f"{pid}\\n" for pid in pids))
server.serve_forever()
"""

RUNNER = """
import os, sys
from pathlib import Path
from deploy.child_process import Program
from deploy.run_stack import Console, Stack, StopRequest
from deploy.stack_probe import HttpProbe
folder, control_port, port, *commands = sys.argv[1:]
names = ["model_server", "orchestrator"]
programs = [
    Program(name=name, command=tuple(command.split("|")), environment=os.environ,
            log=Path(folder) / f"{name}.log")
    for name, command in zip(names, commands)
]
stop = StopRequest()
stop.listen()
url = f"http://127.0.0.1:{port}"
probe = HttpProbe(
    orchestrator_url=url, control_url=f"http://127.0.0.1:{control_port}", engine_url="none"
)
sys.exit(Stack(programs=programs, probe=probe, greeting=[f"ready: {url}"], stop=stop,
               console=Console(), stop_grace_s=30).run())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RunningStack:
    """A runner in a process of its own, its console line by line, and the pids it led to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self.control_port = free_port(), free_port()
        self._process: subprocess.Popen | None = None
        self._lines: queue.Queue = queue.Queue()
        self.seen: list[str] = []
        (folder / "server.py").write_text(SERVER)
        (folder / "runner.py").write_text(RUNNER)

    def server(self, name: str, port: int, *flags: str) -> str:
        """The command of a fake program, in the runner's notation."""
        script, pids = self._folder / "server.py", self._folder / f"{name}.pids"
        return "|".join([sys.executable, str(script), str(port), str(pids), *flags])

    def start(self, *commands: str) -> None:
        script = str(self._folder / "runner.py")
        ports = [str(self.control_port), str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, script, str(self._folder), *ports, *commands],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def start_both(self, *flags: str) -> None:
        self.start(
            self.server("model_server", self.control_port, *flags),
            self.server("orchestrator", self.port, *flags),
        )

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line.rstrip())

    def wait_for_line(self, text: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no line with {text!r}; the console said {self.seen}")
            self.seen.append(line)
            if text in line:
                return line

    def pids(self, name: str) -> list[int]:
        return [int(pid) for pid in (self._folder / f"{name}.pids").read_text().split()]

    def all_pids(self) -> list[int]:
        return self.pids("model_server") + self.pids("orchestrator")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def exit_code(self) -> int:
        return self._process.wait(timeout=PATIENCE_S)

    def close(self) -> None:
        """Kills whatever a failed test left."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        for file in self._folder.glob("*.pids"):
            for pid in file.read_text().split():
                if running(int(pid)):
                    os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[RunningStack]:
    """A runner that a test starts, and that is gone afterwards."""
    running_stack = RunningStack(tmp_path)
    yield running_stack
    running_stack.close()


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_leaves_no_process(stack, number):
    """Ctrl-C, SIGTERM and SIGHUP end both programs and what they started, with exit code 0."""
    stack.start_both("parent")
    assert stack.wait_for_line("ready") == f"ready: http://127.0.0.1:{stack.port}"
    pids = stack.all_pids()
    assert len(pids) == 4
    assert all(running(pid) for pid in pids)
    stack.signal(number)
    assert stack.exit_code() == 0
    assert [pid for pid in pids if running(pid)] == []


def test_a_program_that_dies_is_started_again(stack):
    """A killed program is running again after a second, and the console says what happened."""
    stack.start_both()
    stack.wait_for_line("ready: ")
    (first,) = stack.pids("orchestrator")
    os.kill(first, signal.SIGKILL)
    line = stack.wait_for_line("restarting")
    assert line.startswith("orchestrator was killed by SIGKILL; restarting in 1 s (log: ")
    assert line.endswith("orchestrator.log)")
    stack.wait_for_line("ready again")
    assert len(stack.pids("orchestrator")) == 2
    assert len(stack.pids("model_server")) == 1


def test_what_a_dead_program_left_behind_is_ended(stack):
    """A program's own child does not outlive it into the next start."""
    stack.start_both("parent")
    stack.wait_for_line("ready: ")
    program, child = stack.pids("orchestrator")
    os.kill(program, signal.SIGKILL)
    stack.wait_for_line("restarting")
    wait_until_gone([child])


def test_a_second_request_stops_at_once(stack):
    """Programs that ignore SIGTERM are killed on the second Ctrl-C, long before their grace ends."""
    stack.start_both("stubborn", "parent")
    stack.wait_for_line("ready: ")
    pids = stack.all_pids()
    stack.signal(signal.SIGINT)
    stack.wait_for_line("stopping")
    assert running(stack.pids("orchestrator")[0])
    begun = time.monotonic()
    stack.signal(signal.SIGINT)
    assert stack.exit_code() == 0
    assert time.monotonic() - begun < 10
    assert [pid for pid in pids if running(pid)] == []


def test_programs_do_not_outlive_a_killed_runner(stack):
    """After kill -9 of the runner itself both programs are gone."""
    stack.start_both("stubborn")
    stack.wait_for_line("ready: ")
    pids = stack.all_pids()
    stack.signal(signal.SIGKILL)
    stack.exit_code()
    wait_until_gone(pids)


def test_a_wrong_setting_ends_the_first_start(stack, tmp_path):
    """A program that says its settings are hopeless is not retried: its reason, exit code 1."""
    broken = f"{sys.executable}|-c|import sys; print('the model does not fit'); sys.exit(6)"
    stack.start(broken, stack.server("orchestrator", stack.port))
    stack.wait_for_line("model_server cannot start: it ended with exit code 6")
    stack.wait_for_line("the model does not fit")
    assert stack.exit_code() == 1
    assert not (tmp_path / "orchestrator.pids").exists() or not running(
        stack.pids("orchestrator")[0]
    )


def test_a_port_in_use_is_named_before_anything_starts(tmp_path):
    """`make run` on a used port says which, who has it, and which variable to change."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "deploy.run_stack"],
            cwd=ROOT,
            env=os.environ | {"PORT": str(port), "DATA_DIR": str(tmp_path / "data")},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert result.returncode == 1
    assert f"port {port} is in use (by " in result.stderr
    assert f"pid {os.getpid()})" in result.stderr
    assert "make run PORT=" in result.stderr
    assert list((tmp_path / "data").iterdir()) == [tmp_path / "data" / "stack.lock"]
