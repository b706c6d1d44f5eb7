"""
An HTTP/1.1 client that costs next to nothing, so that the generator is never what is measured.

Bytes go out as they were prepared; what comes back is kept as it is, and looked at once, at the end.
Only when a mark (a token) appears is noticed on the way. Connections are kept for
a few seconds and used again, as the official clients do.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

Ending = Literal["whole", "gave_up", "reset", "refused"]
"""A whole answer; the client hung up; the connection broke; none could be opened."""

HEAD_END = b"\r\n\r\n"
KEEP_S = 3.0
"""Idle connections older than this are not used again: servers close theirs after 5 s."""
MARK_OVERLAP_BYTES = 64
"""A mark that is cut by two reads is still found, if it is no longer than this."""


@dataclass(slots=True)
class Response:
    """
    What came of one request.

    Attributes:
        status: 0 if none came.
        headers: Names in lower case.
        body: Without the transfer coding.
        sent_s: When the request went out, on the monotonic clock.
        first_byte_s: Seconds from there to the first byte; None if none came.
        marks_s: Seconds from there to each appearance of the mark.
        took_s: Seconds from there to the end.
    """

    ending: Ending = "reset"
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    sent_s: float = 0.0
    first_byte_s: float | None = None
    marks_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    def begun_earlier(self, seconds: float) -> None:
        """Count the times from so much before the request went out: the person waited for that, too."""
        self.marks_s = [seconds + mark_s for mark_s in self.marks_s]


class ChunkedBody:
    """
    Takes `Transfer-Encoding: chunked` off, however the bytes are cut; trailers are not expected.

    Attributes:
        done: Whether the last byte of the last chunk's line was seen.
    """

    __slots__ = ("_buffer", "_last", "_left", "done")

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0
        self._last = False
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """
        The body's bytes in `data`.

        Raises:
            ValueError: If it is not chunked.
        """
        data = self._buffer + data if self._buffer else data
        at, parts = 0, []
        while at < len(data) and not self.done:
            if self._left == 0:
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                size = int(data[at:end].split(b";")[0], 16)
                at, self._last, self._left = end + 2, size == 0, size + 2
                continue
            take = min(self._left, len(data) - at)
            payload = min(max(self._left - 2, 0), take)  # two bytes of line end follow a chunk
            if payload:
                parts.append(data[at : at + payload])
            at += take
            self._left -= take
            self.done = self._last and self._left == 0
        self._buffer = data[at:]
        return b"".join(parts)


class Connection(asyncio.Protocol):
    """One connection, one exchange after the other."""

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Ending] | None = None
        self._response = Response()
        self._mark: re.Pattern[bytes] | None = None
        self._head = b""
        self._parts: list[bytes] = []
        self._chunked: ChunkedBody | None = None
        self._left: int | None = None

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return (
            self._transport is not None
            and not self._transport.is_closing()
            and time.monotonic() - self.idle_since_s < KEEP_S
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where to write."""
        self._transport = cast("asyncio.Transport", transport)

    async def exchange(
        self, request: bytes, *, mark: re.Pattern[bytes] | None, give_up_s: float
    ) -> Response:
        """
        Send the request, and wait for the end of its answer, whatever that is.

        Args:
            request: The whole of it, head and body.
            mark: Its appearances in the body are timed.
            give_up_s: Monotonic time at which the client hangs up.

        Raises:
            RuntimeError: If it is not connected.
        """
        if self._transport is None:
            raise RuntimeError("not connected yet")
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        self._mark, self._head, self._parts = mark, b"", []
        self._chunked, self._left = None, None
        self._response = response = Response(sent_s=time.monotonic())
        timer = loop.call_later(give_up_s - response.sent_s, self._give_up)
        self._transport.write(request)
        try:
            response.ending = await self._done
        except asyncio.CancelledError:
            self.close()  # the server must see us leave
            raise
        finally:
            timer.cancel()
        response.took_s = time.monotonic() - response.sent_s
        response.body = b"".join(self._parts)
        if response.ending != "whole" or response.headers.get("connection") == "close":
            self.close()
        self.idle_since_s = time.monotonic()
        return response

    def close(self) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        response = self._response
        if response.first_byte_s is None:
            response.first_byte_s = time.monotonic() - response.sent_s
        try:
            if not response.status:
                self._take_head(data)
            else:
                self._take_body(data)
        except ValueError:
            self._finish("reset")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange: that is the end of a body without a length, else a break."""
        ended = exc is None and self._response.status and not self._chunked and self._left is None
        self._finish("whole" if ended else "reset")

    def _give_up(self) -> None:
        self._finish("gave_up")
        self.close()

    def _finish(self, ending: Ending) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(ending)

    def _take_head(self, data: bytes) -> None:
        self._head += data
        end = self._head.find(HEAD_END)
        if end < 0:
            return
        lines = self._head[:end].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self._response.status = int(lines[0].split(" ", 2)[1])
        self._response.headers = headers
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunked = ChunkedBody()
        elif "content-length" in headers:
            self._left = int(headers["content-length"])
        rest = self._head[end + len(HEAD_END) :]
        if rest or self._left == 0:
            self._take_body(rest)

    def _take_body(self, data: bytes) -> None:
        part = self._chunked.feed(data) if self._chunked else data
        if self._mark is not None and part:
            self._look_for(self._mark, part)
        self._parts.append(part)
        if self._left is not None:
            self._left -= len(part)
        if self._left == 0 or (self._chunked and self._chunked.done):
            self._finish("whole")

    def _look_for(self, mark: re.Pattern[bytes], part: bytes) -> None:
        before = self._parts[-1][-MARK_OVERLAP_BYTES:] if self._parts else b""
        new = len(mark.findall(before + part)) - len(mark.findall(before))
        if new > 0:
            now_s = time.monotonic() - self._response.sent_s
            self._response.marks_s += [now_s] * new


class Client:
    """
    Connections to one server.

    Args:
        host: Address.
        port: TCP port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[Connection] = []

    async def send(
        self, request: bytes, *, mark: re.Pattern[bytes] | None = None, give_up_s: float
    ) -> Response:
        """The answer to a request, or what came instead; never raises for what the server does."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.usable:
                connection.close()
                continue
            response = await connection.exchange(request, mark=mark, give_up_s=give_up_s)
            if response.ending != "reset" or response.first_byte_s is not None:
                return self._kept(connection, response)
            # The server closed it while it was idle: that is nobody's failure.
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(give_up_s - began_s):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, self._host, self._port)
        except TimeoutError:
            return Response("gave_up", sent_s=began_s, took_s=time.monotonic() - began_s)
        except OSError:
            return Response("refused", sent_s=began_s, took_s=time.monotonic() - began_s)
        response = await connection.exchange(request, mark=mark, give_up_s=give_up_s)
        # The person waited for the connection, too.
        connecting_s = response.sent_s - began_s
        response.sent_s, response.took_s = began_s, response.took_s + connecting_s
        response.begun_earlier(connecting_s)
        return self._kept(connection, response)

    def close(self) -> None:
        """Close what is idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _kept(self, connection: Connection, response: Response) -> Response:
        if connection.usable:
            self._idle.append(connection)
        return response


def post(path: str, body: bytes, *, host: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a POST of JSON."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + HEAD_END + body
