"""What is asked of an engine, and how long it may take over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.domain import Message, Sampling


@dataclass(frozen=True, slots=True)
class EngineTimeouts:
    """
    The timers of one request, in seconds; the deadline is the fourth.

    Attributes:
        connect_s: To open a connection.
        first_token_s: From sending the request to the first event.
        stall_s: Between two events.
    """

    connect_s: float
    first_token_s: float
    stall_s: float

    def __post_init__(self) -> None:
        if min(self.connect_s, self.first_token_s, self.stall_s) <= 0:
            raise ValueError(f"timers must be positive: {self!r}")


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A model that the engine serves. `max_model_len` is None if it does not say."""

    id: str
    max_model_len: int | None


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """
    One completion to ask for.

    Attributes:
        max_tokens: Always sent: vLLM's default is the whole window.
        traceparent: W3C's name of the trace that it is a part of, if there is one.
    """

    model: str
    messages: Sequence[Message]
    max_tokens: int
    sampling: Sampling = Sampling()
    traceparent: str | None = None

    def body(self) -> dict[str, Any]:
        """The JSON that goes out."""
        chosen = {
            "top_p": self.sampling.top_p,
            "seed": self.sampling.seed,
            "stop": list(self.sampling.stop) or None,
        }
        return {
            "model": self.model,
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.sampling.temperature,
            **{name: value for name, value in chosen.items() if value is not None},
            "stream": True,
            "stream_options": {"include_usage": True},
        }
