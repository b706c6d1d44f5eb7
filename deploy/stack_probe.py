"""How far the stack is, asked over HTTP: is the engine ready, does the orchestrator answer."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import httpx2

ASK_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """What the stack is doing, in a few words, and whether it serves."""

    ready: bool
    phase: str


class StackProbe(Protocol):
    """Something that can say how far the stack is, within a second or two."""

    def look(self) -> Look:
        """The state of the stack now."""


class HttpProbe:
    """
    Asks model_server for the engine's state, and the orchestrator whether it is ready.

    Args:
        control_url: Of model_server; None if the engine is not ours.
        engine_url: For people to read.
    """

    def __init__(self, *, orchestrator_url: str, control_url: str | None, engine_url: str) -> None:
        self._orchestrator_url = orchestrator_url
        self._control_url = control_url
        self._engine_url = engine_url
        # All of it is on this machine: a proxy from the environment would only be in the way.
        self._client = httpx2.Client(timeout=ASK_TIMEOUT_S, trust_env=False)

    def close(self) -> None:
        """Close every connection."""
        self._client.close()

    def look(self) -> Look:
        """The first thing that is not ready, or that all is."""
        if self._control_url is not None:
            engine = self._engine_look(self._control_url)
            if not engine.ready:
                return engine
        try:
            answer = self._client.get(f"{self._orchestrator_url}/readyz")
        except httpx2.HTTPError:
            return Look(ready=False, phase="orchestrator: starting")
        if answer.status_code == HTTPStatus.OK:
            return Look(ready=True, phase="ready")
        if self._control_url is None:
            return Look(ready=False, phase=f"waiting for the engine at {self._engine_url}")
        return Look(ready=False, phase="orchestrator: loading the embedder and the indexes")

    def _engine_look(self, control_url: str) -> Look:
        """By the one page that needs no key; an engine that sleeps is ready, since a question wakes it."""
        try:
            found: dict[str, Any] = self._client.get(f"{control_url}/readyz").json()
        except (httpx2.HTTPError, ValueError):
            return Look(ready=False, phase="model_server: starting")
        phase = found.get("phase") or found.get("state") or "starting"
        return Look(ready=found.get("ready") is True, phase=f"engine: {phase}")
