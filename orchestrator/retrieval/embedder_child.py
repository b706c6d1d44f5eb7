"""
The embedder's process as its parent sees it: started, asked, and ended.

The wire is described in `embedder_process.py`. Nothing here loads torch.
"""

import asyncio
import json
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import psutil

from orchestrator.domain import Embeddings
from orchestrator.errors import EmbedderUnavailable
from orchestrator.telemetry.processor_time import process_cpu_s

_LENGTH = struct.Struct("<I")
_MAX_HEADER_BYTES = 64 * 1024
_LAST_WORDS_S = 1.0
_AT_WORK_CPU_S = 0.02
"""Processor time that shows a child at work; less is waking up and reading."""
_RUNNABLE = {psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP}
"""Of a process that computes, or would if it were let: waiting for a processor or a page."""
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class ChildLostError(Exception):
    """The child died, fell silent or broke the wire: it is of no more use."""


class EmbedderChild:
    """One running embedder process that has said what it is."""

    def __init__(
        self,
        transport: asyncio.SubprocessTransport,
        pipes: "_Pipes",
        hello: dict[str, Any],
        *,
        look_s: float,
    ) -> None:
        self._transport = transport
        self._pipes = pipes
        self._requests = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
        self._watch = _SilenceWatch(transport.get_pid(), look_s)
        self.dimension = int(hello["dimension"])
        self.max_tokens = int(hello["max_tokens"])
        self.dtype = str(hello["dtype"])

    @classmethod
    async def start(
        cls, command: Sequence[str], *, timeout_s: float, look_s: float
    ) -> "EmbedderChild":
        """
        A child that has loaded its model.

        Args:
            command: How to start it.
            timeout_s: Longest that loading the model may take, in seconds.
            look_s: Seconds between two looks at whether it works on a request.

        Raises:
            ChildLostError: If it ended, or did not get ready in time.
        """
        loop = asyncio.get_running_loop()
        try:
            transport, pipes = await loop.subprocess_exec(
                lambda: _Pipes(loop), *command, stderr=None, env=os.environ | _QUIET
            )
        except OSError as exc:
            raise ChildLostError(f"its process cannot be started ({exc.strerror})") from exc
        try:
            async with asyncio.timeout(timeout_s):
                hello, _ = await pipes.reply()
                return cls(transport, pipes, hello, look_s=look_s)
        except (TimeoutError, OSError, EOFError, ValueError, KeyError) as exc:
            verdict = await _obituary(transport, pipes, exc)
            await _kill(transport, pipes)
            raise ChildLostError(verdict) from exc
        except BaseException:
            await _kill(transport, pipes)
            raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._transport.get_pid()

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return not self._pipes.exited.is_set()

    @property
    def silent_s(self) -> float:
        """
        Seconds for which it has had a request and was not seen to compute; 0 without a request.

        Counted in looks of ours, not by the clock: when this process or the whole machine stands
        still, nobody has looked, and the child is not to blame.
        """
        return self._watch.silent_s

    async def embed(
        self, texts: Sequence[str], *, timeout_s: float, threads: int | None = None
    ) -> Embeddings:
        """
        (n, d) float32 unit rows.

        Args:
            texts: What to embed.
            timeout_s: Longest wait, in seconds.
            threads: How many the child may use for these; None is as many as it has.

        Raises:
            ChildLostError: If the child is of no more use.
            EmbedderUnavailable: If it lives and could not embed these texts.
        """
        try:
            with self._watch:
                async with asyncio.timeout(timeout_s):
                    return await self._exchange(texts, threads)
        except (TimeoutError, OSError, EOFError, ValueError, KeyError) as exc:
            verdict = await _obituary(self._transport, self._pipes, exc)
            raise ChildLostError(verdict) from exc

    async def _exchange(self, texts: Sequence[str], threads: int | None) -> Embeddings:
        request = {"texts": [_valid_unicode(text) for text in texts], "threads": threads}
        encoded = json.dumps(request, ensure_ascii=False).encode()
        self._requests.write(_LENGTH.pack(len(encoded)) + encoded)
        header, raw = await self._pipes.reply()
        if "error" in header:
            raise EmbedderUnavailable(
                f"The embedder could not embed {len(texts)} texts ({header['error']}). Try again."
            )
        rows, dimension = int(header["rows"]), int(header["dimension"])
        if (rows, dimension) != (len(texts), self.dimension):
            raise ValueError(f"{rows} rows of {dimension} numbers came for {len(texts)} texts")
        vectors: Embeddings = np.frombuffer(raw, dtype="<f4").reshape(rows, dimension)
        return vectors

    async def stop(self) -> None:
        """End the process and wait until it is gone."""
        await _kill(self._transport, self._pipes)


