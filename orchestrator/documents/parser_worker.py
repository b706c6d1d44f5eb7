"""Warm parser processes: leased to one reader at a time, killed and replaced when they misbehave."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.errors import (
    DamagedDocument,
    DocumentError,
    Internal,
    NotReady,
    OrchestratorError,
    ParserOutOfMemory,
    StoreUnavailable,
    leaves,
)

START_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 5.0
_PROJECT_ROOT = Path(__file__).resolve().parents[2]
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")


_BYTES_PER_CHAR = 6  # the longest way to write a character in JSON
_RAISED: list[type[OrchestratorError]] = [*leaves(DocumentError), StoreUnavailable]
_ERRORS = {error.code: error for error in _RAISED}


def max_reply_bytes(max_chars: int) -> int:
    """The longest line that a worker may send for so many characters of text, in bytes."""
    return max_chars * _BYTES_PER_CHAR + 64 * 1024


def stall_s(cpu_s: float) -> float:
    """Seconds of silence that even a starved worker does not need for so much CPU time."""
    return 3 * cpu_s + 10


def error_of(reply: dict[str, Any]) -> OrchestratorError:
    """The error that a worker told."""
    error = reply["error"]
    return _ERRORS.get(error["code"], DamagedDocument)(error["message"])


class LossCause(StrEnum):
    """Why a worker is gone."""

    CPU = "cpu"
    STALLED = "stalled"
    MEMORY = "memory"
    CRASHED = "crashed"


class WorkerLost(Exception):
    """The worker did not finish its request; it stops in `sandbox.py`."""

    def __init__(self, cause: LossCause) -> None:
        super().__init__(f"parser worker lost: {cause}")
        self.cause = cause


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPolicy:
    """
    How a worker is started, and when it has served long enough.

    Attributes:
        memory_bytes: Address space for reading, beyond what the idle program takes.
        niceness: Added to ours; 0 for work that somebody waits for.
        max_reply_bytes: Longest line that a worker may send.
        max_documents: Documents after which a worker is replaced.
        max_resident_bytes: Memory after which a worker is replaced.
        ocr: Whether it reads pictures, too.
    """

    memory_bytes: int
    niceness: int
    max_reply_bytes: int
    max_documents: int = 50
    max_resident_bytes: int = 256 * 1024 * 1024
    ocr: bool = False


class ParserWorker:
    """One parser process; `parser_process.py` describes its wire."""

    def __init__(self, *, process: asyncio.subprocess.Process, policy: WorkerPolicy) -> None:
        self._process = process
        self._policy = policy
        self._path = ""
        self._documents = 0
        self._resident_bytes = 0
        self._awaited = False

    @classmethod
    async def spawn(cls, policy: WorkerPolicy) -> "ParserWorker":
        """A new process, which may still be loading its libraries."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-B", "-P", "-m", "orchestrator.documents.parser_process"),
            *("--memory-bytes", str(policy.memory_bytes), "--niceness", str(policy.niceness)),
            *(["--ocr"] if policy.ocr else []),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=policy.max_reply_bytes,
            env=_environment(),
        )
        return cls(process=process, policy=policy)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def fit(self) -> bool:
        """Whether it lives and has not served long enough."""
        return (
            self._process.returncode is None
            and self._documents <= self._policy.max_documents
            and self._resident_bytes <= self._policy.max_resident_bytes
        )

    def send(self, request: dict[str, Any]) -> None:
        """Ask for something; the replies follow in order."""
        if request["path"] != self._path:
            self._path = request["path"]
            self._documents += 1
        assert self._process.stdin is not None  # noqa: S101 - spawned with a pipe
        self._process.stdin.write(json.dumps(request).encode() + b"\n")

    async def reply(self, *, within_s: float) -> dict[str, Any]:
        """
        The next reply.

        Raises:
            WorkerLost: If none comes in time, the process has died, or it is out of memory.
        """
        line = await self._line(within_s)
        if not line.endswith(b"\n"):
            raise WorkerLost(await self._cause_of_death())
        reply: dict[str, Any] = json.loads(line)
        if reply.get("error", {}).get("code") == ParserOutOfMemory.code:
            raise WorkerLost(LossCause.MEMORY)
        self._resident_bytes = reply.get("resident_bytes", self._resident_bytes)
        return reply

    def kill(self) -> None:
        """End the process now."""
        if self._process.returncode is None:
            self._process.kill()

    async def reaped(self) -> None:
        """Return when nothing of the killed process is left: no zombie, no pipe."""
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None and not self._awaited:
            await self._process.stdout.read()

    async def _line(self, within_s: float) -> bytes:
        assert self._process.stdout is not None  # noqa: S101 - spawned with a pipe
        self._awaited = True
        try:
            async with asyncio.timeout(within_s):
                return await self._process.stdout.readline()
        except TimeoutError as exc:
            raise WorkerLost(LossCause.STALLED) from exc
        except ValueError as exc:  # longer than max_reply_bytes
            raise WorkerLost(LossCause.CRASHED) from exc
        finally:
            self._awaited = False

    async def _cause_of_death(self) -> LossCause:
        try:
            async with asyncio.timeout(_EXIT_TIMEOUT_S):
                code = await self._process.wait()
        except TimeoutError:
            return LossCause.STALLED
        if code == -signal.SIGXCPU:
            return LossCause.CPU
        # SIGKILL that did not come from here comes from the kernel, which is out of memory.
        return LossCause.MEMORY if code == -signal.SIGKILL else LossCause.CRASHED


