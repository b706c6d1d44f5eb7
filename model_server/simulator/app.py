"""
The simulator's HTTP, as a plain ASGI application: a framework would cost more than the engine.

    GET  /v1/models, /health, /version, /metrics
    POST /v1/chat/completions, /tokenize
    GET, POST, DELETE /faults   what is in force; one more; none any more
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from model_server.simulator import wire
from model_server.simulator.answers import count_tokens, render
from model_server.simulator.chat import Chat, Exchange, Message, Receive, Send, Sleep
from model_server.simulator.engine import Engine
from model_server.simulator.faults import Fault, Faults

VERSION = "0.32.0+simulator"
TRANSPORT = "model_server.simulator.transport"
"""The scope's extension under which the server puts the connection, for faults that need it."""

_MAX_BODY_BYTES = 16 * 1024 * 1024
_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; version=1.0.0; charset=utf-8")
_VALUES = re.compile(r" [-+.\de]+$", re.MULTILINE)
_Handler = Callable[[Exchange], Awaitable[None]]


class App:
    """
    The ASGI application.

    Args:
        reset: Ends a connection, given as its transport, with RST.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        faults: Faults,
        reset: Callable[[Any], None] = lambda _: None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._engine = engine
        self._faults = faults
        self._reset = reset
        self._sleep = sleep
        self._chat = Chat(engine=engine, faults=faults, sleep=sleep)
        self._stale = ""
        self._routes: Mapping[tuple[str, str], _Handler] = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/chat/completions"): self._completions,
        }
        self._fault_routes: Mapping[str, _Handler] = {
            "GET": self._list_faults,
            "POST": self._add_fault,
            "DELETE": self._clear_faults,
        }

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        transport = (scope.get("extensions") or {}).get(TRANSPORT)
        exchange = Exchange(receive, send, reset=lambda: self._reset(transport))
        method, path = scope["method"], scope["path"]
        if path == "/faults":
            handler = self._fault_routes.get(method)
        elif self._faults.of_engine("startup"):
            await _reply(exchange, 503, b"")
            return
        else:
            handler = self._routes.get((method, path))
        if handler is None:
            await _json(exchange, 404, {"detail": "Not Found"})
            return
        try:
            await handler(exchange)
        except wire.Refused as refused:
            retry_after = refused.retry_after
            headers = [(b"retry-after", retry_after.encode())] if retry_after else []
            await _json(exchange, refused.status, refused.body, *headers)

    async def _models(self, exchange: Exchange) -> None:
        config = self._engine.config
        served = {
            "id": config.model,
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "root": config.model,
            "parent": None,
            "max_model_len": config.max_model_len,
        }
        await _json(exchange, 200, {"object": "list", "data": [served]})

    async def _health(self, exchange: Exchange) -> None:
        await _reply(exchange, 200, b"")

    async def _version(self, exchange: Exchange) -> None:
        await _json(exchange, 200, {"version": VERSION})

    async def _tokenize(self, exchange: Exchange) -> None:
        body = await _read_json(exchange)
        messages = body.get("messages")
        text = render(messages) if messages else str(body.get("prompt", "")).encode()
        count = count_tokens(text)
        answer = {
            "count": count,
            "max_model_len": self._engine.config.max_model_len,
            "tokens": [int.from_bytes(text[n * 4 : n * 4 + 4], "big") for n in range(count)],
            "token_strs": None,
        }
        await _json(exchange, 200, answer)

    async def _completions(self, exchange: Exchange) -> None:
        answer = await self._chat.answer(exchange, await _read_json(exchange))
        if answer is not None:
            await _json(exchange, 200, answer)

    async def _metrics(self, exchange: Exchange) -> None:
        fault = self._faults.of_engine("metrics")
        page = self.metrics_page()
        match fault.mode if fault else None:
            case "dead":
                exchange.reset()
                return
            case "stale":
                page = self._stale
            case "renamed":
                page = page.replace("vllm:", "vllm:former_")
            case "nan":
                page = _VALUES.sub(" NaN", page)
            case "slow":
                await self._sleep(fault.delay_s if fault else 0.0)
            case _:
                pass
        await _reply(exchange, 200, page.encode(), _TEXT)

    def metrics_page(self) -> str:
        """The Prometheus text of this moment."""
        config, cache = self._engine.config, self._engine.cache
        return self._engine.metrics.page(
            model=config.model,
            cache_config={
                "block_size": str(config.block_size),
                "enable_prefix_caching": "True",
                "gpu_memory_utilization": "0.92",
                "kv_cache_max_concurrency": str(config.kv_cache_tokens / config.max_model_len),
                "kv_cache_size_tokens": str(cache.num_blocks * config.block_size),
                "num_gpu_blocks": str(cache.num_blocks),
            },
        )

    async def _list_faults(self, exchange: Exchange) -> None:
        await _json(exchange, 200, {"faults": self._faults.as_json()})

    async def _add_fault(self, exchange: Exchange) -> None:
        try:
            fault = Fault.read(await _read_json(exchange))
        except ValueError as exc:
            raise wire.Refused(400, str(exc)) from exc
        self._stale = self.metrics_page()
        self._faults.add(fault)
        await self._list_faults(exchange)

    async def _clear_faults(self, exchange: Exchange) -> None:
        self._faults.clear()
        await self._list_faults(exchange)


async def _read_json(exchange: Exchange) -> dict[str, Any]:
    """
    The request's body.

    Raises:
        Refused: If it is no JSON object, or too long.
    """
    body = b""
    while True:
        message: Message = await exchange.receive()
        body += message.get("body", b"")
        if len(body) > _MAX_BODY_BYTES:
            raise wire.Refused(413, "The body is too long.")
        if not message.get("more_body"):
            break
    parsed: Any = None
    with suppress(ValueError):
        parsed = json.loads(body)
    if not isinstance(parsed, dict):
        raise wire.Refused(400, "The body is no JSON object.", param="body")
    return parsed


async def _json(
    exchange: Exchange, status: int, payload: Any, *headers: tuple[bytes, bytes]
) -> None:
    await _reply(exchange, status, json.dumps(payload).encode(), _JSON, *headers)


async def _reply(
    exchange: Exchange, status: int, body: bytes, *headers: tuple[bytes, bytes]
) -> None:
    length = (b"content-length", str(len(body)).encode())
    await exchange.send({
        "type": "http.response.start",
        "status": status,
        "headers": [length, *headers],
    })
    await exchange.end(body)
