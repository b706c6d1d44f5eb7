"""Run the application under uvicorn, end it in order, and show its configuration."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from orchestrator.access.key_file import KeyFile
from orchestrator.api.access import is_loopback
from orchestrator.api.draining import Draining
from orchestrator.app import EmbedderChangedError, create_app, prepare
from orchestrator.assembly import assemble
from orchestrator.errors import OrchestratorError, StoreUnavailable
from orchestrator.generation.tokenizer import TokenizerError
from orchestrator.settings import PREFIX, Settings, SettingsError, load_settings
from orchestrator.telemetry.logs import json_logging
from orchestrator.telemetry.stacks import told_on_signal

EXIT_OK, EXIT_CONFIGURATION = 0, 2
UNREAD_MS = 60_000

HURRY_S = 0.8
"""Longest that it takes to end after a second signal, in seconds."""

CLOSING_S = 20.0
"""Longest that everything may take to close once nobody is served any longer, in seconds."""

LEAVING_S = 1.0
"""Longest that threads are waited for when everything is closed: they ask a resolver or a disk."""

logger = logging.getLogger(__name__)


def run(*, insecure: bool = False) -> int:
    """
    Serve until SIGTERM or SIGINT; the exit code says how it went.

    0: asked to stop. 2: a setting, the port or the data folder cannot be used (one line says why).

    Args:
        insecure: Whether to listen without keys where others can reach it, whatever the settings say.
    """
    try:
        settings = load_settings()
        if insecure:
            settings = settings.model_copy(update={"insecure": True})
        _require_keys_where_others_are(settings)
        listener = _listen(settings)
    except (SettingsError, StoreUnavailable, OSError) as exc:
        return _complain(str(exc))
    with listener, json_logging(settings.log_level):
        try:
            parts = assemble(settings)
            prepare(parts)
        except (
            SettingsError,
            TokenizerError,
            EmbedderChangedError,
            OrchestratorError,
            OSError,
        ) as exc:
            return _complain(str(exc))
        server = _Server(
            draining=Draining(create_app(parts)),
            on_drain=parts.gate.drain,
            drain_timeout_s=settings.drain_timeout_s,
        )
        # uvicorn raises the signal that stopped it once more when it is done; being asked to
        # stop is no failure, so by then nobody may die of it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])
        return EXIT_OK if server.started else EXIT_CONFIGURATION


class _Server(uvicorn.Server):
    """
    uvicorn, with a shutdown that cuts nobody off without a word.

    The first signal closes the door and lets running answers finish; what is left at the timeout,
    or at a second signal, is told. If closing hangs even then, the process ends anyway: what was
    acknowledged is on disk, and the children die with their parent.

    Args:
        draining: The application.
        on_drain: Called at once when the first signal comes.
        drain_timeout_s: How long running answers may go on, in seconds.
    """

    def __init__(
        self, *, draining: Draining, on_drain: Callable[[], None], drain_timeout_s: float
    ) -> None:
        config = uvicorn.Config(
            draining,
            access_log=False,
            log_config=None,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=1,  # after our own wait, for what hangs in a socket
            timeout_keep_alive=65,
        )
        super().__init__(config)
        self._draining = draining
        self._on_drain = on_drain
        self._drain_timeout_s = drain_timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hurry = asyncio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes."""
        self._loop = asyncio.get_running_loop()
        with told_on_signal():
            await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Drain at the first signal, hurry at the second; in a signal handler, so no more here."""
        then = self._hurry.set if self.should_exit else self._begin
        if self.should_exit:
            self.force_exit = True
            _end_in(HURRY_S)
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(then)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for running answers, tell those that are left, then close everything."""
        self._begin()
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._drained()
        _end_in(CLOSING_S)
        if left := await self._draining.finish():
            logger.warning("%d requests were told to come back: the service stops", left)
        await super().shutdown(sockets)
        _end_in(LEAVING_S)

    def _begin(self) -> None:
        self._draining.begin()
        self._on_drain()

    async def _drained(self) -> None:
        """Return when no request is left, when time is up, or when a second signal has come."""
        waits = [
            asyncio.create_task(self._draining.emptied()),
            asyncio.create_task(self._hurry.wait()),
        ]
        await asyncio.wait(
            waits, timeout=self._drain_timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        for wait in waits:
            wait.cancel()


def _end_in(seconds: float) -> None:
    """End the process then, whatever still hangs; being asked to stop is no failure."""
    timer = threading.Timer(seconds, os._exit, args=(EXIT_OK,))
    timer.daemon = True
    timer.start()


def config_text() -> str:
    """Every setting, one a line: effective value, where it comes from, what it does."""
    try:
        settings = load_settings()
    except SettingsError as exc:
        return f"{exc}\n"
    lines = []
    for name, field in Settings.model_fields.items():
        origin = "set" if name in settings.model_fields_set else "default"
        value = getattr(settings, name)
        shown = "***" if name.endswith("_key") and value else value
        lines.append(f"{PREFIX}{name.upper()}={shown}  ({origin}) {field.description}")
    return "\n".join([*lines, ""])


def _require_keys_where_others_are(settings: Settings) -> None:
    """Nobody's documents are for everybody on the network, unless that was said."""
    host = settings.published_host or settings.host
    if settings.insecure or is_loopback(host) or KeyFile(settings.data_dir).all():
        return
    raise SettingsError(
        f"{host} can be reached from other machines, and there are no keys: "
        "anybody could read every document. Make one first (tidegate keys create <name> --data-dir "
        f"{settings.data_dir}), or say that this is meant: tidegate serve --insecure."
    )


def _listen(settings: Settings) -> socket.socket:
    """A bound socket; taken before anything is loaded, so that a used port is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Bytes that a client does not take for so long end its connection, also when we have let go.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as exc:
        listener.close()
        raise OSError(
            f"cannot listen on {settings.host}:{settings.port} ({exc.strerror}): "
            f"stop what uses it, or set {PREFIX}PORT"
        ) from exc
    return listener


def _complain(message: str) -> int:
    sys.stderr.write(f"tidegate: {message}\n")
    return EXIT_CONFIGURATION
