"""
One engine process with everything below it: started, its log kept, and ended whole.

The engine runs below `engine_guard.py`, in a session of its own. The guard ends only when nothing
below it is left, and kills everything when the pipe to this process closes; see there.
"""

import asyncio
import codecs
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

import psutil

from model_server import engine_guard
from model_server.errors import EngineEnvironmentError

_GUARD = Path(__file__).with_name("engine_guard.py")
_KEPT_LINES = 200
_READ_BYTES = 64 * 1024
_MAX_LINE_CHARS = 8 * 1024
_MAX_LOG_BYTES = 64 * 1024 * 1024
_KILL_S = 2.0
"""Part of the time for stopping that is kept for killing what did not stop."""

_FLUSH_S = 0.5
"""What the last tokens get to reach their readers once the engine has no request left."""


class EngineProcess:
    """
    A running engine.

    Built by `launch`, given back by `terminate`.

    Attributes:
        pid: The guard's process id, which is the session's id as well.
        tail: The last 200 lines of the engine's log.
    """

    def __init__(self, *, process: asyncio.subprocess.Process, lifeline: int, log: Path) -> None:
        self._process = process
        self._lifeline: int | None = lifeline
        self._seen: set[psutil.Process] = set()
        self._segments: set[Path] = set()
        self._log = log
        self._pump: asyncio.Task[None] | None = None
        self.pid = process.pid
        self.tail: deque[str] = deque(maxlen=_KEPT_LINES)

    @classmethod
    async def launch(
        cls,
        *,
        argv: Iterable[str],
        environment: Mapping[str, str],
        log: Path,
        on_line: Callable[[str], None],
    ) -> Self:
        """
        Start `argv` in a session of its own; its output goes to the file `log` and to `on_line`.

        Raises:
            EngineEnvironmentError: If the log cannot be written, or no process can be started.
        """
        read_end, write_end = os.pipe()
        try:
            _prepare(log)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(_GUARD), str(read_end), *argv),
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(read_end,),
                start_new_session=True,
            )
        except OSError as exc:
            os.close(write_end)
            raise EngineEnvironmentError(
                f"The engine cannot be started: {exc}. Check MODEL_SERVER_LOG_DIR ({log.parent}) "
                "and the limits on processes."
            ) from exc
        finally:
            os.close(read_end)
        engine = cls(process=process, lifeline=write_end, log=log)
        engine._pump = asyncio.create_task(engine._tee(on_line))
        return engine

    async def wait(self) -> int:
        """The engine's exit code, once nothing of it is left; 128 + n where signal n ended it."""
        code = await self._process.wait()
        if self._pump is not None:
            with contextlib.suppress(TimeoutError):  # a stray holder of the pipe keeps it open
                await asyncio.wait_for(asyncio.shield(self._pump), _KILL_S)
        return code

    async def terminate(self, *, within_s: float, drained: asyncio.Event) -> int:
        """
        End the engine, politely first; how many processes are left, which should be 0.

        SIGTERM to the engine's main process, which stops its own children; SIGKILL to everything
        when the time is nearly up, or soon after `drained` is set: with no request left there is
        nothing to wait for, and vLLM's way down takes 10 s on a CPU, most of it waiting for its
        worker (0.32). Does nothing to an engine that has ended whole.
        """
        self._seen.update(self.members())
        await asyncio.to_thread(self._note_segments)
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        await self._ended_or_drained(drained, within_s=max(0.1, within_s - _KILL_S))
        self._seen.update(self.members())
        self._cut_lifeline()
        await self._ended(_KILL_S / 2)
        left = await self._kill_members(within_s=_KILL_S / 2)
        if not left:
            self._remove_segments()
        await self._close_log()
        return left

    async def deaths(self) -> AsyncGenerator[str, None]:
        """
        Names of the processes below the engine's main one, as they end; never ends by itself.

        Those that are there now; the main one's end is what `wait` tells. The kernel says so at once
        (pidfd); where it cannot, nothing is told.
        """
        await asyncio.to_thread(self._note_segments)  # who dies first takes its own list along
        loop = asyncio.get_running_loop()
        ended: asyncio.Queue[str] = asyncio.Queue()

        def gone(descriptor: int, name: str) -> None:
            loop.remove_reader(descriptor)
            ended.put_nowait(name)

        descriptors: list[int] = []
        try:
            for process in self._below_main():
                with contextlib.suppress(AttributeError, OSError, psutil.Error):
                    name = process.name()
                    descriptors.append(os.pidfd_open(process.pid))
                    loop.add_reader(descriptors[-1], gone, descriptors[-1], name)
            while True:
                yield await ended.get()
        finally:
            for descriptor in descriptors:
                loop.remove_reader(descriptor)
                os.close(descriptor)

    def _below_main(self) -> list[psutil.Process]:
        try:
            mains = psutil.Process(self.pid).children()
            return [below for main in mains for below in main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def members(self) -> set[psutil.Process]:
        """Everything that is alive of the engine: below the guard, in its session, or seen there."""
        found = {process for process in self._seen if _is_alive(process)}
        with contextlib.suppress(psutil.NoSuchProcess):
            guard = psutil.Process(self.pid)
            found.update([guard, *guard.children(recursive=True)])
        for pid in psutil.pids():
            # The session outlives a guard that was killed, and so finds what it left.
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.pid:
                    found.add(psutil.Process(pid))
        return {process for process in found if _is_alive(process)}

    def _note_segments(self) -> None:
        """
        Remember the shared memory that the engine made: whoever is killed cannot remove it.

        The guard removes it too, unless it is killed itself, or whoever was killed held it alone.
        Blocks, as `shared_memory` does.
        """
        self._segments |= engine_guard.shared_memory(process.pid for process in self.members())

    def _remove_segments(self) -> None:
        engine_guard.remove(self._segments)
        self._segments.clear()

    async def _ended_or_drained(self, drained: asyncio.Event, *, within_s: float) -> None:
        """Return when the guard has ended, the last answers are sent, or the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                ended = asyncio.create_task(self._process.wait())
                finished = asyncio.create_task(drained.wait())
                try:
                    await asyncio.wait({ended, finished}, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.wait({ended}, timeout=_FLUSH_S)
                finally:
                    ended.cancel()
                    finished.cancel()

    async def _ended(self, within_s: float) -> None:
        """Return when the guard has ended, or the time is up."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), within_s)

    async def _kill_members(self, *, within_s: float) -> int:
        """Kill what is left, guard or no guard; how many could not be killed."""
        give_up_at = time.monotonic() + within_s
        while members := self.members():
            for process in members:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if time.monotonic() >= give_up_at:
                return len(members)
            await asyncio.sleep(0.02)
        await self._ended(_KILL_S)
        return 0

    def _cut_lifeline(self) -> None:
        """Order the guard to kill everything."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    async def _close_log(self) -> None:
        if self._pump is not None:
            await asyncio.wait({self._pump}, timeout=_KILL_S)
            self._pump.cancel()
            await asyncio.wait({self._pump})

    async def _tee(self, on_line: Callable[[str], None]) -> None:
        """Copy the engine's output to its log file, and line by line to the tail and `on_line`."""
        if self._process.stdout is None:  # pragma: no cover - launch always asks for the pipe
            return
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        rest = ""
        with _LogFile(self._log) as file:
            while data := await self._process.stdout.read(_READ_BYTES):
                file.write(data)
                # Progress bars go back to the start of the line instead of starting a new one.
                text = rest + decoder.decode(data).replace("\r", "\n")
                *lines, rest = text.split("\n")
                rest = rest[-_MAX_LINE_CHARS:]
                self._hear(lines, on_line)
        self._hear([rest], on_line)

    def _hear(self, lines: Iterable[str], on_line: Callable[[str], None]) -> None:
        for line in lines:
            if line.strip():
                self.tail.append(line)
                on_line(line)


class _LogFile:
    """Appends to a file that starts anew when it is full; the former one is kept as `.1`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        """Append; a full disk loses lines instead of stopping the engine by filling its pipe."""
        with contextlib.suppress(OSError):
            self._file.write(data)
            if self._file.tell() > _MAX_LOG_BYTES:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                former, self._file = self._file, self._path.open("ab", buffering=0)
                former.close()


def _prepare(log: Path) -> None:
    """Have the log's folder, and fail now if the log cannot be written."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
