"""
Full-text search over the same SQLite file (FTS5, BM25).

The index is kept by triggers inside the store's own transactions, so it always holds exactly the
chunks that are published.
"""

import json
import re
import sqlite3
from collections.abc import Sequence

from orchestrator.domain import ChunkId, DocumentId
from orchestrator.retrieval.database import Database
from orchestrator.retrieval.term_scores import TermScores

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


_HITS = """
    SELECT rowid AS id, -bm25(chunks_fts, 0.0, :filename, :heading, :text) AS score
    FROM chunks_fts
    WHERE chunks_fts MATCH :match
"""
_BEST = f"{_HITS} ORDER BY score DESC, rowid LIMIT :k"
_BEST_OF_MANY_DOCUMENTS = f"""
    WITH hits AS MATERIALIZED ({_HITS})
    SELECT hits.id, score
    FROM hits
    JOIN chunks ON chunks.id = hits.id
    JOIN documents ON documents.seq = chunks.document_seq
    WHERE documents.id IN (SELECT value FROM json_each(:document_ids))
    ORDER BY score DESC, hits.id
    LIMIT :k
"""  # noqa: S608 - a constant
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
        self._weights = weights
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
            if document_ids:
                return self._among(db, words, collection, document_ids, k)
            place = db.execute(_COLLECTION, (collection,)).fetchone()
            if place is None:
                return []
            matches = [
                _match(word, place["place"], alone=place["collections"] == 1) for word in words
            ]
            return self._term_scores.best(
                db, matches, generation=place["generation"], chunks=place["chunks"], k=k
            )

    def _among(
        self,
        db: sqlite3.Connection,
        words: Sequence[str],
        collection: str,
        document_ids: Sequence[DocumentId],
        k: int,
    ) -> list[tuple[ChunkId, float]]:
        """The k best chunks of some documents."""
        # BM25 walks through every word of the query, so only some documents can be words of it.
        many = len(document_ids) > _MAX_PLACES
        names = json.dumps(list(document_ids))
        if many:
            rows = db.execute("SELECT 'c' || id FROM collections WHERE name = ?", (collection,))
        else:
            rows = db.execute(_PLACES, (collection, names))
        places = [place for (place,) in rows]
        if not places:
            return []
        filename, heading, text = self._weights
        values: dict[str, str | int | float] = {
            "match": f"place : ({_any(places)}) AND {_COLUMNS} : ({_any(words)})",
            "filename": filename,
            "heading": heading,
            "text": text,
            "document_ids": names,
            "k": k,
        }
        found = db.execute(_BEST_OF_MANY_DOCUMENTS if many else _BEST, values).fetchall()
        return [(ChunkId(chunk_id), score) for chunk_id, score in found]


def _match(word: str, place: str, *, alone: bool) -> str:
    """The FTS5 query for one word in one collection; `alone` if there is no other."""
    if alone and not _LIKE_A_PLACE.fullmatch(word):
        # Naming neither the place nor the columns finds the same chunks with the same scores, and
        # walks through fewer words.
        return f'"{word}"'
    return f'place : "{place}" AND {_COLUMNS} : "{word}"'


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
