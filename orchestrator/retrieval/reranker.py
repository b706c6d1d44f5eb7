"""
A second look at what was found: a cross-encoder reads question and passage together.

Never a hard dependency: without it, or when it is too slow, the passages keep the order in which they
were found, and the answer says so.
"""

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain import Passage
from orchestrator.errors import CircuitOpen, EmbedderUnavailable, OrchestratorError, QueueFull
from orchestrator.resilience.circuit_breaker import CircuitBreaker
from orchestrator.retrieval.embedder import Embedder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reranked:
    """
    Passages, best first.

    Attributes:
        skipped: Why they are in the order in which they were found; None if they are not.
    """

    passages: tuple[Passage, ...]
    skipped: OrchestratorError | None = None


class Reranker:
    """
    Orders passages by how well they answer a question.

    Args:
        process: The child that scores pairs: an embedder whose rows are one number.
        breaker: Open, nothing is reranked.
        candidates: How many passages are read with the question.
        wait_s: Longest that it may take, in seconds.
    """

    def __init__(
        self,
        *,
        process: Embedder,
        breaker: CircuitBreaker,
        candidates: int = 20,
        wait_s: float = 2.0,
    ) -> None:
        self._process = process
        self._breaker = breaker
        self._wait_s = wait_s
        self.candidates = candidates

    def start_soon(self) -> None:
        """Start the child in the background; until it is up, nothing is reranked."""
        self._process.start_soon()

    async def aclose(self) -> None:
        """End the child."""
        await self._process.aclose()

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._process.alive

    async def rerank(self, question: str, passages: Sequence[Passage]) -> Reranked:
        """The passages in a better order, or in their own."""
        found = tuple(passages)
        if len(found) < 2:  # noqa: PLR2004 - one has no order
            return Reranked(found)
        if self._process.starting:
            # Nobody's failure: the breaker is not told of it.
            return Reranked(found, EmbedderUnavailable("The reranker is loading its model."))
        pairs = [json.dumps([question, passage.text]) for passage in found]
        try:
            async with (
                self._breaker.guard((EmbedderUnavailable, TimeoutError)),
                asyncio.timeout(self._wait_s),
            ):
                scores = (await self._process.embed_passages(pairs))[:, 0].tolist()
        except (EmbedderUnavailable, QueueFull, CircuitOpen) as exc:
            return Reranked(found, skipped=exc)
        except TimeoutError:
            late = EmbedderUnavailable(f"The reranker took longer than {self._wait_s:g} s.")
            return Reranked(found, skipped=late)
        order = sorted(range(len(found)), key=lambda place: -scores[place])
        return Reranked(tuple(found[place] for place in order))
