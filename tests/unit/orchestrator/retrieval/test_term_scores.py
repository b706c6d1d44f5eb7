"""Scores kept by word: the same as FTS5's own, never of an older state, never without bound."""

import pytest

from orchestrator.domain import DocumentId
from orchestrator.retrieval.lexical_index import LexicalIndex, terms
from orchestrator.retrieval.term_scores import Match, TermScores

WEIGHTS = (2.0, 1.0, 1.0)
TEXTS = [
    "the turbine turns in the hall",
    "the gate and the turbine, and the gate again",
    "gates close at high water",
    "high water in the hall of the turbine",
    "nothing of interest here at all, and rather long at that, for the sake of its length",
    "water water water",
]
QUESTIONS = [
    "turbine",
    "Which gate closes at high water?",
    "turbine hall gates water",
    "gates gate gating",
    "high interest in length",
]


def by_fts5(store, question, *, columns=""):
    """What one FTS5 query for the whole question gives."""
    match = columns + "(" + " OR ".join(f'"{word}"' for word in terms(question)) + ")"
    with store.database.read() as db:
        rows = db.execute(
            "SELECT rowid, -bm25(chunks_fts, 0.0, ?, ?, ?) AS score FROM chunks_fts"
            " WHERE chunks_fts MATCH ? ORDER BY score DESC, rowid",
            (*WEIGHTS, match),
        ).fetchall()
    return [tuple(row) for row in rows]


def best(scores, store, question, *, generation=1, k=100):
    with store.database.read() as db:
        words = [Match(f'"{word}"') for word in terms(question)]
        return scores.best(db, words, generation=generation, chunks=len(TEXTS), k=k)


@pytest.fixture
def lexical(store):
    return LexicalIndex(database=store.database)


@pytest.mark.parametrize("question", QUESTIONS)
def test_sums_are_those_of_the_whole_question(lexical, library, store, question):
    """To the bit and in the same order, the first time and from memory."""
    library.publish("a", *TEXTS)
    expected = by_fts5(store, question)
    assert expected
    for _ in range(2):
        assert lexical.search(question, collection="default", k=100) == expected
    assert lexical.search(question, collection="default", k=2) == expected[:2]


@pytest.mark.parametrize("question", ["turbine hall", "the c1 of d2 turbine", "c1 d1 d2s"])
def test_beside_another_collection_too(lexical, library, store, question):
    """With a second collection, or words that look like places, only one's own is found, as alone."""
    mine = library.publish("a", *TEXTS, "part c1 of the d2")
    columns = "{filename heading text} : "
    alone = lexical.search(question, collection="default", k=100)
    assert alone == by_fts5(store, question, columns=columns)
    library.publish("b", *TEXTS, collection="other")
    beside = lexical.search(question, collection="default", k=100)
    assert {i for i, _ in beside} <= set(mine)
    assert [i for i, _ in beside] == [i for i, _ in alone]
    assert dict(beside) == pytest.approx(dict(alone), rel=0.02)  # the average length is everybody's


@pytest.mark.parametrize(
    "documents",
    [(), (DocumentId("a"),), [DocumentId(f"x{n}") for n in range(40)] + [DocumentId("a")]],
)
def test_what_others_have_changes_no_order(lexical, library, documents):
    """
    A word that another collection is full of is as rare in this one as it was.

    Else whoever has a chunk with each of two words could tell from their order which of them stands
    in somebody else's documents, and by adding more of their own, how often.
    """
    library.publish(
        "a", "the zanzibar is here", "the turbine is here", "of a turbine and more", "rest"
    )
    for extra in ("c", "d"):
        library.publish(extra, "nothing of the sort", collection=f"other-{extra}")
    asked = {"collection": "default", "k": 10, "document_ids": documents}
    before = lexical.search("zanzibar turbine", **asked)
    library.publish("b", *["zanzibar at length"] * 50, collection="other")
    after = lexical.search("zanzibar turbine", **asked)
    assert len(before) == 3
    assert [i for i, _ in after] == [i for i, _ in before]
    assert dict(after) == pytest.approx(dict(before), rel=0.2)


