"""What the engine says about itself over HTTP, and whether its port is free before it starts."""

import errno
import re
import socket
from types import TracebackType
from typing import Self

import httpx2

from model_server.errors import ConfigurationError, PortInUse
from model_server.hang_detector import Pulse

_TIMEOUT_S = 2.0
_OK, _NOT_FOUND = 200, 404


def _series(*names: str) -> re.Pattern[str]:
    """Lines of these series on a page of metrics; the group is the value."""
    return re.compile(rf"^(?:{'|'.join(names)})(?:\{{[^}}]*\}})? (\S+)", re.MULTILINE)


# vLLM's, then TGI's.
_STEPS = _series(
    "vllm:iteration_tokens_total_count",
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "tgi_batch_inference_count",
)
_REQUESTS = _series(
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "tgi_batch_current_size",
    "tgi_queue_size",
)
_FINISHED = _series("vllm:request_success_total", "tgi_request_success")
_KV_TOKENS = re.compile(
    r'^vllm:cache_config_info\{[^}]*\bkv_cache_size_tokens="(\d+)"', re.MULTILINE
)


class EngineProbe:
    """
    Asks one engine at one address; an async context manager.

    No answer within 2 s is an answer too: not ready, or not known.
    """

    def __init__(
        self, base_url: str, *, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        # trust_env=False: a proxy of the environment is not on the way to our own machine.
        self._client = httpx2.AsyncClient(
            base_url=base_url, timeout=_TIMEOUT_S, transport=transport, trust_env=False
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.__aexit__(kind, error, traceback)

    async def is_ready(self) -> bool:
        """Whether `/health` answers 200. An engine that hangs still does: this tells only starting from started."""
        return await self.is_well() is True

    async def is_well(self) -> bool | None:
        """Whether it calls itself well; None if it did not answer, which a busy one may not in time."""
        try:
            response = await self._client.get("/health")
        except httpx2.HTTPError:
            return None
        return response.status_code == _OK

    async def kv_cache_tokens(self) -> int | None:
        """Tokens that the KV cache holds, from `vllm:cache_config_info`; None if it does not say."""
        found = _KV_TOKENS.search(await self._metrics())
        return int(found.group(1)) if found else None

    async def pulse(self) -> Pulse | None:
        """What it has got done so far, and whether it has requests; None if it does not say."""
        page = await self._metrics()
        try:
            steps = [float(value) for value in _STEPS.findall(page)]
            requests = [float(value) for value in _REQUESTS.findall(page)]
            finished = [float(value) for value in _FINISHED.findall(page)]
        except ValueError:
            return None
        if not steps:
            return None
        return Pulse(
            sum(steps), busy=sum(requests) > 0, finished=sum(finished) if finished else None
        )

    async def _metrics(self) -> str:
        """The page of its metrics; empty if it gave none."""
        try:
            response = await self._client.get("/metrics")
        except httpx2.HTTPError:
            return ""
        return response.text if response.status_code == _OK else ""

    async def canary(self, model: str) -> bool:
        """
        Whether it makes one token; however long that takes.

        A refusal is no answer: a hung engine whose queue is full refuses, too. Plain completions
        need no chat template; an engine that has no such route is asked by chat.
        """
        question = {"model": model, "max_tokens": 1, "temperature": 0}
        chat = {**question, "messages": [{"role": "user", "content": "a"}]}
        try:
            response = await self._client.post(
                "/v1/completions", json={**question, "prompt": "a"}, timeout=None
            )
            if response.status_code == _NOT_FOUND:
                response = await self._client.post("/v1/chat/completions", json=chat, timeout=None)
        except httpx2.HTTPError:
            return False
        return response.status_code == _OK


def listen(host: str, port: int, *, variable: str) -> socket.socket:
    """
    A socket that listens on the address; closed by the caller.

    `variable` is the setting that would change the port, for the message.

    Raises:
        PortInUse: If another program has the port.
        ConfigurationError: If the address is not one of this machine, or the port is not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ConfigurationError(f"{host} is not an address to listen on: {exc}.") from exc
    try:
        # Connections of a former engine that are still winding down do not hold the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"Port {port} on {host} is in use by another program. Stop that one, or set "
                f"{variable} to a free port."
            ) from exc
        raise ConfigurationError(f"Cannot listen on {host}:{port}: {exc.strerror}.") from exc
    return listener


def require_free_port(host: str, port: int, *, variable: str) -> None:
    """
    Do nothing while the address is free to listen on.

    Raises:
        PortInUse: If another program has the port.
        ConfigurationError: If the address is not one of this machine, or the port is not allowed.
    """
    listen(host, port, variable=variable).close()
