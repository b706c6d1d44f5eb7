"""
What each word adds to the BM25 score of each chunk, kept in memory until the chunks change.

BM25 is a sum over the words of a question, and questions share most of their words: what FTS5 has
computed once for a word is added up for the next question. The sums are those that FTS5 gives for
the whole question, to the bit, because they are made in the same order.
"""

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from orchestrator.domain import ChunkId
from orchestrator.retrieval.arrays import Ids

MAX_HELD = 2_000_000
"""Scores of one word for one chunk that are kept at most: 16 bytes each."""

_Sums: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

_SCORES = """
    SELECT rowid, -bm25(chunks_fts, 0.0, ?, ?, ?) FROM chunks_fts WHERE chunks_fts MATCH ?
"""


class TermScores:
    """
    Scores by word, for any thread.

    Args:
        weights: How much a hit counts in (file name, heading, text).
        max_held: Scores that are kept at most; the longest unused give way.
    """

    def __init__(self, weights: tuple[float, float, float], *, max_held: int = MAX_HELD) -> None:
        self._weights = weights
        self._max_held = max_held
        self._lock = threading.Lock()
        self._generation = -1
        self._kept: OrderedDict[str, tuple[Ids, _Sums]] = OrderedDict()
        self.held = 0

    def best(
        self, db: sqlite3.Connection, matches: Sequence[str], *, generation: int, k: int
    ) -> list[tuple[ChunkId, float]]:
        """
        The k chunks with the highest sums, best first, ties by id.

        Args:
            db: A connection that sees one state of the file.
            matches: One FTS5 query for each word.
            generation: A number that grows with each change of any chunk, in that state.
            k: At least 1.
        """
        parts = [self._of(db, match, generation) for match in matches]
        ids, places = np.unique(np.concatenate([ids for ids, _ in parts]), return_inverse=True)
        scores = np.bincount(places, weights=np.concatenate([scores for _, scores in parts]))
        order = np.argsort(-scores, kind="stable")[:k]
        found = zip(ids[order].tolist(), scores[order].tolist(), strict=True)
        return [(ChunkId(chunk_id), score) for chunk_id, score in found]

    def _of(self, db: sqlite3.Connection, match: str, generation: int) -> tuple[Ids, _Sums]:
        with self._lock:
            if generation > self._generation:
                self._generation = generation
                self._kept.clear()
                self.held = 0
            if generation == self._generation and match in self._kept:
                self._kept.move_to_end(match)
                return self._kept[match]
        computed = self._compute(db, match)
        self._keep(match, computed, generation)
        return computed

    def _compute(self, db: sqlite3.Connection, match: str) -> tuple[Ids, _Sums]:
        cursor = db.cursor()
        cursor.row_factory = None  # plain tuples: there are thousands
        rows = cursor.execute(_SCORES, (*self._weights, match)).fetchall()
        ids = np.fromiter((chunk_id for chunk_id, _ in rows), dtype=np.int64, count=len(rows))
        scores = np.fromiter((score for _, score in rows), dtype=np.float64, count=len(rows))
        return ids, scores

    def _keep(self, match: str, computed: tuple[Ids, _Sums], generation: int) -> None:
        size = len(computed[0]) + 1
        with self._lock:
            # A reader of an older state must not put its scores among the newer ones.
            if generation != self._generation or match in self._kept or size > self._max_held:
                return
            self._kept[match] = computed
            self.held += size
            while self.held > self._max_held:
                _, (ids, _) = self._kept.popitem(last=False)
                self.held -= len(ids) + 1
