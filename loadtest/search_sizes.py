"""
What a search takes in small and in large collections, and what an inexact index misses.

    make search-sizes [SIZES=1000,100000,1000000] [OUT=reports/search_sizes.json]

For each size a store, and an index over it, are built as the orchestrator builds them, and questions
are asked one after the other of the orchestrator's own retriever: by meaning and by words, fused, the
passages read. Only the question's vector is given instead of computed: that takes the same time in
every collection.

The texts are made: 110 words each, as a chunk has, drawn by Zipf's law from 50,000 words. So are the
vectors: the bundled embedder computes some thousand real ones of generated sentences, and each chunk
gets one of them with noise, so that neighbours lie as near to each other as those of real chunks do.
Recall is the share of the ten nearest by exact comparison that the index finds.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loadtest.figures import percentile
from loadtest.programs import commit, machine
from loadtest.upload_loop import disk_bytes
from orchestrator.concurrency import Threads
from orchestrator.domain import Chunk, Document, DocumentId, DocumentStatus, Page, StoredChunk
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.retrieval.arrays import Vector
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.embedder import Embedder
from orchestrator.retrieval.embedder_model import bundled_embedder
from orchestrator.retrieval.lexical_index import LexicalIndex
from orchestrator.retrieval.retriever import Retriever
from orchestrator.status import resident_bytes

SIZES = (1_000, 100_000, 1_000_000)
COLLECTION = "sizes"
CHUNKS_A_DOCUMENT = 500
WORDS, WORDS_A_CHUNK, WORDS_A_QUESTION = 50_000, 110, 8
ZIPF = 1.1
PARENTS = 2_000
NOISE = 0.6
"""Length of the noise beside a real vector: two children of one parent have a cosine of 0.74."""
QUESTIONS, WARM_UP = 200, 20
NEAREST = 10
READ_AT_ONCE = 20_000
BUILD_S = 3_600.0
SEED = 20261126


@dataclass(frozen=True, slots=True)
class Size:
    """
    What searching so many chunks takes.

    Attributes:
        build_s: From the store to an index that can be searched, in seconds.
        p50_ms, p99_ms: Of whole searches, in milliseconds.
        meaning_p50_ms, words_p50_ms: Of its two halves, each alone.
        recall: Of the ten nearest, averaged over the questions.
        exact: Whether the index compares every vector.
        memory_bytes: Of this process, with the index.
        disk_bytes: Of the store and the index's snapshot.
    """

    chunks: int
    fill_s: float
    build_s: float
    p50_ms: float
    p99_ms: float
    meaning_p50_ms: float
    words_p50_ms: float
    recall: float
    exact: bool
    memory_bytes: int
    disk_bytes: int


class Given:
    """Stands for the embedder: gives the vector that it was told."""

    starting = False

    def __init__(self) -> None:
        self.vector: Vector = np.zeros(1, dtype=np.float32)

    async def embed_query(self, text: str, *, timeout_s: float) -> Vector:  # noqa: ARG002 - its shape
        """The vector."""
        return self.vector


class Material:
    """
    Texts and vectors, the same ones every time.

    Args:
        parents: (n, d) float32 real unit vectors.
    """

    def __init__(self, parents: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
        self._parents = parents
        self._rng = np.random.default_rng(SEED)
        ranks = np.arange(1, WORDS + 1, dtype=np.float64) ** -ZIPF
        self._shares = np.cumsum(ranks / ranks.sum())
        self._words = np.array([_word(number) for number in range(WORDS)])

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return int(self._parents.shape[1])

    def texts(self, count: int, words: int) -> list[str]:
        """So many texts of so many words."""
        drawn = np.searchsorted(self._shares, self._rng.random((count, words)))
        return [" ".join(row) for row in self._words[np.minimum(drawn, WORDS - 1)]]

    def vectors(self, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """So many unit vectors: a real one each, with noise."""
        chosen = self._parents[self._rng.integers(0, len(self._parents), count)]
        noise = self._rng.standard_normal(chosen.shape, dtype=np.float32)
        noise *= NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
        moved = chosen + noise
        unit: np.ndarray[tuple[int, int], np.dtype[np.float32]] = moved / np.linalg.norm(
            moved, axis=1, keepdims=True
        )
        return unit


def _word(number: int) -> str:
    """A word of its own for each number: letters, since digits and marks are cut in other ways."""
    letters = ""
    number += 26**2
    while number:
        number, letter = divmod(number, 26)
        letters = chr(ord("a") + letter) + letters
    return letters


async def real_vectors() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Vectors of sentences, by the bundled embedder."""
    things = ["lock", "turbine", "invoice", "pension", "reactor", "harvest", "satellite", "vaccine"]
    doings = ["is inspected", "was sold", "failed", "costs more", "grew", "must be kept", "is new"]
    places = ["in the harbour", "of the company", "during the year", "under the contract", "abroad"]
    sentences = [
        f"The {thing} {doing} {place}, says section {number} of the report."
        for number in range(1, 9)
        for thing in things
        for doing in doings
        for place in places
    ][:PARENTS]
    embedder = Embedder(model=bundled_embedder(), threads=2)
    await embedder.start()
    try:
        return await embedder.embed_passages(sentences)
    finally:
        await embedder.aclose()


