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

_MAX_TERMS = 64
_MAX_PLACES = 32
_WORD = re.compile(r"\w+")

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
        filename, heading, text = self._weights
        # BM25 walks through every word of the query, so only some documents can be words of it.
        many = len(document_ids) > _MAX_PLACES
        with self._database.read() as db:
            places = _places(db, collection, () if many else document_ids)
            if not places:
                return []
            values: dict[str, str | int | float] = {
                "match": f"place : ({_any(places)}) AND {{filename heading text}} : ({_any(words)})",
                "filename": filename,
                "heading": heading,
                "text": text,
                "document_ids": json.dumps(list(document_ids)),
                "k": k,
            }
            rows = db.execute(_BEST_OF_MANY_DOCUMENTS if many else _BEST, values).fetchall()
        return [(ChunkId(row["id"]), float(row["score"])) for row in rows]


def _places(
    db: sqlite3.Connection, collection: str, document_ids: Sequence[DocumentId]
) -> list[str]:
    """The words that stand for where to search; none if there is no such place."""
    if document_ids:
        rows = db.execute(_PLACES, (collection, json.dumps(list(document_ids))))
    else:
        rows = db.execute("SELECT 'c' || id FROM collections WHERE name = ?", (collection,))
    return [place for (place,) in rows]


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
