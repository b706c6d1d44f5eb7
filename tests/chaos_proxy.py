"""
A proxy that breaks HTTP between two programs, so that neither has to be told to misbehave.

It listens on a loopback port of its own, in a thread. What it does to the connections is a `Faults`,
which can be changed while they are open. Bytes that it lets through are not changed.
"""

import asyncio
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")

_LINGER_ZERO = struct.pack("ii", 1, 0)
_LOOK_S = 0.01
_DRIPS_PER_S = 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_REQUEST = re.compile(rb"(GET|POST|DELETE) /")


@dataclass(frozen=True, slots=True)
class Faults:
    """
    What happens to requests, from the next byte on.

    Attributes:
        only: Beginning of the request lines that are meant, such as b"POST /v1/chat"; all by default.
        up_latency_s: Pause before what goes to the server.
        down_latency_s: Pause before what comes back.
        drip_bytes_per_s: How fast an answer comes back; 0 does not slow it.
        cut_after_bytes: Length at which an answer ends, as if it were whole.
        reset_after_bytes: Length at which the client gets a RST.
        silent: The request is read, and never answered.
        deaf: Nothing is read, from either side; the connections stay open.
        refuse: Nobody listens, and what is open is reset.
        garble_frame: Number of the frame that becomes nonsense, from 0.
        duplicate_frame: Number of the frame that comes twice, from 0.
    """

    only: bytes = b""
    up_latency_s: float = 0.0
    down_latency_s: float = 0.0
    drip_bytes_per_s: float = 0.0
    cut_after_bytes: int | None = None
    reset_after_bytes: int | None = None
    silent: bool = False
    deaf: bool = False
    refuse: bool = False
    garble_frame: int | None = None
    duplicate_frame: int | None = None


_NONE = Faults()


class _AnswerEnds(Exception):
    """The answer in hand goes no further."""


class _Connection:
    """One client, its server, and how far the answer to its last request got."""

    def __init__(
        self, proxy: "ChaosProxy", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._meant = False
        self._sent_bytes = 0
        self._frames = 0

    async def run(self, host: str, port: int) -> None:
        """Carry bytes both ways until either side ends."""
        try:
            server_reader, server_writer = await asyncio.open_connection(host, port)
        except OSError:
            self.reset()
            return
        ways = [
            asyncio.create_task(self._up(server_writer)),
            asyncio.create_task(self._down(server_reader)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server_writer.transport.abort()
            self._writer.close()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def reset(self) -> None:
        """End the client's connection with RST, if it has not ended."""
        if self._writer.transport.is_closing():
            return
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._writer.transport.abort()

    @property
    def _faults(self) -> Faults:
        return self._proxy.faults if self._meant else _NONE

    async def _up(self, server: asyncio.StreamWriter) -> None:
        while data := await self._reader.read(65536):
            if _REQUEST.match(data):
                self._meant = data.startswith(self._proxy.faults.only)
                self._sent_bytes = self._frames = 0
            await self._while_deaf()
            await asyncio.sleep(self._faults.up_latency_s)
            if not self._faults.silent:
                server.write(data)
                await server.drain()

    async def _down(self, server: asyncio.StreamReader) -> None:
        with suppress(_AnswerEnds):
            async for piece, is_frame in _pieces(server):
                await self._while_deaf()
                await asyncio.sleep(self._faults.down_latency_s)
                await self._send(self._mangled(piece) if is_frame else piece)
        # The server's end is no answer either: it hangs up on a connection where nothing arrives.
        while self._faults.silent or self._faults.deaf:
            await asyncio.sleep(_LOOK_S)

    async def _while_deaf(self) -> None:
        while self._faults.deaf:
            await asyncio.sleep(_LOOK_S)

    def _mangled(self, frame: bytes) -> bytes:
        """The frame as the faults have it; an HTTP chunk stays one."""
        number, self._frames = self._frames, self._frames + 1
        if number == self._faults.garble_frame:
            return frame.replace(b"{", b"~")
        return frame * 2 if number == self._faults.duplicate_frame else frame

    async def _send(self, data: bytes) -> None:
        while data:
            faults = self._faults
            part = data
            if faults.drip_bytes_per_s:
                part = data[: max(1, int(faults.drip_bytes_per_s / _DRIPS_PER_S))]
                await asyncio.sleep(len(part) / faults.drip_bytes_per_s)
            data = data[len(part) :]
            await self._write(part, faults)

    async def _write(self, data: bytes, faults: Faults) -> None:
        """Send what the faults let through; ends the connection where they say so."""
        ends = [n for n in (faults.cut_after_bytes, faults.reset_after_bytes) if n is not None]
        allowed = len(data) if not ends else max(0, min(ends) - self._sent_bytes)
        self._writer.write(data[:allowed])
        await self._writer.drain()
        self._sent_bytes += len(data)
        if allowed >= len(data):
            return
        if faults.reset_after_bytes == min(ends):
            # What was written must be read before the RST, which throws away the rest.
            await asyncio.sleep(_LOOK_S)
            self.reset()
        raise _AnswerEnds


async def _pieces(server: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bool]]:
    """An answer's head, its body by chunks, and whether a piece is a chunk with something in it."""
    try:
        while True:
            head = await server.readuntil(b"\r\n\r\n")
            yield head, False
            if length := _LENGTH.search(head):
                yield await server.readexactly(int(length[1])), False
                continue
            while _CHUNKED.search(head):
                size = await server.readline()
                yield size + await server.readexactly(int(size, 16) + 2), int(size, 16) > 0
                if not int(size, 16):
                    break
            else:
                yield await server.read(), False
    except asyncio.IncompleteReadError as exc:
        yield exc.partial, False


class ChaosProxy:
    """
    The proxy, its faults, and what it saw.

    Attributes:
        url: Where it listens; the same after it refused for a while.
        faults: What it does now; set by `play`.
        accepted: Connections so far.
    """

    def __init__(self, upstream_url: str) -> None:
        split = urlsplit(upstream_url)
        self._upstream = (str(split.hostname), int(split.port or 80))
        self._loop = asyncio.new_event_loop()
        self._listener: asyncio.Server | None = None
        self._port = 0
        self._connections: dict[asyncio.Task[Any], _Connection] = {}
        self.faults = _NONE
        self.accepted = 0
        self.url = ""

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def play(self, **faults: Any) -> None:
        """Do this to requests from now on; without arguments, nothing."""
        self.faults = Faults(**faults)
        self._call(self._refuse() if self.faults.refuse else self._listen())

    def start(self) -> None:
        """Listen, in a thread of its own."""
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._listen())

    def stop(self) -> None:
        """Close everything."""
        self._call(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._listener is not None:
            return
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        tasks = list(self._connections)
        for task, connection in list(self._connections.items()):
            connection.reset()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.accepted += 1
        self._connections[task] = connection = _Connection(self, reader, writer)
        try:
            # Its end is seen by the peers; what ended it is of no interest here.
            with suppress(OSError, asyncio.CancelledError):
                await connection.run(*self._upstream)
        finally:
            writer.close()
            del self._connections[task]


@contextmanager
def proxying(upstream_url: str) -> Iterator[ChaosProxy]:
    """A proxy before this server, until the block ends."""
    proxy = ChaosProxy(upstream_url)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
