"""One answer while it grows: its text, its marks, its times."""

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.domain import (
    Answer,
    Degraded,
    EngineChunk,
    FinishReason,
    Passage,
    Timings,
    Usage,
)
from orchestrator.generation.citations import MarkFilter, missing_mark, number
from orchestrator.telemetry.tracing import NOTHING, Phase


@dataclass(slots=True)
class Stopwatch:
    """
    When each phase of one request ended, on the monotonic clock.

    Attributes:
        trace: Where the phases are told, too.
    """

    clock: Callable[[], float]
    trace: Phase = NOTHING
    started_s: float = 0.0
    queue_ms: float = 0.0
    retrieve_ms: float = 0.0
    first_token_ms: float = 0.0

    def __post_init__(self) -> None:
        self.started_s = self.clock()

    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return (self.clock() - self.started_s) * 1000

    def first_token(self) -> None:
        """The first token is there, unless it was before."""
        if not self.first_token_ms:
            self.first_token_ms = self.elapsed_ms()

    def timings(self) -> Timings:
        """The phases so far."""
        return Timings(self.queue_ms, self.retrieve_ms, self.first_token_ms, self.elapsed_ms())


@dataclass(slots=True)
class Draft:
    """The answer while it grows."""

    passages: tuple[Passage, ...]
    degraded: Degraded | None = None
    marks: MarkFilter = field(init=False)
    parts: list[str] = field(default_factory=list)
    usage: Usage = Usage()
    finish_reason: FinishReason = "stop"

    def __post_init__(self) -> None:
        self.marks = MarkFilter(len(self.passages))

    def add(self, chunk: EngineChunk) -> str:
        """What of the chunk can be shown now."""
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.usage = chunk.usage or self.usage
        shown = self.marks.feed(chunk.text)
        self.parts.append(shown)
        return shown

    def close(self) -> str:
        """What is still to be shown: text held back, and a mark if the answer has none."""
        rest = self.marks.flush()
        self.parts.append(rest)
        if not self.marks.cited:
            mark = missing_mark("".join(self.parts), self.passages)
            if mark:
                self.marks.cited.add(int(mark.strip(" []")))
                self.parts.append(mark)
                rest += mark
        return rest

    def answer(self, timings: Timings) -> Answer:
        """The whole answer, once closed."""
        return Answer(
            text="".join(self.parts).strip(),
            citations=number(self.passages, self.marks.cited),
            usage=self.usage,
            timings=timings,
            finish_reason=self.finish_reason,
            degraded=self.degraded,
        )
