"""A request's way: gate, retrieval, prompt, engine, answer; and the lesser ways when that is blocked."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial

from orchestrator.domain import (
    Answer,
    AnswerEvent,
    Degraded,
    Passage,
    Question,
    Sources,
    Timings,
    Token,
    Usage,
)
from orchestrator.errors import (
    CircuitOpen,
    EngineProtocolError,
    EngineUnavailable,
    OrchestratorError,
    Overloaded,
)
from orchestrator.generation.engine_client import EngineRequest
from orchestrator.generation.engines import Engine
from orchestrator.generation.neighbours import joined
from orchestrator.generation.prompt import NOTHING_RELEVANT
from orchestrator.generation.prompt_lengths import PromptLengths
from orchestrator.generation.token_budget import FittedPrompt, fit
from orchestrator.generation.tokenizer import TokenCounter
from orchestrator.generation.wakening import Wakening
from orchestrator.pipelines.degradation import (
    ELSEWHERE,
    MANY_ASK,
    MEMORY_SHORT,
    elsewhere,
    extract,
    lesser_search,
    passages_only,
    reduced,
)
from orchestrator.pipelines.draft import Draft, Stopwatch
from orchestrator.pipelines.library import Library
from orchestrator.resilience.admission import AdmissionGate, Bulkhead
from orchestrator.resilience.admission_ticket import Ticket
from orchestrator.resilience.deadline import Deadline
from orchestrator.retrieval.retriever import Retrieved, Retriever
from orchestrator.telemetry.tracing import NO_TRACER, Attribute, Phase, Tracer

BUSY_RETRY_AFTER_S = 1.0
MAX_WAKES = 3
"""An engine that is put to sleep that often while one question asks it is a fault."""


class QueryPipeline:
    """
    Answers questions. Holds no state of its own between two requests.

    Args:
        engine: The one behind the gate.
        wakening: Where questions wait if it sleeps.
        fallbacks: Those that stand in for it, in this order.
        fallback_places: Requests that may be with the fallback engines at once.
        passages_places: Requests that may be answered by passages alone at once.
        on_answer: Called with each whole answer.
        tracer: Follows questions, if somebody wants to see their ways.
    """

    def __init__(
        self,
        *,
        gate: AdmissionGate,
        library: Library,
        retriever: Retriever,
        engine: Engine,
        wakening: Wakening,
        counter: TokenCounter,
        fallbacks: Sequence[Engine] = (),
        fallback_places: Bulkhead | None = None,
        passages_places: Bulkhead | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_answer: Callable[[Answer], None] = lambda _: None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._gate = gate
        self._library = library
        self._retriever = retriever
        self._engine = engine
        self._wakening = wakening
        self._counter = counter
        self._fallbacks = tuple(fallbacks)
        self._fallback_places = fallback_places or Bulkhead(8)
        self._passages_places = passages_places or Bulkhead(4)
        self._lengths = PromptLengths()
        self._clock = clock
        self._on_answer = on_answer
        self._tracer = tracer

    async def search(
        self, question: Question, deadline: Deadline
    ) -> tuple[tuple[Passage, ...], Degraded | None]:
        """
        The passages for a question, best first, and how the search was less than usual.

        Raises:
            OrchestratorError: The kind tells what went wrong, and where.
        """
        with self._tracer.begin("search", traceparent=question.traceparent) as trace:
            found = await self._retrieve(question, deadline, trace)
        return joined(found.passages), lesser_search(found)

    async def answer(
        self, question: Question, deadline: Deadline
    ) -> AsyncGenerator[AnswerEvent, None]:
        """
        The answer as it comes: notices while it waits, the sources, the text, then the whole.

        If the engine cannot answer and the caller takes less, a fallback engine does, or the
        passages are the answer; which of them is in `degraded`. Closing the iterator gives every
        place back and aborts the engine's request.

        Raises:
            OrchestratorError: The kind tells what went wrong, and where.
        """
        with self._tracer.begin(question.route, traceparent=question.traceparent) as trace:
            watch = Stopwatch(self._clock, trace)
            shown, wakes = False, 0
            while True:
                unloads = self._wakening.unloads
                try:
                    async with aclosing(
                        self._through_the_gate(question, deadline, watch)
                    ) as events:
                        async for event in events:
                            shown = shown or isinstance(event, Sources | Token | Answer)
                            yield self._noted(event, trace)
                    return
                except ELSEWHERE as exc:
                    if shown:
                        raise
                    # It may have been ended for idleness while this question was on its way to it.
                    if wakes < MAX_WAKES and await self._lost_to_sleep(exc, unloads):
                        wakes += 1
                        continue
                    if not question.degrade:
                        raise
                    cause: OrchestratorError = exc
                    break
            deadline.check()
            lesser = self._without_the_engine(question, deadline, watch, cause)
            async with aclosing(lesser) as events:
                async for event in events:
                    yield self._noted(event, trace)

    async def _lost_to_sleep(self, exc: OrchestratorError, unloads: int) -> bool:
        """Whether a question failed only because the engine was put to sleep meanwhile."""
        # No answer, or too many of those: what an engine that was just ended looks like.
        looks_like_it = isinstance(exc, EngineUnavailable | EngineProtocolError | CircuitOpen)
        return looks_like_it and await self._wakening.slept_since(unloads)

    async def _through_the_gate(
        self, question: Question, deadline: Deadline, watch: Stopwatch
    ) -> AsyncGenerator[AnswerEvent, None]:
        """L0 and L1: an engine that is awake, a reservation, then retrieval, then the engine."""
        async for notice in self._wakening.wait(deadline):
            yield notice
        self._engine.monitor.require()
        degraded = None
        if question.degrade and self._gate.brownout:
            question, degraded = reduced(question, MANY_ASK)
        elif question.degrade and self._engine.monitor.state.under_pressure:
            question, degraded = reduced(question, MEMORY_SHORT)
        window = self._engine.monitor.window_tokens
        demand = self._gate.demand(
            question.route,
            prompt_tokens=self._lengths.estimate(question, window_tokens=window),
            max_tokens=question.max_tokens,
        )
        caller, route = question.caller, question.route
        async with self._gate.hold(demand, deadline, caller, route=route) as ticket:
            with watch.trace.phase("gate"):
                if not ticket.granted:  # nobody should wait to be told that nothing is there
                    await self._library.require_searchable(
                        question.collection, question.document_ids
                    )
                async for notice in self._gate.wait(ticket, deadline):
                    yield notice
            watch.queue_ms = ticket.waited_s * 1000
            found = await self._timed_retrieve(question, deadline, watch)
            events = self._answered(
                question, found, deadline, watch, engine=self._engine, degraded=degraded,
                ticket=ticket,
            )  # fmt: skip
            async with aclosing(events):
                async for event in events:
                    yield event

    async def _without_the_engine(
        self,
        question: Question,
        deadline: Deadline,
        watch: Stopwatch,
        cause: OrchestratorError,
    ) -> AsyncGenerator[AnswerEvent, None]:
        """L2 and L3: the first fallback engine that answers, else the passages."""
        with self._passages_places.hold(lambda: cause):
            found = await self._timed_retrieve(question, deadline, watch)
        for engine in self._fallbacks:
            shown = False
            try:
                async with aclosing(
                    self._by_fallback(question, found, deadline, watch, engine, cause)
                ) as events:
                    async for event in events:
                        shown = True
                        yield event
                return
            except ELSEWHERE:
                if shown:
                    raise
        async for event in self._by_passages(found, watch, cause):
            yield event

    async def _by_fallback(
        self,
        question: Question,
        found: Retrieved,
        deadline: Deadline,
        watch: Stopwatch,
        engine: Engine,
        cause: OrchestratorError,
    ) -> AsyncGenerator[AnswerEvent, None]:
        engine.monitor.require()
        with self._fallback_places.hold(_fallbacks_full):
            async with aclosing(
                self._answered(
                    question, found, deadline, watch, engine=engine,
                    degraded=elsewhere(engine.name, cause),
                )
            ) as events:  # fmt: skip
                async for event in events:
                    yield event

    async def _by_passages(
        self, found: Retrieved, watch: Stopwatch, cause: OrchestratorError
    ) -> AsyncGenerator[AnswerEvent, None]:
        degraded = passages_only(cause)
        passages = joined(found.passages) if found.relevant else ()
        yield Sources(passages, degraded)
        text, citations = extract(passages) if passages else (NOTHING_RELEVANT, ())
        yield Token(text)
        yield Answer(text, citations, Usage(), watch.timings(), degraded=degraded)

    async def _answered(
        self,
        question: Question,
        found: Retrieved,
        deadline: Deadline,
        watch: Stopwatch,
        *,
        engine: Engine,
        degraded: Degraded | None,
        ticket: Ticket | None = None,
    ) -> AsyncGenerator[AnswerEvent, None]:
        """What one engine makes of what was found."""
        degraded = degraded or lesser_search(found)
        if not found.relevant:
            yield Sources((), degraded)
            yield Token(NOTHING_RELEVANT)
            yield Answer(NOTHING_RELEVANT, (), Usage(), watch.timings(), degraded=degraded)
            return
        window = engine.monitor.window_tokens
        with watch.trace.phase("prompt"):
            prompt = fit(question, found.passages, counter=self._counter, window_tokens=window)
        if ticket is not None:
            self._lengths.learn(
                question,
                num_chunks=sum(passage.chunks for passage in prompt.passages),
                prompt_tokens=prompt.prompt_tokens,
            )
            await self._gate.resize(ticket, prompt.prompt_tokens, deadline)
        draft = Draft(prompt.passages, degraded)
        events = self._generated(question, prompt, deadline, watch, engine, draft, ticket)
        async with aclosing(events):
            async for event in events:
                yield event

    async def _generated(
        self,
        question: Question,
        prompt: FittedPrompt,
        deadline: Deadline,
        watch: Stopwatch,
        engine: Engine,
        draft: Draft,
        ticket: Ticket | None,
    ) -> AsyncGenerator[AnswerEvent, None]:
        model = engine.monitor.require().id
        with watch.trace.phase(f"chat {model}", _asked(model, question), remote=True) as trace:
            request = EngineRequest(
                model=model,
                messages=prompt.messages,
                max_tokens=question.max_tokens,
                sampling=question.sampling,
                traceparent=trace.traceparent,
            )
            first = trace.phase("first token")
            announced = False
            async with aclosing(engine.client.stream(request, deadline)) as chunks:
                async for chunk in chunks:
                    if ticket is not None:
                        self._gate.progress(ticket, chunk.tokens)
                    shown = draft.add(chunk)
                    if not announced and chunk.tokens:
                        # Not before: until the engine has answered, another one may.
                        announced = True
                        first.end()
                        watch.first_token()
                        yield Sources(prompt.passages, draft.degraded)
                    if shown:
                        yield Token(shown)
            if not announced:  # an answer without a single token
                watch.first_token()
                yield Sources(prompt.passages, draft.degraded)
            trace.note(_used(draft))
        if ticket is not None:
            ticket.finished = True
        if rest := draft.close():
            yield Token(rest)
        yield draft.answer(watch.timings())

    async def _timed_retrieve(
        self, question: Question, deadline: Deadline, watch: Stopwatch
    ) -> Retrieved:
        began_s = self._clock()
        found = await self._retrieve(question, deadline, watch.trace)
        watch.retrieve_ms += (self._clock() - began_s) * 1000
        return found

    async def _retrieve(self, question: Question, deadline: Deadline, trace: Phase) -> Retrieved:
        return await self._retriever.retrieve(
            _search_text(question),
            collection=question.collection,
            document_ids=question.document_ids,
            top_k=question.top_k,
            deadline=deadline,
            check=partial(
                self._library.check_searchable, question.collection, question.document_ids
            ),
            trace=trace,
        )

    def _noted(self, event: AnswerEvent, trace: Phase) -> AnswerEvent:
        if isinstance(event, Answer):
            self._on_answer(event)
            if event.degraded is not None:
                trace.note({"tidegate.degraded": event.degraded.level})
        return event


async def nothing_relevant() -> AsyncGenerator[AnswerEvent, None]:
    """What is answered, without asking anybody, where there is nothing that could be searched."""
    yield Sources(())
    yield Token(NOTHING_RELEVANT)
    yield Answer(NOTHING_RELEVANT, (), Usage(), Timings())


def _asked(model: str, question: Question) -> dict[str, Attribute]:
    """
    What is asked of an engine, for its span.

    Source:
        OpenTelemetry's semantic conventions for generative AI.
    """
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": question.max_tokens,
        "gen_ai.request.temperature": question.sampling.temperature,
    }


def _used(draft: Draft) -> dict[str, Attribute]:
    """What came of it, likewise."""
    return {
        "gen_ai.usage.input_tokens": draft.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": draft.usage.completion_tokens,
        "gen_ai.response.finish_reasons": [draft.finish_reason],
    }


def _fallbacks_full() -> Overloaded:
    return Overloaded("The fallback engines are full too.", retry_after_s=BUSY_RETRY_AFTER_S)


def _search_text(question: Question) -> str:
    """The question, with the one before it: "and in 2022?" means nothing alone."""
    asked = [m.content for m in question.history if m.role == "user"]
    return f"{asked[-1]}\n{question.text}" if asked else question.text
