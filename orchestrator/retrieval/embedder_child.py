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
from typing import Any

import numpy as np
import psutil

from orchestrator.domain import Embeddings
from orchestrator.errors import EmbedderUnavailable

_LENGTH = struct.Struct("<I")
_LAST_WORDS_S = 1.0
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

    def __init__(self, process: asyncio.subprocess.Process, hello: dict[str, Any]) -> None:
        self._process = process
        self.dimension = int(hello["dimension"])
        self.max_tokens = int(hello["max_tokens"])
        self.dtype = str(hello["dtype"])

    @classmethod
    async def start(cls, command: Sequence[str], *, timeout_s: float) -> "EmbedderChild":
        """
        A child that has loaded its model.

        Raises:
            ChildLostError: If it ended, or did not get ready in time.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | _QUIET,
            )
        except OSError as exc:
            raise ChildLostError(f"its process cannot be started ({exc.strerror})") from exc
        try:
            async with asyncio.timeout(timeout_s):
                return cls(process, await _header(_reader(process)))
        except (TimeoutError, OSError, EOFError, ValueError, KeyError) as exc:
            verdict = await _obituary(process, exc)
            await _kill(process)
            raise ChildLostError(verdict) from exc
        except BaseException:
            await _kill(process)
            raise

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    def used_cpu_s(self) -> float:
        """Processor time that it has used so far, in seconds; 0 once it is gone."""
        try:
            used = psutil.Process(self._process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(used.user + used.system)

    async def embed(self, texts: Sequence[str], *, timeout_s: float) -> Embeddings:
        """
        (n, d) float32 unit rows.

        Raises:
            ChildLostError: If the child is of no more use.
            EmbedderUnavailable: If it lives and could not embed these texts.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(texts)
        except (TimeoutError, OSError, EOFError, ValueError, KeyError) as exc:
            raise ChildLostError(await _obituary(self._process, exc)) from exc

    async def _exchange(self, texts: Sequence[str]) -> Embeddings:
        body = json.dumps({"texts": [_valid_unicode(text) for text in texts]}, ensure_ascii=False)
        encoded = body.encode()
        writer = self._process.stdin
        assert writer is not None  # noqa: S101 - opened with a pipe above
        writer.write(_LENGTH.pack(len(encoded)) + encoded)
        await writer.drain()
        reader = _reader(self._process)
        reply = await _header(reader)
        if "error" in reply:
            raise EmbedderUnavailable(
                f"The embedder could not embed {len(texts)} texts ({reply['error']}). Try again."
            )
        rows, dimension = int(reply["rows"]), int(reply["dimension"])
        if (rows, dimension) != (len(texts), self.dimension):
            raise ValueError(f"{rows} rows of {dimension} numbers came for {len(texts)} texts")
        raw = await reader.readexactly(rows * dimension * 4)
        vectors: Embeddings = np.frombuffer(raw, dtype="<f4").reshape(rows, dimension)
        return vectors

    async def stop(self) -> None:
        """End the process and wait until it is gone."""
        await _kill(self._process)


def _valid_unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _reader(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None  # noqa: S101 - opened with a pipe above
    return process.stdout


async def _header(reader: asyncio.StreamReader) -> dict[str, Any]:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    header = json.loads(await reader.readexactly(length))
    if not isinstance(header, dict):
        raise ValueError("a header is a JSON object")  # noqa: TRY004 - the wire is wrong, not our types
    return header


async def _obituary(process: asyncio.subprocess.Process, cause: BaseException) -> str:
    """What became of a child that is of no more use."""
    if isinstance(cause, TimeoutError):
        return "its process did not answer in time"
    if isinstance(cause, EOFError | OSError):
        # Its pipe closes a moment before its exit is known.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                return f"its process ended with code {await process.wait()}"
    return f"its process broke off ({type(cause).__name__})"


async def _kill(process: asyncio.subprocess.Process) -> None:
    """End the process and take back its pipes; harmless if it is gone already."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()
    # Reading to the end lets the loop close the pipe now and not when it is collected.
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WORDS_S):
            await _reader(process).read()
