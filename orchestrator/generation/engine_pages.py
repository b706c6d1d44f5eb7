"""What an engine says of itself: its models and its metrics, a page now and then."""

import asyncio
import json
from http import HTTPStatus

import httpx2

from orchestrator.errors import EngineProtocolError, EngineTimeout, EngineUnavailable
from orchestrator.generation.engine_request import EngineModel
from orchestrator.generation.socket_options import watched

MAX_PAGE_BYTES = 4 * 1024 * 1024
"""Longest page; vLLM's /metrics has some hundred kilobytes."""
KEEPALIVE_S = 4.0
"""vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE); ours must go first."""


class EnginePages:
    """
    Reads an engine's pages.

    Args:
        base_url: Without /v1.
        name: What messages call the engine.
        timeout_s: Longest time that a page may take, in seconds.
        headers: Sent with every request.
    """

    def __init__(
        self, *, base_url: str, name: str, timeout_s: float, headers: dict[str, str]
    ) -> None:
        self._base_url = base_url
        self._name = name
        self._timeout_s = timeout_s
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers=headers,
            timeout=httpx2.Timeout(timeout_s),
            transport=httpx2.AsyncHTTPTransport(
                limits=httpx2.Limits(keepalive_expiry=KEEPALIVE_S),
                socket_options=watched(),
                trust_env=False,
            ),
            trust_env=False,  # an engine is a neighbour: a proxy from the environment is a mistake
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def models(self) -> list[EngineModel]:
        """
        What the engine serves.

        Raises:
            EngineError: If it does not answer as an OpenAI-compatible engine.
        """
        try:
            payload = json.loads(await self._get("/v1/models"))
            return [EngineModel(m["id"], m.get("max_model_len")) for m in payload["data"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise EngineProtocolError(
                f"The {self._name}'s /v1/models is not the OpenAI shape."
            ) from exc

    async def metrics_text(self) -> str:
        """
        What the engine measures of itself, in Prometheus' text format.

        Raises:
            EngineError: If it does not answer in time, or with more than 4 MiB.
        """
        return (await self._get("/metrics")).decode("utf-8", "replace")

    async def _get(self, path: str) -> bytes:
        """
        A page of the engine's.

        Raises:
            EngineError: If it does not come within the connect timer, or is longer than allowed.
        """
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream("GET", path) as response,
            ):
                body = await _head(response, MAX_PAGE_BYTES)
        except TimeoutError as exc:
            raise EngineTimeout(
                f"The {self._name} sent no answer to {path} within {self._timeout_s:g} s. "
                "If it stays, look at the engine's state in /status."
            ) from exc
        except httpx2.HTTPError as exc:
            raise EngineUnavailable(
                f"The {self._name} at {self._base_url} cannot be reached ({type(exc).__name__}). "
                "It may still be loading: see /status."
            ) from exc
        if response.status_code != HTTPStatus.OK:
            raise EngineUnavailable(
                f"The {self._name} at {self._base_url} answered {response.status_code} to {path}."
            )
        if len(body) > MAX_PAGE_BYTES:
            raise EngineProtocolError(
                f"The {self._name}'s {path} has more than {MAX_PAGE_BYTES} bytes."
            )
        return body


async def _head(response: httpx2.Response, max_bytes: int) -> bytes:
    """The first part of a body; a hostile one is not read to its end."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > max_bytes:
            break
    return bytes(body)