def test_every_change_of_the_chunks_is_seen(lexical, library, store):
    """A published and a deleted document change what is found, and every score."""
    library.publish("a", *TEXTS)
    before = lexical.search("turbine", collection="default", k=100)
    library.publish("b", "a turbine more")
    more = lexical.search("turbine", collection="default", k=100)
    assert len(more) == len(before) + 1
    assert more == by_fts5(store, "turbine")
    library.publish("c", "another turbine", collection="other")
    assert [i for i, _ in lexical.search("turbine", collection="default", k=100)] == [
        i for i, _ in more
    ]
    store.delete(DocumentId("a"))
    store.delete(DocumentId("c"))
    assert lexical.search("turbine", collection="default", k=100) == by_fts5(store, "turbine")


def test_what_is_kept_is_asked_for_once(library, store):
    """A word that is known costs no query; in a newer state every word is unknown."""
    library.publish("a", *TEXTS)
    scores = TermScores(WEIGHTS)
    asked = []
    compute = scores._compute
    scores._compute = lambda db, match: asked.append(match) or compute(db, match)
    best(scores, store, "turbine hall")
    best(scores, store, "turbine gate")
    assert asked == ['"turbine"', '"hall"', '"gate"']
    best(scores, store, "turbine", generation=2)
    assert asked[3:] == ['"turbine"']


def test_an_older_reader_leaves_nothing_behind(library, store):
    """Whoever still sees an older state neither gets the newer scores nor spoils them."""
    library.publish("a", *TEXTS)
    scores = TermScores(WEIGHTS)
    newer = best(scores, store, "turbine", generation=2)
    held = scores.held
    library.publish("b", "a turbine more")  # as if it had not been there in generation 2
    assert best(scores, store, "turbine", generation=1) != newer
    assert best(scores, store, "gate", generation=1)
    assert scores.held == held
    assert best(scores, store, "turbine", generation=2) == newer


def test_what_is_kept_is_bounded(library, store):
    """The longest unused word gives way, and what is too large is not kept at all."""
    library.publish("a", *TEXTS)
    scores = TermScores(WEIGHTS, max_held=7)
    for question in ("turbine", "interest", "turbine", "hall"):  # 4 + 2, then 3 more
        best(scores, store, question)
        assert scores.held <= 7
    assert list(scores._kept) == ['"turbine"', '"hall"']
    tiny = TermScores(WEIGHTS, max_held=3)
    best(tiny, store, "turbine")
    assert tiny.held == 0


def test_equals_come_in_the_order_of_their_ids(lexical, library, store):
    """As many as there are, also where only some of them are wanted."""
    ids = library.publish("a", *(["the turbine", "the gate", "gate and turbine"] * 40))
    found = [chunk_id for chunk_id, _ in lexical.search("turbine", collection="default", k=30)]
    assert found == ids[0::3][:30]


def test_a_question_that_no_chunk_shares_a_word_with(lexical, library):
    """Nothing is found, and nothing breaks."""
    library.publish("a", *TEXTS)
    assert lexical.search("aardvark", collection="default", k=5) == []
    assert lexical.search("aardvark", collection="nowhere", k=5) == []


def test_the_commonest_words_are_left_out_of_many_hits(library, store):
    """Those that find most, until the rest may be looked up; what is left is summed as ever."""
    library.publish("a", *TEXTS)
    scores = TermScores(WEIGHTS, max_hits=5)
    # turbine 3, water 3, interest 1: together 7, and without one of the commonest 4.
    assert best(scores, store, "water turbine interest") == by_fts5(store, "water interest")
    assert best(scores, store, "water interest") == by_fts5(store, "water interest")


def test_few_hits_leave_nothing_out(library, store):
    """Nor is anything counted that could not be too much."""
    library.publish("a", *TEXTS)
    question = "turbine hall gates water"
    for max_hits in (11, 100):
        scores = TermScores(WEIGHTS, max_hits=max_hits)
        assert best(scores, store, question) == by_fts5(store, question)


def test_one_word_that_finds_something_stays(library, store):
    """However common it is, and however rare the others are that find nothing."""
    library.publish("a", *TEXTS)
    scores = TermScores(WEIGHTS, max_hits=2)
    assert best(scores, store, "zeppelin water") == by_fts5(store, "water")
    assert best(scores, store, "zeppelin airship") == []


def test_counts_are_of_the_present_state(library, store):
    """A word that was rare before a document came is not taken for rare after it."""
    library.publish("a", *TEXTS)
    scores = TermScores(WEIGHTS, max_hits=4)
    assert best(scores, store, "interest water") == by_fts5(store, "interest water")
    library.publish("b", *(f"interest {n}" for n in range(9)))
    assert best(scores, store, "interest water", generation=2) == by_fts5(store, "water")
