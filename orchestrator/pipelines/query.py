"""A request's way: gate, retrieval, prompt, engine, answer."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from orchestrator.domain import (
    Answer,
    AnswerEvent,
    FinishReason,
    Passage,
    Question,
    Sources,
    Timings,
    Token,
    Usage,
)
from orchestrator.generation.citations import MarkFilter, missing_mark, number
from orchestrator.generation.engine_client import EngineClient, EngineRequest
from orchestrator.generation.engine_monitor import EngineMonitor
from orchestrator.generation.prompt import NOTHING_RELEVANT
from orchestrator.generation.token_budget import FittedPrompt, fit
from orchestrator.generation.tokenizer import TokenCounter
from orchestrator.pipelines.library import Library
from orchestrator.resilience.admission import AdmissionGate
from orchestrator.resilience.deadline import Deadline
from orchestrator.retrieval.retriever import Retrieved, Retriever


@dataclass(slots=True)
class _Stopwatch:
    """When each phase of one request ended, on the monotonic clock."""

    clock: Callable[[], float]
    started_s: float = 0.0
    queue_ms: float = 0.0
    retrieve_ms: float = 0.0
    first_token_ms: float = 0.0

    def __post_init__(self) -> None:
        self.started_s = self.clock()

    def elapsed_ms(self) -> float:
        return (self.clock() - self.started_s) * 1000

    def first_token(self) -> None:
        if not self.first_token_ms:
            self.first_token_ms = self.elapsed_ms()

    def timings(self) -> Timings:
        return Timings(self.queue_ms, self.retrieve_ms, self.first_token_ms, self.elapsed_ms())


@dataclass(slots=True)
class _Draft:
    """The answer while it grows."""

    passages: tuple[Passage, ...]
    marks: MarkFilter = field(init=False)
    parts: list[str] = field(default_factory=list)
    usage: Usage = Usage()
    finish_reason: FinishReason = "stop"

    def __post_init__(self) -> None:
        self.marks = MarkFilter(len(self.passages))

    def add(self, text: str) -> str:
        shown = self.marks.feed(text)
        self.parts.append(shown)
        return shown

    def close(self) -> str:
        """What is still to be shown: text held back, and a mark if the answer has none."""
        rest = self.marks.flush()
        self.parts.append(rest)
        if not self.marks.cited:
            mark = missing_mark("".join(self.parts), self.passages)
            if mark:
                self.marks.cited.add(int(mark.strip(" []")))
                self.parts.append(mark)
                rest += mark
        return rest

    def answer(self, timings: Timings) -> Answer:
        citations = number(self.passages, self.marks.cited)
        text = "".join(self.parts).strip()
        return Answer(text, citations, self.usage, timings, self.finish_reason)


class QueryPipeline:
    """Answers questions. Holds no state of its own between two requests."""

    def __init__(
        self,
        *,
        gate: AdmissionGate,
        library: Library,
        retriever: Retriever,
        engine: EngineClient,
        monitor: EngineMonitor,
        counter: TokenCounter,
        clock: Callable[[], float] = time.monotonic,
        on_answer: Callable[[Answer], None] = lambda _: None,
    ) -> None:
        self._gate = gate
        self._library = library
        self._retriever = retriever
        self._engine = engine
        self._monitor = monitor
        self._counter = counter
        self._clock = clock
        self._on_answer = on_answer

    async def search(self, question: Question, deadline: Deadline) -> tuple[Passage, ...]:
        """
        The passages for a question, best first, without an answer.

        Raises:
            OrchestratorError: The kind tells what went wrong, and where.
        """
        await self._library.require_searchable(question.collection, question.document_ids)
        found = await self._retrieve(question, deadline)
        return found.passages

    async def answer(
        self, question: Question, deadline: Deadline
    ) -> AsyncGenerator[AnswerEvent, None]:
        """
        The answer as it comes: notices while it waits, the sources, the text, then the whole.

        Closing the iterator gives the permit back and aborts the engine's request.

        Raises:
            OrchestratorError: The kind tells what went wrong, and where.
        """
        watch = _Stopwatch(self._clock)
        self._monitor.require()
        await self._library.require_searchable(question.collection, question.document_ids)
        async with self._gate.hold() as ticket:
            async for notice in self._gate.wait(ticket, deadline):
                yield notice
            watch.queue_ms = ticket.waited_s * 1000
            async with aclosing(self._admitted(question, deadline, watch)) as events:
                async for event in events:
                    if isinstance(event, Answer):
                        self._on_answer(event)
                    yield event

    async def _retrieve(self, question: Question, deadline: Deadline) -> Retrieved:
        return await self._retriever.retrieve(
            _search_text(question),
            collection=question.collection,
            document_ids=question.document_ids,
            top_k=question.top_k,
            deadline=deadline,
        )

    async def _admitted(
        self, question: Question, deadline: Deadline, watch: _Stopwatch
    ) -> AsyncGenerator[AnswerEvent, None]:
        began_s = self._clock()
        found = await self._retrieve(question, deadline)
        watch.retrieve_ms = (self._clock() - began_s) * 1000
        if not found.relevant:
            yield Sources(())
            yield Token(NOTHING_RELEVANT)
            yield Answer(NOTHING_RELEVANT, (), Usage(), watch.timings())
            return
        prompt = fit(
            question,
            found.passages,
            counter=self._counter,
            window_tokens=self._monitor.window_tokens,
        )
        yield Sources(prompt.passages)
        async with aclosing(self._generate(question, prompt, deadline, watch)) as events:
            async for event in events:
                yield event

    async def _generate(
        self, question: Question, prompt: FittedPrompt, deadline: Deadline, watch: _Stopwatch
    ) -> AsyncGenerator[AnswerEvent, None]:
        request = EngineRequest(
            model=self._monitor.require().id,
            messages=prompt.messages,
            max_tokens=question.max_tokens,
            sampling=question.sampling,
        )
        draft = _Draft(prompt.passages)
        async with aclosing(self._engine.stream(request, deadline)) as chunks:
            async for chunk in chunks:
                watch.first_token()
                draft.finish_reason = chunk.finish_reason or draft.finish_reason
                draft.usage = chunk.usage or draft.usage
                if shown := draft.add(chunk.text):
                    yield Token(shown)
        if rest := draft.close():
            yield Token(rest)
        yield draft.answer(watch.timings())


def _search_text(question: Question) -> str:
    """The question, with the one before it: "and in 2022?" means nothing alone."""
    asked = [m.content for m in question.history if m.role == "user"]
    return f"{asked[-1]}\n{question.text}" if asked else question.text
