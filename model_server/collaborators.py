"""Whom the supervisor works with, as it sees them: what runs, what asks, what remembers, what measures."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from model_server.engine_watch import Watched


class Running(Protocol):
    """A started engine: `process.EngineProcess`, or what stands in for it in tests."""

    @property
    def pid(self) -> int:
        """Process id that it runs below."""
        ...

    @property
    def tail(self) -> Iterable[str]:
        """The last lines of its log."""
        ...

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        ...

    def deaths(self) -> AsyncGenerator[str, None]:
        """Names of its processes that are there now, as they end; never ends by itself."""
        ...

    async def terminate(self, *, within_s: float, drained: asyncio.Event) -> int:
        """End it, sooner once it has `drained`; how many processes are left."""
        ...


class Probe(Watched, Protocol):
    """What an engine says over HTTP: `probe.EngineProbe`."""

    async def is_ready(self) -> bool:
        """Whether it takes requests."""
        ...

    async def is_well(self) -> bool | None:
        """Whether it calls itself well; None if it did not answer."""
        ...

    async def kv_cache_tokens(self) -> int | None:
        """Tokens that its KV cache holds; None if it does not say."""
        ...


class Remedies(Protocol):
    """What is changed after the engine ended: `remedies.Remedies`."""

    def life_begins(self) -> None:
        """An engine is about to be started."""
        ...

    def consider(self, tail: Sequence[str], *, was_ready: bool) -> str | None:
        """What was changed for the next start, in words; None if nothing was."""
        ...


class Memory(Protocol):
    """What there is of memory, and who holds it, in bytes."""

    def free_bytes(self) -> int:
        """What the device has free."""
        ...

    def returnable_bytes(self, pid: int) -> int | None:
        """What would come back if the processes below `pid` ended; None if that cannot be told."""
        ...


Launch = Callable[[Callable[[str], None]], Awaitable[Running]]
"""Starts the engine; takes what is to be called with each line of its log."""
