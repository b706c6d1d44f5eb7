"""From a question to passages: fusion, filters, scores, and whether they have to do with it."""

import asyncio
import threading
from functools import partial

import anyio
import numpy as np
import pytest

from orchestrator.concurrency import Threads
from orchestrator.domain import DocumentId
from orchestrator.errors import (
    CircuitOpen,
    CollectionNotFound,
    DeadlineExceeded,
    EmbedderUnavailable,
    IndexNotReady,
    QueueFull,
    StoreUnavailable,
)
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
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
        self.starting = False
        self.error = None
        self.asked = 0
        self.timeout_s = None

    async def embed_query(self, text, *, timeout_s):
        self.asked += 1
        self.timeout_s = timeout_s
        if self.error is not None:
            raise self.error
        if self.hangs:
            await anyio.sleep_forever()
        return self.vector


@pytest.fixture
def embedder():
    return FakeEmbedder()


@pytest.fixture
def breakers():
    """One that opens at the fifth failure, for each dependency."""
    names = ("embedder", "store")
    return {name: CircuitBreaker(name=name, policy=BreakerPolicy()) for name in names}


@pytest.fixture
def threads():
    threads = Threads(2, name="search")
    yield threads
    threads.close()


@pytest.fixture
def clock():
    """Time that stands still, unless a test moves it: seconds in a list of one."""
    return [0.0]


@pytest.fixture
def make_retriever(store, tmp_path, embedder, breakers, threads, clock):
    def make(**options):
        return Retriever(
            embedder=embedder,
            store=store,
            vectors=CollectionIndexes(folder=tmp_path, store=store, dimension=8),
            lexical=LexicalIndex(database=store.database),
            threads=threads,
            embedder_breaker=breakers["embedder"],
            store_breaker=breakers["store"],
            clock=lambda: clock[0],
            **{"embed_timeout_s": 10.0} | options,
        )

    return make


async def ask(
    retriever,
    text="turbine",
    *,
    collection="default",
    documents=(),
    top_k=10,
    budget_s=20.0,
    check=lambda: None,
):
    return await retriever.retrieve(
        text,
        collection=collection,
        document_ids=documents,
        top_k=top_k,
        deadline=Deadline(budget_s),
        check=check,
    )


@pytest.fixture
def retrieve(make_retriever):
    retriever = make_retriever()

    async def run(text="turbine", **options):
        return await ask(retriever, text, **options)

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


CLAUSE = (
    "The turbine is looked after by the operator of the lock who reads its gauge twice each week "
    "and writes what is found into the book that lies in the hall beside the main gate"
)


async def test_nearly_the_same_words_come_once(retrieve, library):
    """A copy with a word changed is no second source."""
    library.publish("a", CLAUSE)
    library.publish("b", CLAUSE.replace("main", "old"))
    assert len((await retrieve("turbine operator gauge", top_k=5)).passages) == 1


