"""
The systems that stand under the same load, and how each is asked and understood.

- `tidegate`: the orchestrator.
- `engine`: the engine itself with the same prompts, nothing between, nothing bounded.
- `semaphore`: the engine behind what most services have: a first-come semaphore, no deadline. Its
  waiting counts in the client's patience, as it would in a service's own process.
- `naive`: the service that people write first (`naive_service.py`), which has the model to itself.
- whatever else is named: a server with OpenAI's wire, asked as the engine is.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from loadtest.arrivals import Ask
from loadtest.client_rules import NO_STATUS
from loadtest.corpus import NONCE, Prompt
from loadtest.http_client import Response, post

SystemName: TypeAlias = str
SYSTEMS: tuple[SystemName, ...] = ("tidegate", "engine", "semaphore")
NAIVE: SystemName = "naive"

SEMAPHORE_PLACES = 64
TAIL_BYTES = 4096
"""Usage and finish reason of an engine's stream stand within its last bytes."""

_NEVER = re.compile(rb"(?!)")
_TOKEN_EVENT = re.compile(rb"event: token")
_CONTENT = re.compile(rb'"content":\s?"[^"]')
_FINISH = re.compile(rb'"finish_reason":\s?"(\w+)"')
_USAGE = re.compile(rb'"usage":\s?\{[^{}]*"prompt_tokens":\s?(\d+)[^{}]*\}?')
_COMPLETION = re.compile(rb'"completion_tokens":\s?(\d+)')
_SERVER_TOTAL = re.compile(r"\btotal;dur=([0-9.]+)")
_WHOLE_REASONS = {b"stop", b"length"}


@dataclass(frozen=True, slots=True)
class Reading:
    """
    What a response says.

    Attributes:
        code: "ok", or why not: the server's code, else a word for what came.
        status: For the client's decision to try again; NO_STATUS if there is none.
        whole: Whether it is an answer, complete.
        degraded: "L1", "L2" or "L3" if the server says that it is a lesser one.
        server_ms: What the server says that it took.
        retrieve_ms: What of it was retrieval.
    """

    code: str
    status: int
    whole: bool = False
    degraded: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    server_ms: float | None = None
    retrieve_ms: float = 0.0


class System(Protocol):
    """
    One way to get an answer.

    Attributes:
        mark: What the first token looks like in the body.
        places: How many requests may be with it at once; None is any number.
    """

    mark: re.Pattern[bytes]
    places: int | None

    def request(self, ask: Ask, *, retries: int, patience_s: float) -> bytes:
        """The bytes of one attempt."""
        ...

    def read(self, response: Response) -> Reading:
        """What came of it."""
        ...


