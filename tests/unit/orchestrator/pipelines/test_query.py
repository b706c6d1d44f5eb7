"""The ladder: a whole answer, a smaller one, another engine, the passages, a refusal; each says so."""

from contextlib import aclosing
from dataclasses import replace

import pytest

from orchestrator.domain import (
    Answer,
    ChunkId,
    DocumentId,
    EngineChunk,
    Passage,
    Question,
    Queued,
    Sources,
    Token,
    Usage,
)
from orchestrator.errors import (
    CircuitOpen,
    EngineOverloaded,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    IndexNotReady,
    NotReady,
    Overloaded,
)
from orchestrator.generation.engine_client import EngineModel
from orchestrator.generation.engine_keeper import EngineLife
from orchestrator.generation.engine_monitor import EngineState
from orchestrator.generation.engines import Engine
from orchestrator.generation.tokenizer import EstimatedTokens
from orchestrator.pipelines.query import QueryPipeline
from orchestrator.resilience.admission import AdmissionGate, Bulkhead
from orchestrator.resilience.admission_policy import AdmissionLimits
from orchestrator.resilience.deadline import Deadline
from orchestrator.retrieval.retriever import Retrieved

QUESTION = Question("When do the gates close?", "default", top_k=6, max_tokens=256)
STRICT = replace(QUESTION, degrade=False)


def passage(n: int) -> Passage:
    return Passage(ChunkId(n), DocumentId(f"doc-{n}"), "a.pdf", n, n, 0, 9, f"text {n}", 0.5, 40)


class FakeLibrary:
    async def require_searchable(self, collection, document_ids):
        return None

    def check_searchable(self, collection, document_ids):
        return None


