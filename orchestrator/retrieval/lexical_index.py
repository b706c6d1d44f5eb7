"""
Full-text search over the same SQLite file (FTS5, BM25).

The index is kept by triggers inside the store's own transactions, so it always holds exactly the
chunks that are published.
"""

import json
import re
import sqlite3
from collections.abc import Sequence

import numpy as np

from orchestrator.domain import ChunkId, DocumentId
from orchestrator.retrieval.arrays import Ids
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.term_scores import Match, TermScores

_MAX_TERMS = 64
_MAX_PLACES = 32
_WORD = re.compile(r"\w+")
# What folding and stemming could turn into the word of a place: "C1", "ć1", "d2s".
_LIKE_A_PLACE = re.compile(r"\w[0-9]\w*")

# Words that every page has. Question words are among them: they stand in the question, not in the
# answer.
STOP_WORDS = frozenset(
    """
    a about also an and any are as at be been being but by can could did do does doing for from had
    has have how i if in into is it its may me might more most my no nor not of on or our shall
    should so some such than that the their them then there these they this those to was we were
    what when where which while who whom whose why will with would you your
    """.split()  # noqa: SIM905 - a list of them would take two pages
)


_COLUMNS = "{filename heading text}"
# Ids are given once: there are as many chunks as from the first one to the last, or fewer.
_COLLECTION = """
    SELECT 'c' || id AS place,
        (SELECT count(*) FROM (SELECT 1 FROM collections LIMIT 2)) AS collections,
        (SELECT sum(generation) FROM collections) AS generation,
        ifnull((SELECT max(id) FROM chunks) - (SELECT min(id) FROM chunks) + 1, 0) AS chunks
    FROM collections WHERE name = ?
"""
_PLACES = """
    SELECT 'd' || seq FROM documents
    WHERE collection = ? AND id IN (SELECT value FROM json_each(?))
"""
_CHUNKS_OF_DOCUMENTS = """
    SELECT chunks.id FROM chunks JOIN documents ON documents.seq = chunks.document_seq
    WHERE documents.collection = ? AND documents.id IN (SELECT value FROM json_each(?))
"""


class LexicalIndex:
    """
    BM25 over the words of file name, heading and text.

    Args:
        database: The document store's.
        weights: How much a hit counts in (file name, heading, text).
    """

    def __init__(
        self, *, database: Database, weights: tuple[float, float, float] = (2.0, 1.0, 1.0)
    ) -> None:
        self._database = database
        self._term_scores = TermScores(weights)

    def search(
        self,
        question: str,
        *,
        collection: str,
        k: int,
        document_ids: Sequence[DocumentId] = (),
    ) -> list[tuple[ChunkId, float]]:
        """
        The k chunks that share the rarest words with the question, best first.

        Args:
            question: Plain text; nothing in it is read as query syntax.
            collection: Where to search.
            k: At least 1.
            document_ids: Search only these; empty means the whole collection.

        Returns:
            (chunk, score) with a score above 0, comparable within one answer only; nothing if the
            question consists of stop words.
        """
        words = terms(question)
        if not words:
            return []
        with self._database.read() as db:
            found = db.execute(_COLLECTION, (collection,)).fetchone()
            if found is None:
                return []
            alone = found["collections"] == 1
            matches = [_match(word, found["place"], alone=alone) for word in words]
            allowed = None
            if len(document_ids) > _MAX_PLACES:
                allowed = _chunks_of(db, collection, document_ids)
            elif document_ids:
                places = _places_of(db, collection, document_ids)
                matches = [_within(m, w, places) for m, w in zip(matches, words, strict=True)]
                if not places:
                    return []
            return self._term_scores.best(
                db,
                matches,
                generation=found["generation"],
                chunks=found["chunks"],
                k=k,
                collection=collection,
                allowed=allowed,
            )


def _places_of(
    db: sqlite3.Connection, collection: str, document_ids: Sequence[DocumentId]
) -> list[str]:
    """What the documents are called in the full-text index."""
    return [place for (place,) in db.execute(_PLACES, (collection, json.dumps(list(document_ids))))]


def _chunks_of(db: sqlite3.Connection, collection: str, document_ids: Sequence[DocumentId]) -> Ids:
    """Their chunks: BM25 walks through every word of a query, so only some documents can be words."""
    values = (collection, json.dumps(list(document_ids)))
    rows = db.execute(_CHUNKS_OF_DOCUMENTS, values).fetchall()
    return np.fromiter((chunk_id for (chunk_id,) in rows), dtype=np.int64, count=len(rows))


def _within(match: Match, word: str, places: Sequence[str]) -> Match:
    """The same word in some documents only."""
    hits = f'place : ({_any(places)}) AND {_COLUMNS} : "{word}"'
    return Match(hits, here=match.hits, everywhere=match.everywhere)


def _match(word: str, place: str, *, alone: bool) -> Match:
    """One word in one collection; `alone` if there is no other."""
    if not alone:
        anywhere = f'{_COLUMNS} : "{word}"'
        return Match(f'place : "{place}" AND {anywhere}', everywhere=anywhere)
    if _LIKE_A_PLACE.fullmatch(word):
        return Match(f'place : "{place}" AND {_COLUMNS} : "{word}"')
    # Naming neither the place nor the columns finds the same chunks with the same scores, and walks
    # through fewer words.
    return Match(f'"{word}"')


def _any(words: Sequence[str]) -> str:
    return " OR ".join(f'"{word}"' for word in words)


def terms(question: str) -> list[str]:
    """
    The words of the question that are worth looking for, lower case, each once, in order.

    Letters, digits and underscores only: a term in quotes can hold no FTS5 syntax.
    """
    # Half surrogate pairs cannot be sent to SQLite.
    valid = question.encode("utf-8", "replace").decode()
    words = dict.fromkeys(word for word in _WORD.findall(valid.lower()) if word not in STOP_WORDS)
    return list(words)[:_MAX_TERMS]
