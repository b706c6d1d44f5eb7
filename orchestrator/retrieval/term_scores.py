"""
What each word adds to the BM25 score of each chunk, kept in memory until the chunks change.

BM25 is a sum over the words of a question, and questions share most of their words: what FTS5 has
computed once for a word is added up for the next question. The sums are those that FTS5 gives for
the whole question, to the bit, because they are made in the same order.

FTS5 knows one table, and counts how rare a word is in all of it. Where the table holds more than the
collection, a word is weighed by how rare it is in there instead: the order of one owner's passages
must not tell which words stand in another's.

In large collections a question's commonest words are left out: a word that stands in every tenth
chunk tells chunks apart a fifth as well as a rare one, and there it costs seconds.
"""

import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from orchestrator.domain import ChunkId
from orchestrator.retrieval.arrays import Ids

MAX_HELD = 2_000_000
"""Scores of one word for one chunk that are kept at most: 16 bytes each."""

MAX_HITS = 200_000
"""
Hits of all words of a question together beyond which its commonest words are left out.

FTS5 computes some 400,000 scores a second: these are half a second, once, where nothing is kept yet.
"""

MAX_COUNTED = 50_000
"""Words whose hits are kept counted at most."""

_Sums: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

_COUNT = "SELECT count(*) FROM chunks_fts WHERE chunks_fts MATCH ?"
_SIZES = "SELECT sum(iif(collection = ?, chunks, 0)), sum(chunks) FROM documents"
_SCORES = """
    SELECT rowid, -bm25(chunks_fts, 0.0, ?, ?, ?) FROM chunks_fts WHERE chunks_fts MATCH ?
"""


class Match(NamedTuple):
    """
    One word of a question, as FTS5 queries.

    Attributes:
        hits: For the chunks that are scored.
        here: For all chunks of the collection that have it; the same as `hits` as a rule.
        everywhere: For all chunks that have it; "" where there is no other collection.
    """

    hits: str
    here: str = ""
    everywhere: str = ""


class Sizes(NamedTuple):
    """Chunks of the collection, and chunks of all collections."""

    here: int
    everywhere: int


def rarity(hits: int, chunks: int) -> float:
    """
    How much a word weighs that `hits` of `chunks` have.

    Source:
        Robertson and Sparck Jones; as FTS5's bm25() has it, which knows no negative weights.
    """
    return max(math.log((chunks - hits + 0.5) / (hits + 0.5)), 1e-6)


class TermScores:
    """
    Scores by word, for any thread.

    Args:
        weights: How much a hit counts in (file name, heading, text).
        max_held: Scores that are kept at most; the longest unused give way.
        max_hits: Hits that a question's words may have together; the rarest go first.
    """

    def __init__(
        self,
        weights: tuple[float, float, float],
        *,
        max_held: int = MAX_HELD,
        max_hits: int = MAX_HITS,
    ) -> None:
        self._weights = weights
        self._max_held = max_held
        self._max_hits = max_hits
        self._lock = threading.Lock()
        self._generation = -1
        self._kept: OrderedDict[str, tuple[Ids, _Sums]] = OrderedDict()
        self._counts: dict[str, int] = {}
        self._sizes: dict[str, Sizes] = {}
        self.held = 0

    def best(
        self,
        db: sqlite3.Connection,
        matches: Sequence[Match],
        *,
        generation: int,
        chunks: int,
        k: int,
        collection: str = "",
        allowed: Ids | None = None,
    ) -> list[tuple[ChunkId, float]]:
        """
        The k chunks with the highest sums, best first, ties by id.

        Args:
            db: A connection that sees one state of the file.
            matches: One for each word.
            generation: A number that grows with each change of any chunk, in that state.
            chunks: How many there are at the most.
            k: At least 1.
            collection: Whose words these are, where there are other collections.
            allowed: (n,) ids, the only chunks that are wanted.
        """
        if chunks * len(matches) > self._max_hits:
            matches = self._rarest(db, matches, generation)
        parts = [self._of(db, match, generation, collection) for match in matches]
        if allowed is not None:
            parts = [_among(part, allowed) for part in parts]
        ids, places = np.unique(np.concatenate([ids for ids, _ in parts]), return_inverse=True)
        scores = np.bincount(places, weights=np.concatenate([scores for _, scores in parts]))
        order = np.argsort(-scores, kind="stable")[:k]
        found = zip(ids[order].tolist(), scores[order].tolist(), strict=True)
        return [(ChunkId(chunk_id), score) for chunk_id, score in found]

    def _rarest(
        self, db: sqlite3.Connection, matches: Sequence[Match], generation: int
    ) -> list[Match]:
        """Those that find few chunks, in their order: as many as may be, and one that finds any."""
        counts = [self._count(db, match.hits, generation) for match in matches]
        chosen, hits = [], 0
        for place in sorted(range(len(matches)), key=counts.__getitem__):
            if hits and hits + counts[place] > self._max_hits:
                break
            chosen.append(place)
            hits += counts[place]
        return [matches[place] for place in sorted(chosen)]

    def _count(self, db: sqlite3.Connection, match: str, generation: int) -> int:
        with self._lock:
            self._turn_to(generation)
            if generation == self._generation and match in self._counts:
                return self._counts[match]
        (count,) = db.execute(_COUNT, (match,)).fetchone()
        with self._lock:
            if generation == self._generation and len(self._counts) < MAX_COUNTED:
                self._counts[match] = count
        return int(count)

    def _sizes_of(self, db: sqlite3.Connection, collection: str, generation: int) -> Sizes:
        """Counted once in each state: with very many documents it takes longer than the search."""
        with self._lock:
            self._turn_to(generation)
            if generation == self._generation and collection in self._sizes:
                return self._sizes[collection]
        here, everywhere = db.execute(_SIZES, (collection,)).fetchone()
        sizes = Sizes(here or 0, everywhere or 0)
        with self._lock:
            if generation == self._generation:
                self._sizes[collection] = sizes
        return sizes

    def _turn_to(self, generation: int) -> None:
        """Forget what was computed of an older state; under the lock."""
        if generation > self._generation:
            self._generation = generation
            self._kept.clear()
            self._counts.clear()
            self._sizes.clear()
            self.held = 0

    def _of(
        self, db: sqlite3.Connection, match: Match, generation: int, collection: str
    ) -> tuple[Ids, _Sums]:
        with self._lock:
            self._turn_to(generation)
            if generation == self._generation and match.hits in self._kept:
                self._kept.move_to_end(match.hits)
                return self._kept[match.hits]
        ids, scores = self._compute(db, match.hits)
        if match.everywhere and len(ids):
            scores *= self._correction(db, match, len(ids), generation, collection)
        self._keep(match.hits, (ids, scores), generation)
        return ids, scores

    def _correction(
        self, db: sqlite3.Connection, match: Match, hits: int, generation: int, collection: str
    ) -> float:
        """From how rare a word is everywhere to how rare it is here."""
        sizes = self._sizes_of(db, collection, generation)
        here = self._count(db, match.here, generation) if match.here else hits
        everywhere = self._count(db, match.everywhere, generation)
        return rarity(here, sizes.here) / rarity(everywhere, sizes.everywhere)

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


def _among(part: tuple[Ids, _Sums], allowed: Ids) -> tuple[Ids, _Sums]:
    ids, scores = part
    wanted = np.isin(ids, allowed)
    return ids[wanted], scores[wanted]
