"""Run the application under uvicorn, and show its configuration."""

import signal
import socket
import sys

import uvicorn

from orchestrator.app import EmbedderChangedError, assemble, create_app, prepare
from orchestrator.errors import OrchestratorError
from orchestrator.generation.tokenizer import TokenizerError
from orchestrator.settings import PREFIX, Settings, SettingsError, load_settings
from orchestrator.telemetry.logs import json_logging

EXIT_OK, EXIT_CONFIGURATION = 0, 2


def run() -> int:
    """
    Serve until SIGTERM or SIGINT; the exit code says how it went.

    0: asked to stop. 2: a setting, the port or the data folder cannot be used (one line says why).
    """
    try:
        settings = load_settings()
        listener = _listen(settings)
    except (SettingsError, OSError) as exc:
        return _complain(str(exc))
    with listener, json_logging(settings.log_level):
        try:
            parts = assemble(settings)
            prepare(parts)
        except (TokenizerError, EmbedderChangedError, OrchestratorError, OSError) as exc:
            return _complain(str(exc))
        config = uvicorn.Config(
            create_app(parts),
            access_log=False,
            log_config=None,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=int(settings.drain_timeout_s),
            timeout_keep_alive=65,
        )
        server = uvicorn.Server(config)
        # uvicorn raises the signal that stopped it once more when it is done; being asked to
        # stop is no failure, so by then nobody may die of it.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])
        return EXIT_OK if server.started else EXIT_CONFIGURATION


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
        shown = "***" if name.endswith("api_key") and value else value
        lines.append(f"{PREFIX}{name.upper()}={shown}  ({origin}) {field.description}")
    return "\n".join([*lines, ""])


def _listen(settings: Settings) -> socket.socket:
    """A bound socket; taken before anything is loaded, so that a used port is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
