"""
The bodies and frames of vLLM 0.32's OpenAI server, as bytes.

Frames are put together by hand: a JSON library would cost more than everything else that a chunk
takes. The texts that go in are `answers.PIECES`, which need no escapes.
"""

import json
from dataclasses import dataclass
from typing import Any

DONE = b"data: [DONE]\n\n"
GARBAGE = b'data: {"id": "chatcmpl-\n\n'
FINGERPRINT = "vllm-0.32.0-simulator"
BUSY = {
    "max_num_queued_reqs": (
        "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance."
    ),
    "max_num_queued_tokens": (
        "The engine has reached its prefill token backlog limit. "
        "Please try again later or on a different instance."
    ),
}
_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}


class Refused(Exception):
    """
    A request that is answered with an error, in vLLM's words unless `body` has others.

    Attributes:
        retry_after: The header's value; vLLM never sends one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        body: Any = None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, param=param) if body is None else body
        self.retry_after = retry_after


def error_body(status: int, message: str, *, param: str | None = None) -> dict[str, Any]:
    """The one shape of vLLM's errors."""
    kind = _TYPES.get(status, "Service Unavailable")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def data(payload: dict[str, Any]) -> bytes:
    """A frame with any payload."""
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class Usage:
    """How many tokens a request took; `cached_tokens` of its prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def as_json(self) -> dict[str, Any]:
        """As in the last chunk."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "created_cache_tokens": 0,
            },
        }


class Frames:
    """The frames of one streamed answer."""

    def __init__(self, *, request_id: str, model: str, created_s: int) -> None:
        self._meta = {
            "id": request_id,
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": model,
        }
        # Without its closing brace: choices follow.
        self._head = b"data: " + json.dumps(self._meta, separators=(",", ":")).encode()[:-1]

    def role(self) -> bytes:
        """The first chunk, which comes with the first token and has no text."""
        return self._head + (
            b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}\n\n'
        )

    def text(self, text: str) -> bytes:
        """A chunk with text."""
        return (
            b'%b,"choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
            % (
                self._head,
                text.encode(),
            )
        )

    def last(self, text: str, finish_reason: str | None) -> bytes:
        """The chunk with the last text and the reason."""
        choice = {
            "index": 0,
            "delta": {"content": text},
            "logprobs": None,
            "finish_reason": finish_reason,
            "stop_reason": None,
            "token_ids": None,
        }
        return data({**self._meta, "choices": [choice]})

    def usage(self, usage: Usage) -> bytes:
        """The chunk after the last one, if it was asked for."""
        tail = {"choices": [], "usage": usage.as_json(), "system_fingerprint": FINGERPRINT}
        return data({**self._meta, **tail})


def completion(
    *, request_id: str, model: str, created_s: int, text: str, finish_reason: str, usage: Usage
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason,
        "stop_reason": None,
    }
    return {
        "id": request_id,
        "object": "chat.completion",
        "created": created_s,
        "model": model,
        "choices": [choice],
        "system_fingerprint": FINGERPRINT,
        "usage": usage.as_json(),
    }
