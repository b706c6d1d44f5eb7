"""
One question's way as a trace: which phases there were, and how long each took.

Nothing is kept unless `otlp.OtlpTracer` is put in the place of `Tracer`: then these calls become spans.
No text of a question, a document or an answer is ever part of one.
"""

from types import TracebackType
from typing import Self, TypeAlias

Attribute: TypeAlias = str | int | float | bool | list[str]


class Phase:
    """A part of the way, from when the block begins until it ends; this one keeps nothing."""

    traceparent: str | None = None
    """W3C's name of it, for whoever works on it elsewhere; None if nobody follows it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def note(self, attributes: dict[str, Attribute]) -> None:
        """Add what has become known of it."""

    def phase(
        self, name: str, attributes: dict[str, Attribute] | None = None, *, remote: bool = False
    ) -> "Phase":
        """A part of this part; `remote` if another service does the work."""
        del name, attributes, remote
        return self

    def end(self) -> None:
        """It is over; a second time does nothing."""


class Tracer:
    """Begins traces; this one begins none."""

    def begin(self, name: str, *, traceparent: str | None) -> Phase:
        """
        The way of one request.

        Args:
            name: What it is.
            traceparent: W3C's name of what it is a part of, if the caller sent one.
        """
        del name, traceparent
        return NOTHING

    async def aclose(self) -> None:
        """Send what is still to be sent."""


NOTHING = Phase()
"""The one phase of whoever is not followed: making others would cost each question."""

NO_TRACER = Tracer()
"""Whoever follows nobody."""