class FakeRetriever:
    """Finds as many passages as were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.by_words_only = None
        self.relevant = True

    async def retrieve(self, text, *, collection, document_ids, top_k, deadline, check, trace):
        check()
        self.asked.append(top_k)
        found = tuple(passage(n + 1) for n in range(top_k))
        return Retrieved(found, relevant=self.relevant, by_words_only=self.by_words_only)


class FakeEngineClient:
    """Says one sentence, or fails before or in the middle of it."""

    def __init__(self) -> None:
        self.requests = []
        self.fails: Exception | None = None
        self.fails_after: Exception | None = None

    async def stream(self, request, deadline):
        self.requests.append(request)
        if self.fails:
            raise self.fails
        yield EngineChunk("At 3.40 metres", tokens=3)
        if self.fails_after:
            raise self.fails_after
        yield EngineChunk(" [1].", tokens=2, finish_reason="stop", usage=Usage(90, 5))


class FakeMonitor:
    window_tokens = 4096

    def __init__(self) -> None:
        self.down = False
        self.state = EngineState(EngineModel("m", 4096))

    def require(self):
        if self.down:
            raise EngineUnavailable("The engine is loading.", retry_after_s=5)
        return EngineModel("m", 4096)


class FakeWakening:
    """A notice while the engine is asleep, which ends with the first question that waits."""

    def __init__(self) -> None:
        self.asleep = False
        self.falls_asleep = False
        self.always = False
        self.waited = 0

    async def wait(self, deadline):
        if self.asleep:
            self.waited += 1
            yield Queued(1, 20.0)
            self.asleep = False

    unloads = 0

    async def slept_since(self, unloads):
        self.asleep, self.falls_asleep = self.falls_asleep or self.always, False
        return self.asleep


class Setting:
    """A pipeline and everything it talks to."""

    def __init__(self, *, fallback: bool = False, places: int = 4, **limits) -> None:
        self.gate = AdmissionGate(
            limits=AdmissionLimits(**{
                "max_concurrent": 2,
                "max_queued": 0,
                "wait_target_s": 5.0,
                **limits,
            })
        )
        self.retriever = FakeRetriever()
        self.client, self.monitor = FakeEngineClient(), FakeMonitor()
        self.wakening = FakeWakening()
        self.spare, self.spare_monitor = FakeEngineClient(), FakeMonitor()
        spare = Engine("fallback-1", self.spare, self.spare_monitor)
        self.answers: list[Answer] = []
        self.pipeline = QueryPipeline(
            gate=self.gate,
            library=FakeLibrary(),
            retriever=self.retriever,
            engine=Engine("engine", self.client, self.monitor),
            wakening=self.wakening,
            counter=EstimatedTokens(),
            fallbacks=(spare,) if fallback else (),
            passages_places=Bulkhead(places),
            on_answer=self.answers.append,
        )

    async def ask(self, question: Question = QUESTION):
        async with aclosing(self.pipeline.answer(question, Deadline(60))) as events:
            return [event async for event in events]


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_a_whole_answer_says_nothing(setting):
    """Without load: sources, tokens, the answer, not degraded; the reservation is given back."""
    events = await setting.ask()
    assert [type(e) for e in events] == [Sources, Token, Token, Answer]
    assert events[-1].degraded is None
    assert events[-1].usage == Usage(90, 5)
    assert setting.answers == [events[-1]]
    assert setting.gate.state().reserved_tokens == setting.gate.running == 0


async def test_under_load_less_is_asked_for(setting, monkeypatch):
    """L1: half the passages, half the answer, said before the first token; opting out keeps all."""
    monkeypatch.setattr(AdmissionGate, "brownout", property(lambda _: True))
    events = await setting.ask()
    assert setting.retriever.asked == [3]
    assert setting.client.requests[0].max_tokens == 128
    assert events[0].degraded.level == events[-1].degraded.level == "L1"
    assert "3 passages instead of 6" in events[-1].degraded.reason
    whole = await setting.ask(STRICT)
    assert setting.retriever.asked == [3, 6]
    assert whole[-1].degraded is None


@pytest.mark.parametrize(
    "failure",
    [
        EngineUnavailable("gone"),
        EngineTimeout("silent"),
        EngineOverloaded("full"),
        EngineProtocolError("html"),
        CircuitOpen("left alone"),
    ],
)
async def test_an_engine_that_fails_before_its_first_token_gives_the_passages(setting, failure):
    """L3 for those who take less, the error itself for those who do not; nothing stays reserved."""
    setting.client.fails = failure
    *_, answer = await setting.ask()
    assert answer.degraded.level == "L3"
    assert failure.message in answer.degraded.reason
    assert "text 1" in answer.text
    assert answer.citations[0].cited
    assert answer.usage == Usage()
    with pytest.raises(type(failure)):
        await setting.ask(STRICT)
    assert setting.gate.state().reserved_tokens == setting.gate.running == 0


async def test_an_engine_that_is_down_is_not_asked(setting):
    """What the monitor knows is not tried again by every question."""
    setting.monitor.down = True
    *_, answer = await setting.ask()
    assert answer.degraded.level == "L3"
    assert setting.client.requests == []


async def test_a_fallback_engine_goes_before_the_passages():
    """L2: the next engine answers, and its name is told; if it fails too, the passages do."""
    setting = Setting(fallback=True)
    setting.client.fails = EngineUnavailable("gone")
    events = await setting.ask()
    assert [type(e) for e in events] == [Sources, Token, Token, Answer]
    assert events[-1].degraded.level == "L2"
    assert "fallback-1" in events[-1].degraded.reason
    setting.spare.fails = EngineTimeout("silent")
    *_, answer = await setting.ask()
    assert answer.degraded.level == "L3"
    setting.spare_monitor.down = True
    *_, answer = await setting.ask()
    assert answer.degraded.level == "L3"


async def test_a_full_gate_gives_the_passages_as_long_as_there_are_places():
    """What does not fit anywhere is refused with the gate's own words."""
    setting = Setting(max_concurrent=1, places=1)
    demand = setting.gate.demand("ask", prompt_tokens=10, max_tokens=10)
    held = setting.gate.enter(demand, Deadline(60), QUESTION.caller)
    *_, answer = await setting.ask()
    assert answer.degraded.level == "L3"
    setting.pipeline._passages_places.used = 1
    with pytest.raises(Overloaded):
        await setting.ask()
    with pytest.raises(Overloaded):
        await setting.ask(STRICT)
    setting.gate.leave(held)


@pytest.mark.parametrize("failure", [EngineRejected("no template"), NotReady("stopping")])
async def test_what_no_other_way_can_mend_stays_an_error(setting, failure):
    """A bug of ours and a shutdown are not papered over."""
    setting.client.fails = failure
    with pytest.raises(type(failure)):
        await setting.ask()


