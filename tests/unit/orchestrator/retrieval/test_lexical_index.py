"""Search by words: what counts, what is filtered, and that no question is query syntax."""

import pytest

from orchestrator.domain import DocumentId
from orchestrator.retrieval.lexical_index import LexicalIndex, terms


@pytest.fixture
def lexical(store):
    return LexicalIndex(database=store.database)


def found(lexical, question, **options):
    options = {"collection": "default", "k": 10} | options
    return [chunk_id for chunk_id, _ in lexical.search(question, **options)]


def test_the_rarest_words_decide(lexical, library):
    """A word that few chunks have counts more than one that many have."""
    ids = library.publish("a", "gate gate water", "gate turbine water", "gate water")
    assert found(lexical, "What turns the turbine at the gate?")[0] == ids[1]


def test_scores_are_positive_and_fall(lexical, library):
    """The best comes first."""
    library.publish("a", "turbine hall", "turbine turbine", "hall and much more text besides")
    scores = [score for _, score in lexical.search("turbine", collection="default", k=10)]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0


def test_word_forms_and_accents_are_folded(lexical, library):
    """Plural, case and diacritics make no difference."""
    ids = library.publish("a", "Die Schleusentore der Überlaufbecken", "two closed gates")
    assert found(lexical, "UBERLAUFBECKEN?") == ids[:1]
    assert found(lexical, "closing gate") == ids[1:]


def test_the_files_name_and_the_heading_are_searched(lexical, library, chunk, store):
    """A chunk is found by what its file and its section are called."""
    named = library.publish("a", "revenue grew", filename="NETFLIX_2017_10K.pdf")
    assert found(lexical, "netflix") == named
    document_id = library.queue("b")
    chunks = [chunk(0, "it closes at dusk", heading="Sluice operation")]
    headed = store.publish(document_id, pages=[], chunks=chunks, warning=None).added
    assert found(lexical, "sluice") == list(headed)


def test_search_stays_in_its_collection_and_documents(lexical, library):
    """Neither another collection nor another document gives hits."""
    a = library.publish("a", "the turbine")
    b = library.publish("b", "the turbine")
    library.publish("c", "the turbine", collection="other")
    assert sorted(found(lexical, "turbine")) == a + b
    assert found(lexical, "turbine", document_ids=[DocumentId("b")]) == b
    assert found(lexical, "turbine", document_ids=[DocumentId("c")]) == []
    assert found(lexical, "turbine", k=1) == a


def test_the_filter_holds_for_many_documents(lexical, library):
    """Hundreds of ids, most of them unknown, filter as a few do."""
    library.publish("a", "the turbine")
    b = library.publish("b", "the turbine")
    library.publish("c", "the turbine", collection="other")
    names = [DocumentId(name) for name in ("b", "c", *(f"unknown {n}" for n in range(500)))]
    assert found(lexical, "turbine", document_ids=names) == b
    assert found(lexical, "turbine", document_ids=names[2:]) == []


def test_no_question_can_name_a_place(lexical, library, store):
    """The words that stand for collections and documents are not found by asking for them."""
    library.publish("a", "the turbine")
    assert found(lexical, "c1 d1 place") == []


def test_deleted_words_are_not_found(lexical, library, store):
    """The index follows the store."""
    library.publish("a", "the turbine")
    kept = library.publish("b", "the turbine")
    store.delete(DocumentId("a"))
    assert found(lexical, "turbine") == kept
    store.delete(DocumentId("b"))
    assert found(lexical, "turbine") == []
    assert library.publish("c", "the turbine") == found(lexical, "turbine")


@pytest.mark.parametrize(
    "question",
    [
        '"',
        '"turbine',
        'turbine" OR "',
        "turbine AND",
        "NOT turbine NEAR(",
        "text:turbine",
        "turbine*",
        "^turbine",
        "{text} : turbine",
        "turbine); DROP TABLE chunks; --",
        "(turbine",
        "-turbine",
        "turbine \ud800 \0",
        "turbine + 'hall'",
        "' OR 1=1 --",
        "_ __ _turbine_",
        "turbine " * 5000,
    ],
)
def test_no_question_is_query_syntax(lexical, library, question):
    """Operators and quotes are only text; the words among them are searched."""
    ids = library.publish("a", "the turbine hall")
    expected = ids if "turbine" in question else []
    assert found(lexical, question) == expected


@pytest.mark.parametrize("question", ["", "   ", "?!", "what is the", "\ud800"])
def test_a_question_without_words_finds_nothing(lexical, library, question):
    """Stop words alone are no search."""
    library.publish("a", "what is the matter")
    assert found(lexical, question) == []


def test_terms_are_few_and_distinct():
    """A question of a thousand words is searched by its first 64 distinct ones."""
    assert terms("The Gate, the gate and the TURBINE_hall") == ["gate", "turbine_hall"]
    assert len(terms(" ".join(f"word{n}" for n in range(1000)))) == 64
