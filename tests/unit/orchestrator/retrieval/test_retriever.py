"""From a question to passages: fusion, filters, scores, and whether they have to do with it."""

import anyio
import numpy as np
import pytest
from anyio import CapacityLimiter

from orchestrator.domain import DocumentId
from orchestrator.errors import DeadlineExceeded
from orchestrator.resilience.deadline import Deadline
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.lexical_index import LexicalIndex
from orchestrator.retrieval.relevance import is_relevant
from orchestrator.retrieval.retriever import Retriever, fuse


class FakeEmbedder:
    """Gives the vector it was told to, for any question."""

    def __init__(self):
        self.vector = np.ones(8, dtype=np.float32) / np.float32(np.sqrt(8))
        self.hangs = False

    async def embed_query(self, text):
        if self.hangs:
            await anyio.sleep_forever()
        return self.vector


@pytest.fixture
def embedder():
    return FakeEmbedder()


@pytest.fixture
def retrieve(store, tmp_path, embedder):
    retriever = Retriever(
        embedder=embedder,
        store=store,
        vectors=CollectionIndexes(folder=tmp_path, store=store, dimension=8),
        lexical=LexicalIndex(database=store.database),
        limiter=CapacityLimiter(2),
    )

    async def run(text, *, collection="default", documents=(), top_k=10, budget_s=20.0):
        return await retriever.retrieve(
            text,
            collection=collection,
            document_ids=documents,
            top_k=top_k,
            deadline=Deadline(budget_s),
        )

    return run


def test_fusion_adds_reciprocal_ranks():
    """1/61 + 1/62 beats 1/61 + nothing; a tie goes to the first ranking."""
    assert fuse([[1, 2, 3], [2, 4]]) == [2, 1, 4, 3]
    assert fuse([[1], [2]]) == [1, 2]
    assert fuse([[5, 6], [6, 5]]) == [5, 6]
    assert fuse([[], []]) == []


async def test_both_searches_contribute(retrieve, library, store, embedder):
    """The nearest vector and the best words come first, whichever search found them."""
    filler = [f"nothing to see here, number {n}" for n in range(60)]
    ids = library.publish("a", "by meaning only", "the turbine by its word", *filler)
    _, embeddings = store.embeddings("default")
    embedder.vector = embeddings[0]
    passages = (await retrieve("turbine", top_k=5)).passages
    assert {passages[0].chunk_id, passages[1].chunk_id} == set(ids[:2])
    by_id = {passage.chunk_id: passage.score for passage in passages}
    assert by_id[ids[0]] == pytest.approx(1.0, abs=1e-6)
    assert by_id[ids[1]] == pytest.approx(float(embeddings[0] @ embeddings[1]), abs=1e-6)


async def test_the_same_words_come_once(retrieve, library):
    """Identical passages of two documents do not fill the answer."""
    library.publish("a", "the turbine  hall", "something else")
    library.publish("b", "the turbine\nhall")
    passages = (await retrieve("turbine hall", top_k=3)).passages
    assert len(passages) == 2
    assert len({" ".join(passage.text.split()) for passage in passages}) == 2


async def test_only_the_named_documents_are_searched(retrieve, library):
    """Filters hold for both searches, and across collections."""
    library.publish("a", "the turbine hall")
    mine = library.publish("b", "the turbine house", "the gate")
    library.publish("c", "the turbine room", collection="other")
    found = await retrieve("turbine", documents=[DocumentId("b"), DocumentId("c")])
    assert sorted(passage.chunk_id for passage in found.passages) == mine
    assert found.relevant
    assert len((await retrieve("turbine", top_k=1)).passages) == 1


async def test_an_empty_collection_gives_nothing(retrieve):
    """Nothing found is not relevant, and not an error."""
    found = await retrieve("turbine")
    assert (found.passages, found.relevant) == ((), False)


async def test_a_chunk_deleted_behind_the_index_is_left_out(retrieve, library, store):
    """What the store no longer has is not shown, even if the index still finds it."""
    library.publish("a", "the turbine")
    kept = library.publish("b", "the gate")
    await retrieve("turbine")
    store.delete(DocumentId("a"))
    found = await retrieve("turbine")
    assert [passage.chunk_id for passage in found.passages] == kept


async def test_time_that_runs_out_is_an_error(retrieve, library, embedder):
    """A hung embedder costs the question its time and no more."""
    library.publish("a", "the turbine")
    embedder.hangs = True
    with pytest.raises(DeadlineExceeded):
        await retrieve("turbine", budget_s=0.05)


async def test_far_passages_without_a_word_in_common_are_not_relevant(
    retrieve, library, store, embedder
):
    """Neither near in meaning nor in words: found, and said to be unrelated."""
    library.publish("a", "sea level in winter")
    _, embeddings = store.embeddings("default")
    embedder.vector = -embeddings[0]
    found = await retrieve("Who won the football cup?")
    assert len(found.passages) == 1
    assert not found.relevant
    assert (await retrieve("How high is the sea in winter?")).relevant
    embedder.vector = embeddings[0]
    assert (await retrieve("Who won the football cup?")).relevant


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is this document about?", True),
        ("Summarize the report.", True),
        ("What is it about?", True),  # nothing but stop words
        ("Which enzyme splits lactose?", False),
    ],
)
def test_questions_about_the_whole_document_are_relevant(question, expected):
    """They are near to no passage in particular, and answerable from any."""
    assert is_relevant(question, [], best_cosine=0.1) is expected