@pytest.mark.parametrize(
    "other",
    [
        CLAUSE.replace("twice", "2 times"),
        CLAUSE.replace("turbine", "pump").replace("operator", "keeper").replace("gauge", "dial"),
        CLAUSE[: len(CLAUSE) // 2],
    ],
)
async def test_what_says_something_else_stays(retrieve, library, other):
    """Another number, other words, or only a part."""
    library.publish("a", CLAUSE)
    library.publish("b", other)
    assert len((await retrieve("turbine operator gauge week", top_k=5)).passages) == 2


async def test_only_the_named_documents_are_searched(retrieve, library):
    """Filters hold for both searches, and across collections."""
    library.publish("a", "the turbine hall")
    mine = library.publish("b", "the turbine house", "the gate")
    library.publish("c", "the turbine room", collection="other")
    found = await retrieve("turbine", documents=[DocumentId("b"), DocumentId("c")])
    assert sorted(passage.chunk_id for passage in found.passages) == mine
    assert found.relevant
    assert len((await retrieve("turbine", top_k=1)).passages) == 1


async def test_what_is_found_shows_that_there_was_something_to_search(retrieve, library):
    """Otherwise, and where documents are named, somebody is asked, and may refuse the search."""
    library.publish("a", "the turbine")
    asked = []

    def check():
        asked.append(True)
        raise CollectionNotFound("There is none.", param="collection")

    assert (await retrieve("turbine", check=check)).passages
    assert not asked
    for options in ({"documents": [DocumentId("a")]}, {"collection": "other"}):
        with pytest.raises(CollectionNotFound):
            await retrieve("turbine", check=check, **options)
    assert len(asked) == 2


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
    "error", [EmbedderUnavailable("gone"), QueueFull("full"), CircuitOpen("left alone")]
)
async def test_without_a_vector_words_must_do(retrieve, library, embedder, error):
    """A question that cannot be embedded is searched by its words, and the answer says so."""
    hit, _ = library.publish("a", "the turbine hall", "the gate")
    assert not (await retrieve()).by_words_only
    embedder.error = error
    found = await retrieve()
    assert found.by_words_only
    assert found.relevant
    assert [(passage.chunk_id, passage.score) for passage in found.passages] == [(hit, 0.0)]


async def test_words_alone_do_not_say_that_there_is_nothing(retrieve, library, embedder):
    """Nothing found by words alone proves nothing: the embedder's error is the answer."""
    library.publish("a", "the turbine hall")
    embedder.error = EmbedderUnavailable("gone", retry_after_s=3)
    with pytest.raises(EmbedderUnavailable) as refusal:
        await retrieve("Who won the cup?")
    assert refusal.value.retry_after_s == 3


async def test_a_dead_embedder_is_left_alone(retrieve, library, embedder, breakers):
    """Five failures in a row, and nobody waits for it any longer."""
    library.publish("a", "the turbine")
    embedder.error = EmbedderUnavailable("does nothing")
    for _ in range(5):
        assert (await retrieve()).by_words_only
    assert breakers["embedder"].state == "open"
    assert embedder.asked == 5
    assert (await retrieve()).by_words_only
    assert embedder.asked == 5


async def test_an_embedder_that_is_starting_has_not_failed(retrieve, library, embedder, breakers):
    """However many ask meanwhile: they are answered by words, and are told; its breaker is not."""
    library.publish("a", "the turbine")
    embedder.starting, embedder.error = True, EmbedderUnavailable("loading")
    for _ in range(20):
        assert (await retrieve()).by_words_only is embedder.error
    assert breakers["embedder"].state == "closed"
    embedder.starting = embedder.error = None
    assert (await retrieve()).by_words_only is None


@pytest.mark.parametrize("error", [QueueFull("full"), TimeoutError()])
async def test_load_is_not_the_embedders_fault(make_retriever, library, embedder, breakers, error):
    """Neither a full lane nor a child that works too slowly opens the breaker; words must do."""
    library.publish("a", "the turbine")
    retriever = make_retriever(embed_timeout_s=0.5)
    embedder.error = error
    for _ in range(20):
        assert (await ask(retriever)).by_words_only
    assert breakers["embedder"].state == "closed"
    assert (embedder.asked, embedder.timeout_s) == (20, 0.5)


async def test_a_question_that_ran_out_of_time_is_told_so(retrieve, library, embedder):
    """If its words are not found either, it is 503 with a time to return."""
    library.publish("a", "the turbine")
    embedder.error = TimeoutError()
    with pytest.raises(EmbedderUnavailable, match="not embedded within 10 s") as refusal:
        await retrieve("Who won the cup?")
    assert refusal.value.retry_after_s == 1


async def test_a_failing_store_is_left_alone(retrieve, library, store, embedder, breakers):
    """Five failures in a row, and the next question is refused before anything is computed."""
    library.publish("a", "the turbine")
    store.close()
    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            await retrieve()
    asked = embedder.asked
    with pytest.raises(CircuitOpen) as refusal:
        await retrieve()
    assert refusal.value.retry_after_s > 0
    assert embedder.asked == asked


