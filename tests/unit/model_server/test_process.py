"""One engine process: its log, its exit code, and that nothing of it is ever left."""

import asyncio
import os
import signal
import sys
from contextlib import aclosing, asynccontextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest

from model_server.errors import EngineEnvironmentError
from model_server.process import EngineProcess

FAKE = Path(__file__).with_name("fake_engine.py")
SHARED = Path("/dev/shm")  # noqa: S108 - where Linux keeps shared memory
GUARD = Path(__file__).parents[3] / "model_server" / "engine_guard.py"


class Output:
    """Collects lines, and lets a test wait for a number of them."""

    def __init__(self):
        self.lines = []
        self._changed = asyncio.Event()

    def __call__(self, line):
        self.lines.append(line)
        self._changed.set()

    async def pids(self, count):
        """The processes that have said their ids, once there are `count`."""
        async with asyncio.timeout(10):
            while len(found := [x for x in self.lines if x.startswith("pid ")]) < count:
                self._changed.clear()
                await self._changed.wait()
        return [psutil.Process(int(line.split()[1])) for line in found]


@asynccontextmanager
async def engine(tmp_path, *command):
    """A started engine and its output; ended at the end whatever happened."""
    output = Output()
    process = await EngineProcess.launch(
        argv=command, environment=os.environ, log=tmp_path / "logs/engine.log", on_line=output
    )
    try:
        yield process, output
    finally:
        await process.terminate(within_s=2, drained=asyncio.Event())


def alive(processes):
    """Those that still run; a zombie that nobody reaped yet does not."""
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


async def gone(processes):
    """Return when none of them runs."""
    async with asyncio.timeout(10):
        while alive(processes):
            await asyncio.sleep(0.01)


async def test_output_goes_to_the_log_the_tail_and_the_listener(tmp_path):
    """Every line is kept, also those that progress bars end with a carriage return."""
    code = "import sys; sys.stdout.write('one\\ntwo 10%\\rtwo 90%\\nrest'); sys.stderr.write('!')"
    async with engine(tmp_path, sys.executable, "-c", code) as (process, output):
        assert await process.wait() == 0
    assert output.lines[:3] == ["one", "two 10%", "two 90%"]
    assert list(process.tail) == output.lines
    assert b"one\ntwo 10%\rtwo 90%\nrest" in (tmp_path / "logs/engine.log").read_bytes()


async def test_an_endless_line_takes_no_endless_memory(tmp_path):
    """A line without an end is cut; the log file has it all."""
    code = "print('x' * 1_000_000)"
    async with engine(tmp_path, sys.executable, "-c", code) as (process, output):
        assert await process.wait() == 0
    assert len(output.lines[-1]) < 100_000
    assert (tmp_path / "logs/engine.log").stat().st_size == 1_000_001


