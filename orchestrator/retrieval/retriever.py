"""
From a question to the passages that may answer it.

Two searches, one by meaning and one by words, are fused by reciprocal rank: each finds what the
other misses, and ranks need no common scale. Without its vector a question is searched by its words
alone: fewer answers are found, but those that are found are real.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from orchestrator.concurrency import Threads
from orchestrator.domain import ChunkId, DocumentId, Passage
from orchestrator.errors import (
    CircuitOpen,
    EmbedderUnavailable,
    IndexNotReady,
    OrchestratorError,
    QueueFull,
    StoreUnavailable,
)
from orchestrator.resilience.circuit_breaker import CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.retrieval.arrays import Vector
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.lexical_index import LexicalIndex
from orchestrator.retrieval.relevance import is_relevant
from orchestrator.retrieval.reranker import Reranker
from orchestrator.telemetry.tracing import NOTHING, Attribute, Phase

_RRF_K = 60
_ALIKE = 0.9
"""Of all words of two passages, those in both (Jaccard): beyond it they are taken as the same."""
_DIGIT = re.compile(r"\d")


class QueryEmbedder(Protocol):
    """What turns a question into a vector."""

    @property
    def starting(self) -> bool:
        """Whether it cannot be up yet, which is nobody's failure."""
        ...

    async def embed_query(self, text: str, *, timeout_s: float) -> Vector:
        """
        The question's vector: (d,) float32 of unit length.

        Raises:
            EmbedderUnavailable: If there is none to be had.
            QueueFull: If too many questions wait already.
            TimeoutError: If it takes longer than that for no other reason than load.
        """
        ...


EMBEDS: dict[str, Attribute] = {"gen_ai.operation.name": "embeddings"}


@dataclass(frozen=True, slots=True)
class Retrieved:
    """
    What was found for a question.

    Attributes:
        passages: Best first; may be empty.
        relevant: Whether they have anything to do with the question; see `relevance.py`.
        by_words_only: Why the passages were found by words alone; None if they were not.
        not_reranked: Why they were not looked at a second time, although they should have been.
    """

    passages: tuple[Passage, ...]
    relevant: bool
    by_words_only: OrchestratorError | None = None
    not_reranked: OrchestratorError | None = None


