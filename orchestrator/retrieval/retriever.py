"""
From a question to the passages that may answer it.

Two searches, one by meaning and one by words, are fused by reciprocal rank: each finds what the
other misses, and ranks need no common scale.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from anyio import CapacityLimiter, to_thread

from orchestrator.domain import ChunkId, DocumentId, Passage
from orchestrator.resilience.deadline import Deadline
from orchestrator.retrieval.arrays import Vector
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.lexical_index import LexicalIndex
from orchestrator.retrieval.relevance import is_relevant

_RRF_K = 60


class QueryEmbedder(Protocol):
    """What turns a question into a vector."""

    async def embed_query(self, text: str) -> Vector:
        """The question's vector: (d,) float32 of unit length."""
        ...


@dataclass(frozen=True, slots=True)
class Retrieved:
    """
    What was found for a question.

    Attributes:
        passages: Best first; may be empty.
        relevant: Whether they have anything to do with the question; see `relevance.py`.
    """

    passages: tuple[Passage, ...]
    relevant: bool


class Retriever:
    """
    Searches a collection.

    Args:
        embedder: Turns the question into a vector.
        store: Where the passages are read.
        vectors: Search by meaning.
        lexical: Search by words.
        limiter: How many searches may run at once, each in a thread.
        candidates: How many hits of each search are fused.
    """

    def __init__(
        self,
        *,
        embedder: QueryEmbedder,
        store: DocumentStore,
        vectors: CollectionIndexes,
        lexical: LexicalIndex,
        limiter: CapacityLimiter,
        candidates: int = 50,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._vectors = vectors
        self._lexical = lexical
        self._limiter = limiter
        self._candidates = candidates

    async def retrieve(
        self,
        text: str,
        *,
        collection: str,
        document_ids: Sequence[DocumentId],
        top_k: int,
        deadline: Deadline,
    ) -> Retrieved:
        """
        The passages that fit the question best.

        Args:
            text: The question.
            collection: Where to search.
            document_ids: Search only these; empty means the whole collection.
            top_k: Passages at most.
            deadline: When the search has to be over.

        Raises:
            DeadlineExceeded: If it is not.
            EmbedderUnavailable: If the question cannot be embedded now.
            QueueFull: If too many questions wait to be embedded.
            StoreUnavailable: If the store cannot be read.
        """
        async with deadline.scope():
            query = await self._embedder.embed_query(text)
            return await to_thread.run_sync(
                self._search,
                text,
                query,
                collection,
                tuple(document_ids),
                top_k,
                limiter=self._limiter,
            )

    def _search(
        self,
        text: str,
        query: Vector,
        collection: str,
        document_ids: tuple[DocumentId, ...],
        top_k: int,
    ) -> Retrieved:
        allowed = None
        if document_ids:
            allowed = self._store.chunk_ids(collection=collection, document_ids=document_ids)
        near, cosines = self._vectors.search(collection, query, self._candidates, allowed=allowed)
        worded = self._lexical.search(
            text, collection=collection, document_ids=document_ids, k=self._candidates
        )
        dense = [ChunkId(int(chunk_id)) for chunk_id in near]
        ranking = fuse([dense, [chunk_id for chunk_id, _ in worded]])
        # Twice as many as wanted leave enough after the doubles are gone, nearly always.
        found = self._store.passages(ranking[: 2 * top_k], query)
        passages = _distinct(found[chunk_id] for chunk_id in ranking if chunk_id in found)
        passages = passages[:top_k]
        # Whoever names a document means it: "What is this about?" is near no passage of it.
        relevant = bool(passages) and (
            bool(document_ids)
            or is_relevant(text, passages, best_cosine=float(cosines.max(initial=-1)))
        )
        return Retrieved(tuple(passages), relevant=relevant)


def fuse(rankings: Sequence[Sequence[ChunkId]]) -> list[ChunkId]:
    """
    One ranking out of several: by the sum of 1 / (60 + rank), ties to the earlier ranking.

    Source:
        Cormack, Clarke and Buettcher 2009, "Reciprocal rank fusion outperforms Condorcet and
        individual rank learning methods", with their k = 60.
    """
    scores: dict[ChunkId, float] = {}
    for ranking in rankings:
        for rank, chunk_id in enumerate(ranking, start=1):
            scores[chunk_id] = scores.get(chunk_id, 0.0) + 1.0 / (_RRF_K + rank)
    return sorted(scores, key=lambda chunk_id: -scores[chunk_id])


def _distinct(passages: Iterable[Passage]) -> list[Passage]:
    """The passages without those whose words were there before."""
    first: dict[str, Passage] = {}
    for passage in passages:
        first.setdefault(" ".join(passage.text.split()), passage)
    return list(first.values())