class WorkerPool:
    """
    A fixed number of workers, each leased to one reader at a time.

    Args:
        size: Workers.
        policy: How each is started and when it is replaced.
    """

    def __init__(self, *, size: int, policy: WorkerPolicy) -> None:
        self._size = size
        self._policy = policy
        # The last one back goes out first: it may still hold the reader's file open.
        self._idle: asyncio.LifoQueue[ParserWorker | None] = asyncio.LifoQueue()
        self._alive: set[ParserWorker] = set()
        self._reapers: set[asyncio.Task[None]] = set()
        self._closed = False
        for _ in range(size):
            self._idle.put_nowait(None)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that live now."""
        return sorted(worker.pid for worker in self._alive)

    async def start(self) -> None:
        """
        Start all workers and wait until they can read.

        Raises:
            Internal: If one does not start.
        """
        for worker in await asyncio.gather(*(self._spawn() for _ in range(self._size))):
            await self._idle.get()
            self._idle.put_nowait(worker)

    async def aclose(self) -> None:
        """Kill all workers; readers that still wait get NotReady."""
        self._closed = True
        for worker in list(self._alive):
            self._discard(worker)
        await asyncio.gather(*self._reapers)

    def dismiss_idle(self) -> None:
        """End the workers that nobody uses; the next lease starts one."""
        idle = [self._idle.get_nowait() for _ in range(self._idle.qsize())]
        for worker in idle:
            if worker is not None:
                self._discard(worker)
            self._idle.put_nowait(None)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[ParserWorker]:
        """
        A worker of one's own; it is killed if the block ends with an exception.

        Raises:
            NotReady: If the pool is closed.
            Internal: If a worker has to be replaced and the new one does not start.
        """
        worker = await self._idle.get()
        fate: ParserWorker | None = None
        try:
            if worker is None or not worker.fit:
                worker = await self._replace(worker)
            yield worker
            fate = worker
        finally:
            if fate is None and worker is not None:
                self._discard(worker)
            self._idle.put_nowait(fate)

    async def ask(
        self, request: dict[str, Any], *, within_s: float, on_loss: Callable[[LossCause], None]
    ) -> dict[str, Any]:
        """
        The one reply to a request that has one.

        Args:
            request: What is asked.
            within_s: Longest wait for the reply, in seconds.
            on_loss: Told why, if the worker is lost over it.

        Raises:
            OrchestratorError: What the worker tells instead.
            WorkerLost: If it tells nothing.
        """
        try:
            async with self.lease() as worker:
                worker.send(request)
                reply = await worker.reply(within_s=within_s)
                if "error" not in reply:
                    await worker.reply(within_s=within_s)  # that it is done
        except WorkerLost as exc:
            on_loss(exc.cause)
            raise
        if "error" in reply:
            raise error_of(reply)
        return reply

    async def _replace(self, worn: ParserWorker | None) -> ParserWorker:
        if worn is not None:
            self._discard(worn)
        return await self._spawn()

    def _check_open(self) -> None:
        if self._closed:
            raise NotReady("The server is shutting down. Try again when it is back.")

    async def _spawn(self) -> ParserWorker:
        self._check_open()
        worker = await ParserWorker.spawn(self._policy)
        self._alive.add(worker)
        try:
            await worker.reply(within_s=START_TIMEOUT_S)
        except WorkerLost as exc:
            self._discard(worker)
            raise Internal(
                f"The PDF reader's process does not start ({exc.cause}). "
                "The server's error output tells why."
            ) from exc
        except BaseException:
            self._discard(worker)
            raise
        return worker

    def _discard(self, worker: ParserWorker) -> None:
        if worker in self._alive:
            self._alive.remove(worker)
            worker.kill()
            reaper = asyncio.create_task(worker.reaped(), name=f"reap-parser-{worker.pid}")
            self._reapers.add(reaper)
            reaper.add_done_callback(self._reapers.discard)


def _environment() -> dict[str, str]:
    # No secret of ours is in the reach of a process that reads hostile files.
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(_PROJECT_ROOT), *([inherited] if inherited else [])]
    # One thread and one heap: the address space stays small and the same on every machine.
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
