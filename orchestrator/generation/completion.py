"""A completion as the events of its stream tell it: text, how it ended, or how it failed."""

import json
from collections.abc import Iterable
from typing import Any, TypeAlias, cast

from orchestrator.domain import EngineChunk, FinishReason, Usage
from orchestrator.errors import EngineError, EngineProtocolError
from orchestrator.generation.engine_refusals import told_in_stream

_END = "[DONE]"
_UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)

_Step: TypeAlias = tuple[str, int, FinishReason | None, Usage | None]
"""Text, steps of the engine (0 or 1), finish_reason, usage."""


class Completion:
    """
    One completion, from events in their order.

    Attributes:
        tokens: Steps of the engine so far.
        ended: Whether nothing more is to come, for good or for bad.
        error: What went wrong; kept until everything before it was given.
    """

    __slots__ = ("_finished", "ended", "error", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.ended = False
        self.error: EngineError | None = None
        self._finished = False

    def take(self, events: Iterable[str]) -> EngineChunk:
        """What these events bring, joined; never raises, whatever they say."""
        texts: list[str] = []
        tokens = 0
        finish_reason: FinishReason | None = None
        usage: Usage | None = None
        for data in events:
            if data == _END:
                self._end(finish_reason)
                break
            try:
                text, steps, reason, counted = _step(data)
            except EngineError as exc:
                self._fail(exc)
                break
            texts.append(text)
            tokens += steps
            finish_reason = finish_reason or reason
            usage = counted or usage
        self.tokens += tokens
        self._finished = self._finished or finish_reason is not None
        return EngineChunk(_encodable("".join(texts)), tokens, finish_reason, usage)

    def cut(self) -> None:
        """Take note that the body ended."""
        self._fail(
            EngineProtocolError(
                "The engine's stream ended without [DONE]: the answer is incomplete."
            )
        )

    def _end(self, finish_reason: FinishReason | None) -> None:
        self.ended = True
        if not (self._finished or finish_reason):
            self._fail(EngineProtocolError("The engine said [DONE] without a finish_reason."))

    def _fail(self, error: EngineError) -> None:
        self.ended = True
        self.error = error


def _step(data: str) -> _Step:
    """
    One event.

    Raises:
        EngineError: If it is no chunk, an error told inside a 200, or an answer given up.
    """
    try:
        payload = json.loads(data)
        if error := payload.get("error"):
            raise told_in_stream(error)
        choices = payload["choices"]
        usage = _usage(payload.get("usage"))
        if not choices:
            return "", 0, None, usage
        choice = choices[0]
        delta = choice["delta"]
        text = delta.get("content")
        reason = choice.get("finish_reason")
        if reason is not None:
            reason = _finish_reason(reason)
        return text or "", _steps(delta, text), reason, usage
    except _UNREADABLE as exc:
        raise EngineProtocolError("The engine's stream is not the OpenAI wire.") from exc


def _steps(delta: dict[str, Any], text: Any) -> int:
    """
    1 if the delta is a step of the engine, 0 if it only opens or closes the answer.

    Raises:
        TypeError: If the content is no text.
    """
    if text:
        if isinstance(text, str):
            return 1
        raise TypeError("content is no text")
    # Half a character gives no text yet but has cost a step; a lone role has not. A thought, or a
    # call of a tool, is nothing to show, but the engine works.
    named = text is not None and "role" not in delta
    return int(named or any(value for key, value in delta.items() if key != "role"))


def _usage(usage: Any) -> Usage | None:
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"])) if usage else None


def _finish_reason(reason: Any) -> FinishReason:
    if reason == "stop_sequence":  # TGI's word for a stop string
        return "stop"
    if reason not in {"stop", "length"}:
        raise EngineProtocolError(f"The engine gave the answer up (finish_reason {reason!r}).")
    return cast("FinishReason", reason)


def _encodable(text: str) -> str:
    """The text without half characters (JSON can spell them), which nobody could send on."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
