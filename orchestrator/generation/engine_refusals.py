"""
What an engine means that says no: a status and a body, or an error told inside a 200, as our errors.

Being full is no fault: vLLM's own admission answers 503 with the phrase of that status as the
error's type, TGI answers 429, or tells of it inside a 200 once a stream was asked for. Everything else
that looks the same is an engine that is not there.
"""

import json
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from orchestrator.errors import (
    EngineError,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
)

MAX_ERROR_CHARS = 500
MAX_RETRY_AFTER_S = 60.0
"""Clients ignore a longer one, and so no engine may ask it of them through us."""

_FULL_TYPE = HTTPStatus.SERVICE_UNAVAILABLE.phrase
_FULL = re.compile(r"queue|busy|backlog|overload|capacity", re.IGNORECASE)
_TGI_FULL = "Model is overloaded"
"""
All that tells: TGI 3 gives every error of a stream the code 422, TGI 2 none.

Source:
    text-generation-inference, `router/src/infer/mod.rs`, `InferError`.
"""


def refusal(name: str, status: int, headers: Mapping[str, str], text: str) -> EngineError:
    """The error that an answer with another status than 200 is; `text` is its body's head."""
    error = _error_object(text)
    message = _message(error) or f"status {status}"
    told_s = retry_after_s(headers)
    if _is_full(status, error):
        return EngineOverloaded(
            f"The {name} refused: {message}. Try again later.", retry_after_s=told_s
        )
    if status in {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}:
        return EngineUnavailable(f"The {name} is not ready: {message}.", retry_after_s=told_s)
    if status == HTTPStatus.GATEWAY_TIMEOUT:
        return EngineTimeout(f"What stands before the {name} gave up waiting: {message}.")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return EngineProtocolError(f"The {name} failed: {message}.")
    return EngineRejected(f"The {name} rejected the request ({status}): {message}.")


def no_stream(name: str, content_type: str, text: str) -> EngineProtocolError:
    """The error that a 200 is which holds no stream, such as a proxy's page."""
    message = _message(_error_object(text))[: MAX_ERROR_CHARS // 4]
    return EngineProtocolError(
        f"The {name} answered 200 without a stream of events ({content_type or 'no type'}: "
        f"{message!r}). Is the address that of an OpenAI-compatible server?"
    )


def told_in_stream(error: Any) -> EngineError:
    """The error that stands in an event of a 200; vLLM's carries the status it came too late for."""
    message = _message(error)
    code = error.get("code") if isinstance(error, dict) else None
    if message == _TGI_FULL or (isinstance(code, int) and _is_full(code, error)):
        return EngineOverloaded(f"The engine refused: {message}. Try again later.")
    return EngineProtocolError(f"The engine failed mid-answer: {message}. Ask again in a moment.")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """
    The pause that the headers ask for, in seconds up to `MAX_RETRY_AFTER_S`; None if they do not.

    Understands `retry-after-ms`, and `Retry-After` as seconds or as a date; nonsense counts as none.
    """
    pause_s = _number(headers.get("retry-after-ms"), unit_s=0.001)
    if pause_s is None:
        pause_s = _number(headers.get("retry-after"))
    if pause_s is None:
        then_s = _date_s(headers.get("retry-after"))
        # The engine's own Date, where it gives one: its clock need not be ours.
        now_s = _date_s(headers.get("date")) or time.time()
        pause_s = None if then_s is None else then_s - now_s
    return None if pause_s is None else min(max(pause_s, 0.0), MAX_RETRY_AFTER_S)


def _is_full(status: int, error: Any) -> bool:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    if status != HTTPStatus.SERVICE_UNAVAILABLE:
        return False
    kind = error.get("type") if isinstance(error, dict) else None
    return kind == _FULL_TYPE or _FULL.search(_message(error)) is not None


def _error_object(text: str) -> Any:
    """What stands under `error`, or the text itself."""
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return text


def _message(error: Any) -> str:
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message).strip().rstrip(".")[:MAX_ERROR_CHARS]


def _number(header: str | None, *, unit_s: float = 1.0) -> float | None:
    try:
        number = float(header or "nan")
    except ValueError:
        return None
    return None if math.isnan(number) else number * unit_s


def _date_s(header: str | None) -> float | None:
    """Seconds since the epoch."""
    try:
        date = parsedate_to_datetime(header or "")
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (ValueError, OverflowError):
        return None