def fill(store: DocumentStore, material: Material, chunks: int) -> None:
    """Put so many chunks into the store, through the door that ingestion uses."""
    for number, start in enumerate(range(0, chunks, CHUNKS_A_DOCUMENT)):
        count = min(CHUNKS_A_DOCUMENT, chunks - start)
        document = DocumentId(f"document-{number}")
        store.add(
            Document(
                id=document,
                collection=COLLECTION,
                filename=f"{document}.pdf",
                sha256=document,
                size_bytes=1,
                status=DocumentStatus.QUEUED,
                created_at=0.0,
            )
        )
        texts, vectors = material.texts(count, WORDS_A_CHUNK), material.vectors(count)
        stored = [
            StoredChunk(
                Chunk(ordinal, text, 1, 1, 0, len(text), "", WORDS_A_CHUNK), vector, WORDS_A_CHUNK
            )
            for ordinal, (text, vector) in enumerate(zip(texts, vectors, strict=True))
        ]
        store.publish(document, pages=[Page(1, "")], chunks=stored, warning=None)


@contextmanager
def collection(
    folder: Path, material: Material, chunks: int
) -> Iterator[tuple[DocumentStore, float]]:
    """A store with so many chunks, and how long it took to fill, in seconds."""
    store = DocumentStore(path=folder / "tidegate.db")
    store.open()
    began_s = time.monotonic()
    try:
        fill(store, material, chunks)
        yield store, time.monotonic() - began_s
    finally:
        store.close()


async def measure(folder: Path, material: Material, chunks: int) -> Size:
    """Build a collection of so many chunks, and search it."""
    with collection(folder, material, chunks) as (store, fill_s):
        indexes = CollectionIndexes(
            folder=folder / "indexes", store=store, dimension=material.dimension, wait_s=BUILD_S
        )
        queries, texts = material.vectors(QUESTIONS), material.texts(QUESTIONS, WORDS_A_QUESTION)
        began_s = time.monotonic()
        await asyncio.to_thread(indexes.search, COLLECTION, queries[0], 1)
        build_s = time.monotonic() - began_s
        given, lexical = Given(), LexicalIndex(database=store.database)
        threads = Threads(4, name="search", patience_s=0.01)
        retriever = Retriever(
            embedder=given,
            store=store,
            vectors=indexes,
            lexical=lexical,
            threads=threads,
            embedder_breaker=CircuitBreaker(name="embedder", policy=BreakerPolicy()),
            store_breaker=CircuitBreaker(name="store", policy=BreakerPolicy()),
            embed_timeout_s=10.0,
        )
        whole: list[float] = []
        for text, given.vector in zip(texts, queries, strict=True):
            began_s = time.monotonic()
            await retriever.retrieve(
                text, collection=COLLECTION, document_ids=[], top_k=8, deadline=Deadline(60)
            )
            whole.append(time.monotonic() - began_s)
        meaning = [_timed(indexes.search, COLLECTION, query, 50) for query in queries]
        words = [
            _timed(lexical.search, text, collection=COLLECTION, document_ids=[], k=50)
            for text in texts
        ]
        recall = _recall(store, indexes, queries)
        memory = resident_bytes()
        exact = chunks <= indexes.exact_up_to
        indexes.save()
        threads.close()
        indexes.close()
        return Size(
            chunks=chunks,
            fill_s=fill_s,
            build_s=build_s,
            p50_ms=_ms(whole, 0.5),
            p99_ms=_ms(whole, 0.99),
            meaning_p50_ms=_ms(meaning, 0.5),
            words_p50_ms=_ms(words, 0.5),
            recall=recall,
            exact=exact,
            memory_bytes=memory,
            disk_bytes=disk_bytes(folder),
        )