class _SilenceWatch:
    """
    Looks now and then, while a child has a request, at whether it computes.

    A child that wants to and is not let has too little of the processor; that is no silence.

    Args:
        pid: Of the child.
        look_s: Seconds between two looks.
    """

    def __init__(self, pid: int, look_s: float) -> None:
        self._pid = pid
        self._look_s = look_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._used_s = 0.0
        self._silent_looks = 0

    @property
    def silent_s(self) -> float:
        return self._silent_looks * self._look_s

    def __enter__(self) -> None:
        with suppress(OSError):
            self._used_s = process_cpu_s(self._pid)
        self._timer = self._loop.call_later(self._look_s, self._look)

    def __exit__(self, *exc: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._silent_looks = 0

    def _look(self) -> None:
        try:
            used_s = process_cpu_s(self._pid)
            computes = (
                used_s - self._used_s > _AT_WORK_CPU_S
                or psutil.Process(self._pid).status() in _RUNNABLE
            )
        except (OSError, psutil.Error):
            # Nobody knows; a child that is gone is noticed by its pipe.
            used_s, computes = self._used_s, True
        if computes:
            self._used_s, self._silent_looks = used_s, 0
        else:
            self._silent_looks += 1
        self._timer = self._loop.call_later(self._look_s, self._look)


class _Pipes(asyncio.SubprocessProtocol):
    """
    What the child says, a reply at a time, in one wake-up each: this is on every question's way.

    Attributes:
        exited: Set once the process has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._held = bytearray()
        self._header: dict[str, Any] | None = None
        self._body_bytes = 0
        self._waiter: asyncio.Future[tuple[dict[str, Any], bytes]] | None = None
        self._broken: Exception | None = None
        self.exited = asyncio.Event()

    async def reply(self) -> tuple[dict[str, Any], bytes]:
        """
        The next header and what belongs to it.

        Raises:
            EOFError: If the child has closed its end.
            ValueError: If what comes is no reply.
        """
        self._waiter = self._loop.create_future()
        self._give()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - asyncio's shape
        """More has come from the child."""
        self._held += data
        self._give()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """The child has closed a pipe."""
        self._broken = exc or EOFError()
        if fd == 1:
            self._give()

    def process_exited(self) -> None:
        """The process has ended."""
        self.exited.set()

    def _give(self) -> None:
        """Hand over a whole reply if there is one and somebody waits for it."""
        if self._waiter is None or self._waiter.done():
            return
        try:
            reply = self._reply()
        except (ValueError, KeyError, TypeError) as exc:
            self._waiter.set_exception(ValueError(str(exc)))
            return
        if reply is not None:
            self._waiter.set_result(reply)
        elif self._broken is not None:
            self._waiter.set_exception(self._broken)

    def _reply(self) -> tuple[dict[str, Any], bytes] | None:
        if self._header is None and not self._read_header():
            return None
        if self._header is None or len(self._held) < self._body_bytes:
            return None
        header, body = self._header, bytes(self._held[: self._body_bytes])
        del self._held[: self._body_bytes]
        self._header = None
        return header, body

    def _read_header(self) -> bool:
        if len(self._held) < _LENGTH.size:
            return False
        (length,) = _LENGTH.unpack_from(self._held)
        end = _LENGTH.size + length
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        if len(self._held) < end:
            return False
        header = json.loads(self._held[_LENGTH.size : end].decode())
        if not isinstance(header, dict):
            raise ValueError("a header is a JSON object")  # noqa: TRY004 - the wire is wrong, not our types
        del self._held[:end]
        self._header = header
        self._body_bytes = (
            int(header["rows"]) * int(header["dimension"]) * 4 if "rows" in header else 0
        )
        return True


def _valid_unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


async def _obituary(
    transport: asyncio.SubprocessTransport, pipes: _Pipes, cause: BaseException
) -> str:
    """What became of a child that is of no more use."""
    if isinstance(cause, TimeoutError):
        return "its process did not answer in time"
    if isinstance(cause, EOFError | OSError):
        # Its pipe closes a moment before its exit is known.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await pipes.exited.wait()
                return f"its process ended with code {transport.get_returncode()}"
    return f"its process broke off ({type(cause).__name__})"


async def _kill(transport: asyncio.SubprocessTransport, pipes: _Pipes) -> None:
    """End the process and take back its pipes; harmless if it is gone already."""
    if transport.get_returncode() is None:
        with suppress(ProcessLookupError):
            transport.kill()
    await pipes.exited.wait()
    transport.close()
