"""What is done for the indexes while nobody waits: saved, let go when cold, built anew when outgrown."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from orchestrator.concurrency import Threads
from orchestrator.errors import OrchestratorError
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.telemetry.heap import trim_heap

QUIET_S = 2.0
"""An index is saved when its collection has been at rest for so long, in seconds."""
AFTER_FAILURE_S = 60.0

logger = logging.getLogger(__name__)


class Housekeeper:
    """
    Looks after the indexes every few seconds.

    A snapshot that cannot be written costs a slower next start and nothing else: it is logged, and
    tried again.

    Args:
        indexes: All of them.
        threads: Where the work is done.
        finished: Counts the documents that were worked on; after some the heap is given back.
        give_back: How that is done.
        look_s: Seconds between two looks.
    """

    def __init__(
        self,
        *,
        indexes: CollectionIndexes,
        threads: Threads,
        finished: Callable[[], int] = lambda: 0,
        give_back: Callable[[], None] = trim_heap,
        look_s: float = 5.0,
    ) -> None:
        self._indexes = indexes
        self._threads = threads
        self._finished = finished
        self._given_back_at = 0
        self._give_back = give_back
        self._look_s = look_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._look(), name="housekeeping")

    async def aclose(self) -> None:
        """Stop, and save what is not saved yet."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._tidy(quiet_s=0)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            if not await self._tidy(quiet_s=QUIET_S):
                await asyncio.sleep(AFTER_FAILURE_S)

    async def _tidy(self, *, quiet_s: float) -> bool:
        """Whether it went well."""
        try:
            await self._threads.run(self._indexes.save, quiet_s=quiet_s)
            await self._threads.run(self._indexes.unload_idle)
            await self._threads.run(self._indexes.renew_outgrown)
            finished = self._finished()
            if finished != self._given_back_at:
                self._given_back_at = finished
                await self._threads.run(self._give_back)
        except (OSError, OrchestratorError) as exc:
            logger.warning("the vector indexes could not be saved: %s", exc)
            return False
        except Exception:
            logger.exception("the vector indexes could not be saved")
            return False
        return True