def _timed(call: Callable[..., object], *args: object, **kwargs: object) -> float:
    began_s = time.monotonic()
    call(*args, **kwargs)
    return time.monotonic() - began_s


def _ms(seconds: Sequence[float], share: float) -> float:
    return 1000 * (percentile(seconds[WARM_UP:], share) or 0.0)


def _recall(
    store: DocumentStore,
    indexes: CollectionIndexes,
    queries: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> float:
    """Share of the exact nearest that the index finds, the store's vectors compared one by one."""
    best_scores = np.full((len(queries), NEAREST), -np.inf, dtype=np.float32)
    best_ids = np.zeros((len(queries), NEAREST), dtype=np.int64)
    after = 0
    while True:
        ids, rows = store.embeddings(COLLECTION, after=after, limit=READ_AT_ONCE)
        if not len(ids):
            break
        after = int(ids[-1])
        scores = np.hstack([best_scores, queries @ rows.T])
        every = np.hstack([best_ids, np.broadcast_to(ids, (len(queries), len(ids)))])
        order = np.argpartition(-scores, NEAREST - 1, axis=1)[:, :NEAREST]
        best_scores = np.take_along_axis(scores, order, axis=1)
        best_ids = np.take_along_axis(every, order, axis=1)
    found = [indexes.search(COLLECTION, query, NEAREST)[0] for query in queries]
    return float(
        np.mean([len(set(f) & set(b)) / NEAREST for f, b in zip(found, best_ids, strict=True)])
    )


def table(sizes: Sequence[Size]) -> str:
    """One row a size."""
    head = (
        "| chunks | search p50 / p99 | by meaning p50 | by words p50 | index | recall@10 "
        "| index built in | memory | disk |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    rows = [
        f"| {s.chunks:,} | {s.p50_ms:.1f} / {s.p99_ms:.1f} ms | {s.meaning_p50_ms:.1f} ms "
        f"| {s.words_p50_ms:.1f} ms | {'exact' if s.exact else 'lists'} | {s.recall:.3f} "
        f"| {s.build_s:.1f} s | {s.memory_bytes / 1e9:.2f} GB | {s.disk_bytes / 1e9:.2f} GB |"
        for s in sizes
    ]
    return "\n".join([head, *rows])


def main() -> int:
    """Measure each size, print the table, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--out", type=Path, default=Path("reports/search_sizes.json"))
    options = parser.parse_args()
    parents = asyncio.run(real_vectors())
    measured = []
    for chunks in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            measured.append(asyncio.run(measure(Path(folder), Material(parents), chunks)))
        print(measured[-1], file=sys.stderr, flush=True)
    print(f"\n{machine()}, commit {commit()}, seed {SEED}\n\n{table(measured)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), "commit": commit(), "seed": SEED}
    options.out.write_text(json.dumps(about | {"sizes": [asdict(s) for s in measured]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
