"""
HTTP/1.1 to one engine: a request out, a head and a body back, connections kept for the next one.

A stream of tokens is thousands of small reads, and a general client takes some forty microseconds
for each (decision 0013). Here the socket's bytes go through llhttp (`httptools`, which uvicorn brings)
straight to whoever reads the body, without a task between.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import cast
from urllib.parse import urlsplit

import httptools

from orchestrator.generation.response_body import ResponseBody, WireError

MAX_HEAD_BYTES = 64 * 1024
"""Longest head of a response; an honest one has some hundred bytes."""


class Response:
    """
    A response whose head has come.

    Attributes:
        status: Its status.
        headers: By their names in lower case; the last of several of one name.
        body: What is still coming.
    """

    __slots__ = ("_connection", "_wire", "body", "headers", "status")

    def __init__(self, connection: "_Connection", wire: "EngineWire") -> None:
        self._connection = connection
        self._wire = wire
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self.body = connection.body

    def close(self, *, linger_s: float = 0.0) -> None:
        """
        Keep the connection if the response is whole, else end it: that aborts the request.

        Args:
            linger_s: How long a body may still take to end, in seconds; what comes is thrown away.
        """
        self.body.close()
        self._wire.release(self._connection, linger_s)


class EngineWire:
    """
    Connections to one engine.

    Args:
        base_url: `http` or `https`, host, port, and a path to put before every other.
        headers: Sent with every request.
        connect_s: Longest time to connect, in seconds.
        keepalive_s: How long an idle connection is kept, in seconds.
        socket_options: Set on each socket: (level, option, value).
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        base_url: str,
        headers: Mapping[str, str],
        connect_s: float,
        keepalive_s: float,
        socket_options: list[tuple[int, int, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{base_url!r} is no http or https URL")
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        netloc = parts.netloc.rpartition("@")[2]
        lines = [f"Host: {netloc}", *(f"{name}: {value}" for name, value in headers.items())]
        self._head = "\r\n".join(lines).encode("latin-1")
        self._connect_s = connect_s
        self._keepalive_s = keepalive_s
        self._socket_options = socket_options
        self._clock = clock
        self._idle: list[tuple[_Connection, float]] = []
        self._busy: set[_Connection] = set()
        self._ending: set[_Connection] = set()

    @property
    def open_connections(self) -> int:
        """Connections that are idle or in use."""
        open_ones = (*self._busy, *self._ending, *(c for c, _ in self._idle))
        return sum(not connection.lost for connection in open_ones)

    async def post(self, path: str, body: bytes, *, traceparent: str | None = None) -> Response:
        """
        The response to a JSON body, once its head has come; cancelling aborts the request.

        Args:
            path: Below the base URL.
            body: The JSON.
            traceparent: W3C's name of the trace that it is a part of, if there is one.

        Raises:
            WireError: If there is no connection, or it breaks before that.
        """
        connection = self._kept() or await self._connected()
        self._busy.add(connection)
        head = b"POST %s HTTP/1.1\r\n%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        try:
            target = f"{self._prefix}{path}".encode()
            fixed = self._head
            if traceparent is not None:
                fixed += b"\r\ntraceparent: " + traceparent.encode("latin-1")
            await connection.send(head % (target, fixed, len(body)) + body)
        except BaseException:
            self.release(connection)
            raise
        return Response(connection, self)

    def release(self, connection: "_Connection", linger_s: float = 0.0) -> None:
        """Keep it for the next request, or end it; a second time does nothing."""
        if connection not in self._busy:
            return
        self._busy.discard(connection)
        if linger_s and not connection.whole and not connection.lost:
            self._ending.add(connection)
            timer = asyncio.get_running_loop().call_later(linger_s, self._keep, connection)
            connection.on_end = partial(self._ended, connection, timer)
        else:
            self._keep(connection)

    def _ended(self, connection: "_Connection", timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self._keep(connection)

    def _keep(self, connection: "_Connection") -> None:
        """For the next request if it is good for one, else end it."""
        self._ending.discard(connection)
        connection.on_end = _nothing
        if not connection.reusable:
            connection.abort()
            return
        now_s = self._clock()
        # The oldest come first: what has grown too old is let go here, without a task for it.
        while self._idle and now_s - self._idle[0][1] >= self._keepalive_s:
            self._idle.pop(0)[0].abort()
        self._idle.append((connection, now_s))

    def close(self) -> None:
        """End every connection."""
        for connection in (*self._busy, *self._ending, *(c for c, _ in self._idle)):
            connection.abort()
        self._busy.clear()
        self._idle.clear()

    def _kept(self) -> "_Connection | None":
        """The connection that was used last, if it is still good; older ones are let go."""
        now_s = self._clock()
        while self._idle:
            connection, since_s = self._idle.pop()
            if not connection.lost and now_s - since_s < self._keepalive_s:
                return connection
            connection.abort()
        return None

    async def _connected(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                transport, connection = await loop.create_connection(
                    lambda: _Connection(loop), self._host, self._port, ssl=self._tls
                )
        except TimeoutError as exc:
            raise WireError(f"no connection within {self._connect_s:g} s") from exc
        except (OSError, ssl.CertificateError) as exc:
            raise WireError(f"no connection: {exc.strerror or type(exc).__name__}") from exc
        socket = transport.get_extra_info("socket")
        for option in self._socket_options:
            socket.setsockopt(*option)
        return connection


class _Connection(asyncio.Protocol):
    """
    One connection, and the response that is under way on it. llhttp calls the `on_` methods.

    Attributes:
        whole: Whether the response has come to its end.
        lost: Whether the connection is closed.
        on_end: Called when either of them becomes true; set by whoever waits for it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser | None = None
        self._head: asyncio.Future[None] | None = None
        self._head_bytes = 0
        self._framed = self._keep = False
        self.whole = self.lost = False
        self.on_end: Callable[[], None] = _nothing
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body: ResponseBody

    @property
    def reusable(self) -> bool:
        """Whether the response is whole and the engine keeps the connection open."""
        return self._keep and not self.lost

    @property
    def _in_head(self) -> bool:
        """Whether somebody waits for the head of a response."""
        return self._head is not None and not self._head.done()

    async def send(self, message: bytes) -> None:
        """
        Send a request, and return when the head of its response has come.

        Raises:
            WireError: If it does not come.
        """
        self._parser = httptools.HttpResponseParser(self)
        self._framed = self.whole = self._keep = False
        self.on_end = _nothing
        self._head_bytes = 0
        self.headers = {}
        self.body = ResponseBody(self._loop, self._transport)
        self._head = self._loop.create_future()
        self._transport.write(message)
        try:
            await self._head
        finally:
            self._head = None

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The event loop has connected it."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The event loop has closed it, or the engine has."""
        self.lost = True
        self.on_end()
        if self._parser is None or self.whole:
            return
        if not self._in_head and not self._framed and exc is None:
            self.body.end()  # a body without a length ends with its connection
            return
        self._fail(WireError(f"the connection broke ({type(exc).__name__ if exc else 'closed'})"))

    def data_received(self, data: bytes) -> None:
        """Bytes for the parser."""
        if self._parser is None or self.whole:
            self.abort()  # nobody asked
            return
        in_head = self._in_head
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, UnicodeDecodeError) as exc:
            self._fail(WireError(f"what came is no HTTP ({type(exc).__name__})"))
            self.abort()
            return
        if not in_head:
            return
        self._head_bytes += len(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(WireError(f"the response's head has more than {MAX_HEAD_BYTES} bytes"))
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of the head, or of what follows a body in pieces."""
        if self._in_head:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole; those of the 1xx kind only say that another one follows."""
        assert self._parser is not None  # noqa: S101 - it is the parser that calls
        if self.whole:  # a second response, which nobody asked for
            self._keep = False
            return
        self.status = self._parser.get_status_code()
        if self.status < HTTPStatus.OK:
            self.headers = {}
            return
        named = self.headers
        encoding = named.get("transfer-encoding", "").lower()
        self._framed = "content-length" in named or "chunked" in encoding
        if self._head is not None and self._in_head:
            self._head.set_result(None)

    def on_body(self, part: bytes) -> None:
        """Part of the body."""
        if not self.whole:
            self.body.feed(part)

    def on_message_complete(self) -> None:
        """The response is whole."""
        if self.status >= HTTPStatus.OK and not self.whole:
            assert self._parser is not None  # noqa: S101 - it is the parser that calls
            self.whole, self._keep = True, self._parser.should_keep_alive()
            self.body.end()
            self.on_end()

    def _fail(self, error: WireError) -> None:
        if self._head is not None and self._in_head:
            self._head.set_exception(error)
        self.body.end(error)


def _nothing() -> None:
    """Nobody waits for the end of the response."""