class Tidegate:
    """
    The orchestrator's `/ask`.

    Args:
        bands: Whether it knows the field `priority`.
        keys: The key of each tenant; without keys it tells callers apart by their addresses.
    """

    mark = _TOKEN_EVENT
    places: int | None = None

    def __init__(
        self,
        *,
        host: str,
        pool: Sequence[Prompt],
        bands: bool,
        keys: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._host = host
        self._keys = keys
        self._pool = pool
        self._bands = bands

    def request(self, ask: Ask, *, retries: int, patience_s: float) -> bytes:
        """The bytes of one attempt."""
        prompt = self._pool[ask.prompt]
        body: dict[str, Any] = {
            "question": prompt.question,
            "top_k": prompt.top_k,
            "max_tokens": ask.max_tokens,
            "stream": ask.stream,
            "timeout_s": patience_s,
            "degrade": ask.degrade,
            "history": [{"role": role, "content": text} for role, text in prompt.history],
        }
        if self._bands:
            body["priority"] = ask.band
        headers = {
            "Authorization": f"Bearer {self._keys.get(ask.tenant, ask.tenant)}",
            "x-stainless-retry-count": str(retries),
        }
        text = json.dumps(body).replace(NONCE, ask.nonce)
        return post("/ask", text.encode(), host=self._host, headers=headers)

    def read(self, response: Response) -> Reading:
        """What came of it."""
        if broken := _broken(response):
            return broken
        timing = _SERVER_TOTAL.search(response.headers.get("server-timing", ""))
        server_ms = float(timing.group(1)) if timing else None
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            payload, failed = _last_event(response.body)
        else:
            payload, failed = _json(response.body), response.status != HTTPStatus.OK
        if failed:
            return _refusal(payload, response.status, server_ms)
        if "answer" not in payload:
            return Reading("incomplete", NO_STATUS, server_ms=server_ms)
        usage = payload.get("usage") or {}
        return Reading(
            code="ok",
            status=response.status,
            whole=True,
            degraded=(payload.get("degraded") or {}).get("level"),
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            completion_tokens=int(usage.get("completion_tokens", 0)),
            server_ms=server_ms,
            retrieve_ms=float((payload.get("timings_ms") or {}).get("retrieve", 0.0)),
        )


class Engine:
    """
    The engine's `/v1/chat/completions`, with the prompts that the orchestrator would send.

    Args:
        places: Requests that may be with it at once; None is any number.
    """

    mark = _CONTENT

    def __init__(
        self, *, host: str, pool: Sequence[Prompt], model: str, places: int | None = None
    ) -> None:
        self.places = places
        self._host = host
        # The messages are the bulk of the bytes and never change: they are written once.
        self._messages = [json.dumps(list(map(dict, prompt.messages))) for prompt in pool]
        self._model = model

    def request(self, ask: Ask, *, retries: int, patience_s: float) -> bytes:
        """The bytes of one attempt; an engine takes neither deadline nor number of the attempt."""
        del retries, patience_s
        rest = {
            "model": self._model,
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "stream": ask.stream,
        }
        if ask.stream:
            rest["stream_options"] = {"include_usage": True}
        messages = self._messages[ask.prompt].replace(NONCE, ask.nonce)
        text = f'{{"messages": {messages}, {json.dumps(rest)[1:]}'
        return post("/v1/chat/completions", text.encode(), host=self._host)

    def read(self, response: Response) -> Reading:
        """What came of it."""
        if broken := _broken(response):
            return broken
        if response.status != HTTPStatus.OK:
            return _refusal(_json(response.body), response.status, None)
        tail = response.body[-TAIL_BYTES:]
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        if streamed and b"data: [DONE]" not in tail:
            return Reading("incomplete", NO_STATUS)
        if b'data: {"error"' in tail:
            return Reading("error_event", HTTPStatus.INTERNAL_SERVER_ERROR)
        reasons = _FINISH.findall(tail)
        if not reasons or reasons[-1] not in _WHOLE_REASONS:
            return Reading("aborted", HTTPStatus.INTERNAL_SERVER_ERROR)
        usage = _USAGE.search(tail)
        completion = _COMPLETION.findall(tail)
        return Reading(
            code="ok",
            status=response.status,
            whole=True,
            prompt_tokens=int(usage.group(1)) if usage else 0,
            completion_tokens=int(completion[-1]) if completion else 0,
        )


class Naive:
    """
    The naive service's `/ask`: a question in, a whole answer out, and no word on what it took.

    Args:
        tokens: How many the model's tokenizer makes of a text.
    """

    mark = _NEVER
    places: int | None = None

    def __init__(self, *, host: str, pool: Sequence[Prompt], tokens: Callable[[str], int]) -> None:
        self._host = host
        self._pool = pool
        self._tokens = tokens

    def request(self, ask: Ask, *, retries: int, patience_s: float) -> bytes:
        """The bytes of one attempt; it takes neither deadline nor length nor earlier turns."""
        del retries, patience_s
        body = {"question": self._pool[ask.prompt].question}
        return post("/ask", json.dumps(body).encode(), host=self._host)

    def read(self, response: Response) -> Reading:
        """What came of it."""
        if broken := _broken(response):
            return broken
        payload = _json(response.body)
        if response.status != HTTPStatus.OK or "answer" not in payload:
            return _refusal(payload, response.status, None)
        tokens = self._tokens(str(payload["answer"]))
        return Reading("ok", response.status, whole=True, completion_tokens=tokens)


def _broken(response: Response) -> Reading | None:
    """What it means that no whole response came; None if one did."""
    return None if response.ending == "whole" else Reading(response.ending, NO_STATUS)


def _refusal(payload: Mapping[str, Any], status: int, server_ms: float | None) -> Reading:
    """An error in the body, or in an event after a 200: then its type stands for the status."""
    error = payload.get("error")
    error = error if isinstance(error, dict) else {}
    if status == HTTPStatus.OK:
        kinds = {"overloaded_error": HTTPStatus.TOO_MANY_REQUESTS, "overloaded": HTTPStatus(429)}
        status = kinds.get(str(error.get("type")), HTTPStatus.SERVICE_UNAVAILABLE)
    return Reading(
        str(error.get("code") or error.get("type") or status), status, server_ms=server_ms
    )


def _last_event(body: bytes) -> tuple[Mapping[str, Any], bool]:
    """The payload of the event that ends one of our streams, and whether it is an error."""
    for name, failed in ((b"done", False), (b"error", True)):
        mark = b"event: " + name + b"\ndata: "
        at = body.rfind(mark)
        if at >= 0:
            return _json(body[at + len(mark) :].split(b"\n", 1)[0]), failed
    return {}, False


def _json(text: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