class Retriever:
    """
    Searches a collection.

    Args:
        embedder: Turns the question into a vector.
        store: Where the passages are read.
        vectors: Search by meaning.
        lexical: Search by words.
        threads: Where searches run.
        embedder_breaker: Open, questions are searched by their words at once.
        store_breaker: Open, nothing is searched.
        reranker: Looks at the best of them a second time, if there is one.
        embed_timeout_s: Longest wait for a question's vector, in seconds; then words must do.
        store_slow_s: A search that takes longer counts against the store, in seconds.
        candidates: How many hits of each search are fused.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        embedder: QueryEmbedder,
        store: DocumentStore,
        vectors: CollectionIndexes,
        lexical: LexicalIndex,
        threads: Threads,
        embedder_breaker: CircuitBreaker,
        store_breaker: CircuitBreaker,
        embed_timeout_s: float,
        reranker: Reranker | None = None,
        store_slow_s: float = 5.0,
        candidates: int = 50,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._vectors = vectors
        self._lexical = lexical
        self._threads = threads
        self._embedder_breaker = embedder_breaker
        self._store_breaker = store_breaker
        self._embed_timeout_s = embed_timeout_s
        self._reranker = reranker
        self._store_slow_s = store_slow_s
        self._candidates = candidates
        self._clock = clock

    async def retrieve(
        self,
        text: str,
        *,
        collection: str,
        document_ids: Sequence[DocumentId],
        top_k: int,
        deadline: Deadline,
        check: Callable[[], None] = lambda: None,
        trace: Phase = NOTHING,
    ) -> Retrieved:
        """
        The passages that fit the question best, a chunk each.

        Args:
            text: The question.
            collection: Where to search.
            document_ids: Search only these; empty means the whole collection.
            top_k: Passages at most.
            deadline: When the search has to be over.
            check: Raises if there is nothing that could be searched. Called in the search's thread,
                since a way to another would cost as much as the search, and only where what is
                found does not answer it: if documents are named, or if nothing is found.
            trace: What the search is a part of.

        Raises:
            DeadlineExceeded: If it is not.
            CircuitOpen: If the store is left alone now.
            EmbedderUnavailable: If the question cannot be embedded now, and no passage has a word
                of it: then nobody knows whether there is an answer.
            IndexNotReady: The same, because the collection's index is still being built.
            QueueFull: The same, because too many questions wait to be embedded.
            StoreUnavailable: If the store cannot be read.
        """
        async with deadline.scope():
            self._store_breaker.require()
            with trace.phase("embeddings", EMBEDS):
                query = await self._vector(text)
            search = _Search(
                text=text,
                query=query,
                collection=collection,
                document_ids=tuple(document_ids),
                top_k=top_k if self._reranker is None else max(top_k, self._reranker.candidates),
            )
            with trace.phase("search"):
                found = await self._guarded(search, check)
            if found.by_words_only is not None and not found.passages:
                raise found.by_words_only
            if self._reranker is None:
                return found
            with trace.phase("rerank"):
                again = await self._reranker.rerank(text, found.passages)
            return replace(found, passages=again.passages[:top_k], not_reranked=again.skipped)

    async def _vector(self, text: str) -> Vector | OrchestratorError:
        """The question's vector, or why there is none."""
        timeout_s = self._embed_timeout_s
        # While the model is loaded for the first time, the breaker would open for nothing.
        failures = () if self._embedder.starting else (EmbedderUnavailable,)
        try:
            # Being busy is no failure: only an embedder that does nothing counts against itself.
            async with self._embedder_breaker.guard(failures):
                return await self._embedder.embed_query(text, timeout_s=timeout_s)
        except (EmbedderUnavailable, QueueFull, CircuitOpen) as exc:
            return exc
        except TimeoutError:
            return EmbedderUnavailable(
                f"The question was not embedded within {timeout_s:g} s. Try again.",
                retry_after_s=1.0,
            )

    async def _guarded(self, search: "_Search", check: Callable[[], None]) -> Retrieved:
        """What a thread finds; how the store behaved is told to its breaker."""
        call = self._store_breaker.enter()
        began_s: list[float] = []

        def run() -> Retrieved:
            began_s.append(self._clock())
            if search.document_ids:
                check()
            found = self._search(search)
            if not (search.document_ids or found.passages):
                check()
            return found

        def slow() -> bool:  # waiting for a thread is not the store's fault
            return bool(began_s) and self._clock() - began_s[0] > self._store_slow_s

        try:
            found = await self._threads.run(run)
        except StoreUnavailable as exc:
            call.failed(str(exc))
            raise
        except BaseException:
            # Whoever gave up after so long gave up on the store.
            if slow():
                call.failed(f"A search took longer than {self._store_slow_s:g} s.")
            else:
                call.abandoned()
            raise
        call.succeeded(slow=slow())
        return found

    def _search(self, search: "_Search", *, final: bool = False) -> Retrieved:
        near = self._near(search)
        worded = self._lexical.search(
            search.text,
            collection=search.collection,
            document_ids=search.document_ids,
            k=self._candidates,
        )
        ranking = fuse([near.chunk_ids, [chunk_id for chunk_id, _ in worded]])
        # Twice as many as wanted leave enough after the doubles are gone, nearly always.
        wanted = ranking[: 2 * search.top_k]
        query = None if isinstance(search.query, OrchestratorError) else search.query
        found = self._store.passages(wanted, query)
        if final or not (near.short or len(found) < len(wanted)):
            return self._retrieved(search, near, ranking, found)
        # A document came or went just now, and is in the store and not yet in the index.
        self._vectors.settle(search.collection)
        return self._search(search, final=True)

    def _retrieved(
        self,
        search: "_Search",
        near: "_Near",
        ranking: Sequence[ChunkId],
        found: dict[ChunkId, Passage],
    ) -> Retrieved:
        ranked = (found[chunk_id] for chunk_id in ranking if chunk_id in found)
        passages = list(islice(_distinct(ranked), search.top_k))
        # Whoever names a document means it: "What is this about?" is near no passage of it.
        relevant = bool(passages) and (
            bool(search.document_ids)
            or is_relevant(search.text, passages, best_cosine=near.best_cosine)
        )
        return Retrieved(tuple(passages), relevant=relevant, by_words_only=near.missing)

    def _near(self, search: "_Search") -> "_Near":
        """The nearest chunks; none without a vector, or without an index."""
        if isinstance(search.query, OrchestratorError):
            return _Near(missing=search.query)
        allowed = None
        if search.document_ids:
            allowed = self._store.chunk_ids(
                collection=search.collection, document_ids=search.document_ids
            )
        try:
            ids, cosines = self._vectors.search(
                search.collection, search.query, self._candidates, allowed=allowed
            )
        except IndexNotReady as exc:
            return _Near(missing=exc)
        return _Near(
            chunk_ids=[ChunkId(chunk_id) for chunk_id in ids.tolist()],
            best_cosine=float(cosines.max(initial=-1)),
            short=allowed is not None and len(ids) < min(self._candidates, len(allowed)),
        )


@dataclass(frozen=True, slots=True)
class _Near:
    """
    What the search by meaning gave.

    Attributes:
        best_cosine: None if there was no such search.
        short: Whether the index lacks chunks that the store has.
        missing: Why there was no such search; None if there was one.
    """

    chunk_ids: Sequence[ChunkId] = ()
    best_cosine: float | None = None
    short: bool = False
    missing: OrchestratorError | None = None


@dataclass(frozen=True, slots=True)
class _Search:
    """What to search; `query` is the question's vector, or why it has none."""

    text: str
    query: Vector | OrchestratorError
    collection: str
    document_ids: tuple[DocumentId, ...]
    top_k: int


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


def _distinct(passages: Iterable[Passage]) -> Iterator[Passage]:
    """The passages without those that say what one before them says."""
    said: list[frozenset[str]] = []
    for passage in passages:
        words = frozenset(passage.text.split())
        if not any(_alike(words, other) for other in said):
            said.append(words)
            yield passage


def _alike(words: frozenset[str], others: frozenset[str]) -> bool:
    """
    Whether two passages have nearly the same words; another number is another statement.

    Two versions of a contract may differ in nothing but a date or a sum.
    """
    common = len(words & others)
    if common < _ALIKE * (len(words) + len(others) - common):
        return False
    return not any(map(_DIGIT.search, words ^ others))