async def test_after_the_first_token_nothing_is_replaced(setting):
    """A broken answer ends with its error: no second answer is pasted behind it."""
    setting.client.fails_after = EngineProtocolError("cut")
    events = setting.pipeline.answer(QUESTION, Deadline(60))
    assert [type(await anext(events)) for _ in range(2)] == [Sources, Token]
    with pytest.raises(EngineProtocolError):
        await anext(events)
    assert setting.gate.running == 0


async def test_a_search_by_words_only_says_so(setting):
    """Without the embedder an answer is L1, a search too."""
    setting.retriever.by_words_only = IndexNotReady("The index is being built.")
    *_, answer = await setting.ask()
    assert answer.degraded.level == "L1"
    assert "words only: The index is being built." in answer.degraded.reason
    _, degraded = await setting.pipeline.search(QUESTION, Deadline(60))
    assert degraded == answer.degraded


async def test_whoever_waits_is_told_its_place(setting):
    """Queued notices come first, and are counted from 1."""
    waiting = Setting(max_concurrent=1, max_queued=4)
    demand = waiting.gate.demand("ask", prompt_tokens=10, max_tokens=10)
    held = waiting.gate.enter(demand, Deadline(60), QUESTION.caller)
    async with aclosing(waiting.pipeline.answer(QUESTION, Deadline(60))) as events:
        assert await anext(events) == Queued(1, None)
        waiting.gate.leave(held)
        assert [type(e) async for e in events] == [Sources, Token, Token, Answer]


async def test_closing_early_gives_everything_back(setting):
    """A client that leaves in the middle leaves nothing behind."""
    events = setting.pipeline.answer(QUESTION, Deadline(60))
    await anext(events)
    assert setting.gate.running == 1
    await events.aclose()
    assert setting.gate.state().reserved_tokens == setting.gate.running == 0


async def test_answer_lengths_are_learnt_from_whole_answers_only(setting):
    """An aborted answer says nothing about how long answers get."""
    for _ in range(25):
        await setting.ask()
    assert setting.gate.demand("ask", prompt_tokens=1, max_tokens=256).output_tokens == 5
    fresh = Setting()
    for _ in range(25):
        events = fresh.pipeline.answer(QUESTION, Deadline(60))
        await anext(events)
        await events.aclose()
    assert fresh.gate.demand("ask", prompt_tokens=1, max_tokens=256).output_tokens == 128


async def test_a_sleeping_engine_is_waited_for(setting):
    """Notices with the time that it takes, then the whole answer; no place of the gate is held."""
    setting.wakening.asleep = True
    events = await setting.ask(STRICT)
    assert events[0] == Queued(1, 20.0)
    assert events[-1].degraded is None
    assert setting.gate.running == 0


@pytest.mark.parametrize(
    "failure",
    [EngineUnavailable("refused"), EngineProtocolError("cut off"), CircuitOpen("left alone")],
)
async def test_a_question_that_met_an_engine_falling_asleep_is_asked_again(setting, failure):
    """Once: it waits for the engine to wake, and neither refuses nor degrades."""
    setting.client.fails, setting.wakening.falls_asleep = failure, True
    events = []
    async with aclosing(setting.pipeline.answer(STRICT, Deadline(60))) as answer:
        async for event in answer:
            setting.client.fails = None  # the notice comes once the engine is being woken
            events.append(event)
    assert [type(e) for e in events] == [Queued, Sources, Token, Token, Answer]
    assert setting.wakening.waited == 1
    assert setting.gate.state().reserved_tokens == setting.gate.running == 0


async def test_a_question_is_not_asked_again_and_again(setting):
    """An engine that sleeps whenever it is asked is a failure after three times."""
    setting.client.fails, setting.wakening.always = EngineUnavailable("refused"), True
    with pytest.raises(EngineUnavailable):
        await setting.ask(STRICT)
    assert len(setting.client.requests) == 4


async def test_short_memory_asks_for_less(setting):
    """L1 with its own reason while the engine's keeper says that memory is getting short."""
    life = EngineLife(pressure=True)
    setting.monitor.state = EngineState(EngineModel("m", 4096), life=life)
    degraded = (await setting.ask())[-1].degraded
    assert degraded.level == "L1"
    assert degraded.reason.startswith("The engine's memory is getting short: at most 3 passages")
    assert (await setting.ask(STRICT))[-1].degraded is None
