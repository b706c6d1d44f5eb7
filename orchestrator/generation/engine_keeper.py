"""model_server, seen from here: what it says of the engine that it keeps, and how it is told to wake it."""

import json
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import httpx2

from orchestrator.errors import EngineUnavailable

TIMEOUT_S = 1.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLife:
    """
    An engine, as its keeper sees it.

    Attributes:
        asleep: Whether it was ended because nobody asked, or is on its way back from there.
        waking: Whether it is on its way.
        eta_s: Seconds until it would be ready if it were woken now, or until it is if it wakes;
            None if that is not known.
        pressure: Whether the memory that it runs in is getting short.
        model: The name that it serves its model by.
        unloads: How often it was put to sleep.
    """

    asleep: bool = False
    waking: bool = False
    eta_s: float | None = None
    pressure: bool = False
    model: str = ""
    unloads: int = 0

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """What `/state` says; what is missing there, an older keeper does not know."""
        waking = bool(state.get("waking"))
        start_s = state.get("start_s")
        starts = waking and state.get("state") == "starting"
        gone_s = float(state.get("since_s") or 0.0) if starts else 0.0
        return cls(
            waking=waking,
            asleep=waking or state.get("state") == "sleeping",
            eta_s=None if start_s is None else max(0.0, float(start_s) - gone_s),
            pressure=state.get("pressure", "none") != "none",
            model=str(state.get("model") or ""),
            unloads=int(state.get("unloads") or 0),
        )


def _reason(found: object) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""


class EngineKeeper:
    """
    A client of model_server's control API.

    Args:
        key: Sent as a bearer token, if model_server asks for one.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = base_url
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=False,
        )
        self._told = ""

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def state(self) -> dict[str, Any]:
        """
        Everything that it says of the engine.

        Raises:
            EngineUnavailable: If it does not answer, or with something else.
        """
        return await self._ask("GET", "/state")

    async def life(self) -> EngineLife | None:
        """The part of it that decides who may ask; None if it does not say."""
        try:
            return EngineLife.from_state(await self.state())
        except EngineUnavailable as exc:
            if exc.message != self._told:
                logger.warning("%s", exc.message)
                self._told = exc.message
            return None

    async def wake(self) -> None:
        """
        Have a sleeping engine started; does nothing to any other.

        Raises:
            EngineUnavailable: If the order did not arrive, or was refused.
        """
        await self._ask("POST", "/wake")

    async def _ask(self, method: str, path: str) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, json={} if method == "POST" else None)
            found = json.loads(response.text)
        except (httpx2.HTTPError, ValueError, RecursionError) as exc:
            raise EngineUnavailable(
                f"model_server at {self.base_url} does not answer ({type(exc).__name__})."
            ) from exc
        if response.status_code >= HTTPStatus.BAD_REQUEST or not isinstance(found, dict):
            raise EngineUnavailable(
                f"model_server at {self.base_url} refused {method} {path}: "
                f"{response.status_code} {_reason(found)}".rstrip()
            )
        self._told = ""
        return found