async def test_a_full_log_starts_anew_and_keeps_the_former(tmp_path):
    """The log never takes more than about 128 MiB: full, it becomes engine.log.1."""
    log = tmp_path / "logs/engine.log"
    log.parent.mkdir()
    with log.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    code = "import os, time; os.write(1, b'a\\n'); time.sleep(.3); os.write(1, b'b\\n')"
    async with engine(tmp_path, sys.executable, "-c", code) as (process, _):
        assert await process.wait() == 0
    assert log.read_bytes() == b"b\n"
    assert log.with_name("engine.log.1").stat().st_size == 64 * 1024 * 1024 + 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit(0)", 0),
        ("import sys; sys.exit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
async def test_the_exit_code_is_the_engines(tmp_path, code, expected):
    """The guard passes exit codes on, and signals as 128 + n."""
    async with engine(tmp_path, sys.executable, "-c", code) as (process, _):
        assert await process.wait() == expected


async def test_a_command_that_is_not_there_ends_with_127(tmp_path):
    """A missing interpreter is an exit with a line that names it."""
    async with engine(tmp_path, "/no/such/python") as (process, output):
        assert await process.wait() == 127
    assert output.lines == ["cannot run /no/such/python: No such file or directory"]


async def test_a_log_that_cannot_be_written_is_an_error(tmp_path):
    """A log folder that is a file is reported with the setting's name."""
    (tmp_path / "logs").write_text("")
    with pytest.raises(EngineEnvironmentError, match="MODEL_SERVER_LOG_DIR"):
        async with engine(tmp_path, sys.executable, "-c", ""):
            pass  # pragma: no cover


async def test_a_process_of_the_family_that_dies_is_named_at_once(tmp_path):
    """Child and grandchild each; what is not below the guard any more tells nothing twice."""
    async with engine(tmp_path, sys.executable, str(FAKE)) as (process, output):
        eldest, child, grandchild = await output.pids(3)
        descriptors = psutil.Process().num_fds()
        async with aclosing(process.deaths()) as deaths:
            for victim in (grandchild, child):
                name = victim.name()
                told = asyncio.create_task(anext(deaths))
                await asyncio.sleep(0.05)
                assert not told.done()
                victim.kill()
                assert await asyncio.wait_for(told, 1) == name
        assert psutil.Process().num_fds() == descriptors
        assert alive([eldest])


async def test_shared_memory_that_it_leaves_is_removed(tmp_path):
    """A segment of an engine that was killed is gone, one of somebody else's is not."""
    code = (
        "import os, signal\nfrom multiprocessing.shared_memory import SharedMemory\n"
        "made = SharedMemory(create=True, size=4096)\nprint('segment', made.name, flush=True)\n"
        "signal.pause()"
    )
    theirs = SharedMemory(create=True, size=4096)
    try:
        async with engine(tmp_path, sys.executable, "-c", code) as (process, output):
            async with asyncio.timeout(10):
                while not output.lines:
                    await asyncio.sleep(0.01)
            segment = SHARED / output.lines[0].split()[1]
            assert segment.exists()
            for member in process.members():
                if member.pid != process.pid:
                    member.suspend()  # nobody tidies up
            await process.terminate(within_s=2.2, drained=asyncio.Event())
        assert not segment.exists()
        assert (SHARED / theirs.name).exists()
    finally:
        theirs.close()
        theirs.unlink()


async def test_sigterm_ends_a_polite_engine_with_its_family(tmp_path):
    """The engine gets SIGTERM; what it leaves running is killed."""
    async with engine(tmp_path, sys.executable, str(FAKE)) as (process, output):
        family = await output.pids(3)
        assert await process.terminate(within_s=10, drained=asyncio.Event()) == 0
        assert await process.wait() == 143
    assert alive(family) == []


async def test_an_engine_that_ignores_sigterm_is_killed_with_its_grandchild(tmp_path):
    """When its time is up, everything is killed, whatever it ignores, within the time for stopping."""
    command = (sys.executable, str(FAKE), "--ignore-sigterm")
    async with engine(tmp_path, *command) as (process, output):
        family = await output.pids(3)
        assert len(process.members()) >= 4
        started = asyncio.get_running_loop().time()
        assert await process.terminate(within_s=2.5, drained=asyncio.Event()) == 0
        assert asyncio.get_running_loop().time() - started < 5
    assert alive(family) == []


async def test_a_drained_engine_is_not_waited_for(tmp_path):
    """Once the engine has no request left it is killed soon, though much time was given."""
    drained = asyncio.Event()
    drained.set()
    command = (sys.executable, str(FAKE), "--ignore-sigterm")
    async with engine(tmp_path, *command) as (process, output):
        family = await output.pids(3)
        async with asyncio.timeout(10):
            assert await process.terminate(within_s=60, drained=drained) == 0
    assert alive(family) == []


@pytest.mark.parametrize("code", [0, 5])
async def test_orphans_of_an_engine_that_exits_are_killed(tmp_path, code):
    """The engine's main process ends, its family does not: the guard kills it, then ends."""
    command = (sys.executable, str(FAKE), "--ignore-sigterm", "--exit", str(code))
    async with engine(tmp_path, *command) as (process, output):
        family = await output.pids(3)
        assert await process.wait() == code
        assert alive(family) == []


async def test_orphans_of_an_engine_killed_with_9_are_killed(tmp_path):
    """A kill -9 of the engine's main process leaves no grandchild behind."""
    async with engine(tmp_path, sys.executable, str(FAKE)) as (process, output):
        family = await output.pids(3)
        family[0].kill()
        assert await process.wait() == 137
        assert alive(family) == []


async def test_a_killed_guard_takes_the_engine_along_and_its_orphans_are_found(tmp_path):
    """Without the guard the kernel kills the engine, and terminate finds the rest by its session."""
    command = (sys.executable, str(FAKE), "--ignore-sigterm")
    async with engine(tmp_path, *command) as (process, output):
        family = await output.pids(3)
        os.kill(process.pid, signal.SIGKILL)
        await gone(family[:1])
        assert await process.terminate(within_s=3, drained=asyncio.Event()) == 0
    assert alive(family) == []


async def test_terminate_twice_is_harmless(tmp_path):
    """An engine that has ended whole can be ended again."""
    async with engine(tmp_path, sys.executable, "-c", "") as (process, _):
        await process.wait()
        assert await process.terminate(within_s=2, drained=asyncio.Event()) == 0


async def test_kill_9_of_the_supervisor_leaves_no_engine():
    """A supervisor that is killed takes guard, engine, child and grandchild with it."""
    read_end, write_end = os.pipe()
    code = (
        "import os, subprocess, sys\n"
        "lifeline, keep = os.pipe()\n"
        "subprocess.Popen([sys.executable, sys.argv[1], str(lifeline), sys.executable, sys.argv[2],"
        " '--ignore-sigterm'], pass_fds=[lifeline], start_new_session=True)\n"
        "os.close(lifeline)\n"
        "import time; time.sleep(60)\n"
    )
    supervisor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(GUARD), str(FAKE)), stdout=write_end
    )
    os.close(write_end)
    with os.fdopen(read_end) as lines:
        said = [await asyncio.to_thread(lines.readline) for _ in range(3)]
        family = [psutil.Process(int(line.split()[1])) for line in said]
        family += psutil.Process(supervisor.pid).children(recursive=True)
        assert len(alive(family)) >= 4
        supervisor.kill()
        await supervisor.wait()
        await gone(family)
        assert await asyncio.to_thread(lines.read) == ""


async def test_shared_memory_goes_with_a_killed_supervisor():
    """Nobody else is left who could know of it."""
    code = (
        "import signal\nfrom multiprocessing.shared_memory import SharedMemory\n"
        "made = SharedMemory(create=True, size=4096)\n"
        "print(made.name, flush=True)\n"
        "signal.pause()"
    )
    lifeline, keep = os.pipe()
    guard = await asyncio.create_subprocess_exec(
        *(sys.executable, str(GUARD), str(lifeline), sys.executable, "-c", code),
        pass_fds=[lifeline],
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    os.close(lifeline)
    segment = SHARED / (await guard.stdout.readline()).decode().strip()
    assert segment.is_file()
    for below in psutil.Process(guard.pid).children(recursive=True):
        below.suspend()  # nobody tidies up
    os.close(keep)  # as the kernel does for whoever is killed
    await asyncio.wait_for(guard.wait(), 10)
    assert not segment.exists()
