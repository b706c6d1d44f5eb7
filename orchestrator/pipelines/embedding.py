"""Texts of others, embedded as documents and questions are."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from orchestrator.concurrency import Threads
from orchestrator.domain import Embeddings
from orchestrator.errors import InvalidParameter, Overloaded
from orchestrator.resilience.admission import Bulkhead
from orchestrator.retrieval.arrays import Vector
from orchestrator.retrieval.embedder_model import EmbedderTokenizer


class Embedding(Protocol):
    """Who embeds: `embedder.Embedder` or `remote_embedder.RemoteEmbedder`."""

    async def embed_query(self, text: str, *, timeout_s: float | None = None) -> Vector:
        """The question's vector."""
        ...

    async def embed_passages(self, texts: Sequence[str]) -> Embeddings:
        """One row a text."""
        ...


class EmbeddingPipeline:
    """
    Embeds texts for callers.

    Args:
        embedder: Passages go into its slower lane, beside documents: questions go first.
        tokenizer: That of its model.
        places: Callers that may embed at once: more would leave no room to documents.
        model: What the model is called.
        dimension: Length of its vectors.

    Attributes:
        model: The same.
        dimension: The same.
    """

    def __init__(
        self,
        *,
        embedder: Embedding,
        tokenizer: EmbedderTokenizer,
        threads: Threads,
        places: Bulkhead,
        model: str,
        dimension: int,
    ) -> None:
        self._embedder = embedder
        self._places = places
        self._tokenizer = tokenizer
        self._threads = threads
        self.model = model
        self.dimension = dimension

    async def count(self, texts: Sequence[str]) -> int:
        """
        The tokens of all of them together.

        Raises:
            InvalidParameter: If one is longer than the model reads: the rest would be lost in silence.
        """
        counts = await self._threads.run(lambda: [self._tokenizer.count(text) for text in texts])
        most = self._tokenizer.max_tokens
        for n, count in enumerate(counts):
            if count > most:
                raise InvalidParameter(
                    f"input[{n}] has {count} tokens; the model reads {most}. Cut it into parts.",
                    param="input",
                )
        return sum(counts)

    async def embed(self, texts: Sequence[str], *, questions: bool) -> Embeddings:
        """
        One row a text: (n, d) float32 of unit length.

        Args:
            texts: Each within the model's window.
            questions: Whether they are embedded as questions, one after the other.

        Raises:
            EmbedderUnavailable: If the embedder cannot now.
            Overloaded: If as many callers embed as may.
            QueueFull: If too many wait for the embedder.
        """
        with self._places.hold(_full):
            if not questions:
                return await self._embedder.embed_passages(texts)
            return np.stack([await self._embedder.embed_query(text) for text in texts])


def _full() -> Overloaded:
    return Overloaded(
        "As many callers embed texts as may (ORCHESTRATOR_MAX_EMBEDDING_REQUESTS). Try again in a "
        "moment.",
        retry_after_s=1.0,
    )
