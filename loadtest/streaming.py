"""
An answer while it comes: when its first token was there, how regular the rest was, whether it was whole.

Pure: pieces of bytes and a clock in. It reads both wires, ours and OpenAI's.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Ending = Literal["done", "error", "cut"]
"""`cut`: the bytes ended without saying that the answer has."""


@dataclass(slots=True)
class Stream:
    """
    What was seen of one answer.

    Attributes:
        first_token_s: From `began_s` to its first token; None if none came.
        gaps_s: Times between two pieces of text.
        ending: How it ended.
        payload: Of its last event: the whole answer or the error, on our own wire.
    """

    first_token_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    ending: Ending = "cut"
    payload: Mapping[str, Any] = field(default_factory=dict)


def read_stream(
    pieces: Iterable[bytes], *, began_s: float, clock: Callable[[], float] = time.monotonic
) -> Stream:
    """
    Everything that a stream of server-sent events says, until it ends.

    Args:
        pieces: Of the body, as they come.
        began_s: When the request was sent, by the same clock.
        clock: In seconds.
    """
    seen = Stream()
    last_s: float | None = None
    left = b""
    for piece in pieces:
        now_s = clock()
        *frames, left = (left + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for frame in frames:
            kind, payload = _understood(frame)
            if kind == "token":
                if last_s is None:
                    seen.first_token_s = now_s - began_s
                else:
                    seen.gaps_s.append(now_s - last_s)
                last_s = now_s
            elif kind in {"done", "error"}:
                seen.ending = "done" if kind == "done" else "error"
                seen.payload = payload
                return seen
    return seen


def _understood(frame: bytes) -> tuple[str, Mapping[str, Any]]:
    """The kind of a frame (`token`, `done`, `error`, or something else), and its payload."""
    name, data = "", b""
    for line in frame.split(b"\n"):
        if line.startswith(b"event:"):
            name = line[6:].strip().decode(errors="replace")
        elif line.startswith(b"data:"):
            data += line[5:].strip()
    if data == b"[DONE]":
        return "done", {}
    payload = _json(data)
    if not name and "error" in payload:
        return "error", payload
    if not name and _content(payload):
        return "token", payload
    return name, payload


def _content(payload: Mapping[str, Any]) -> str:
    """The text of one of OpenAI's chunks."""
    choices = payload.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


def _json(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
