"""What the supervisor asks of an engine, whichever it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Serving:
    """
    What is served, and where.

    Attributes:
        model: Folder of the model.
        name: Name of the model on the wire.
        drain_s: Whole seconds that running requests may take once the engine was told to stop.
    """

    model: Path
    name: str
    host: str
    port: int
    drain_s: int


class Engine(Protocol):
    """One kind of engine, with a plan and an address already chosen."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line, interpreter first."""
        ...

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the process, made from the one inherited."""
        ...

    def phase(self, line: str) -> str | None:
        """What the engine is doing, if this line of its log says so; for people."""
        ...

    def has_drained(self, line: str) -> bool:
        """Whether this line says that an engine told to stop has no request left."""
        ...