async def test_a_search_beside_a_replacement_finds_the_new_document(
    make_retriever, library, chunk, monkeypatch
):
    """Found in the index, gone from the store: it searches once more when the change is complete."""
    library.publish("old", "the turbine hall")
    retriever = make_retriever()
    await ask(retriever)
    vectors, changes = retriever._vectors, []
    search = vectors.search

    def overtaken(*args, **options):
        near = search(*args, **options)
        if not changes:
            rows = chunk(0, "the engine room").embedding[None, :]
            publish = partial(library.change, "new", "the engine room", replaces=DocumentId("old"))
            changes.append(vectors.change("default", publish, embeddings=rows))
        return near

    monkeypatch.setattr(vectors, "search", overtaken)
    found = await ask(retriever, text="none of its words")
    assert [passage.document_id for passage in found.passages] == ["new"]


async def test_an_index_that_is_being_built_holds_up_no_question(make_retriever, library):
    """Words must do, and it is said why; nothing found by words alone proves nothing."""
    (hit,) = library.publish("a", "the turbine hall")
    retriever = make_retriever()
    retriever._vectors.close()
    found = await ask(retriever)
    assert isinstance(found.by_words_only, IndexNotReady)
    assert [passage.chunk_id for passage in found.passages] == [hit]
    assert found.passages[0].score != 0
    with pytest.raises(IndexNotReady):
        await ask(retriever, text="none of its words")


class HangingStore:
    """Passages that take as long as the test says."""

    def __init__(self, store, clock):
        self._store = store
        self._clock = clock
        self.took_s = 0.0
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.may_go.set()

    def __getattr__(self, name):
        return getattr(self._store, name)

    def passages(self, ids, query):
        self.entered.set()
        self.may_go.wait(10)
        self._clock[0] += self.took_s
        return self._store.passages(ids, query)


async def test_searches_that_crawl_open_the_breaker(
    make_retriever, store, library, breakers, clock
):
    """Ten that each take longer than `store_slow_s` are enough."""
    library.publish("a", "the turbine")
    slow = HangingStore(store, clock)
    retriever = make_retriever(store_slow_s=5.0)
    retriever._store = slow
    slow.took_s = 5.1
    for _ in range(10):
        assert breakers["store"].state == "closed"
        assert (await ask(retriever)).passages
    assert breakers["store"].state == "open"


@pytest.mark.parametrize(("after_s", "failures"), [(0.1, 0), (5.1, 1)])
async def test_giving_up_on_a_search_counts_if_it_was_slow(
    make_retriever, store, library, breakers, clock, after_s, failures
):
    """A caller that leaves at once says nothing of the store; one that leaves after long does."""
    library.publish("a", "the turbine")
    hanging = HangingStore(store, clock)
    hanging.may_go.clear()
    retriever = make_retriever(store_slow_s=5.0)
    retriever._store = hanging
    task = asyncio.create_task(ask(retriever))
    await asyncio.to_thread(hanging.entered.wait, 10)
    clock[0] += after_s
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    hanging.may_go.set()
    assert breakers["store"]._window.total.failures == failures


@pytest.mark.parametrize(
    ("text", "relevant"),
    [("the sea level", True), ("level of beer in barrels somewhere in cellars", False)],
)
def test_words_alone_are_asked_for_less(library, store, text, relevant):
    """A quarter of the question's words is enough without a vector, and less is not."""
    ids = library.publish("a", "high sea water on winter days")
    passages = store.passages(ids, None).values()
    assert is_relevant(text, passages, best_cosine=None) is relevant
    assert is_relevant("sea of four words wine", passages, best_cosine=None)
    assert not is_relevant("sea of four words wine", passages, best_cosine=0.1)


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
