"""
The parent's side of the embedder: texts in, unit vectors out, questions before documents.

One request is with the child process at a time. Questions that wait are sent first and together;
passages go in micro-batches, so a question never waits behind more than one of those.
"""

import asyncio
import copy
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.concurrency import forever
from orchestrator.domain import Embeddings
from orchestrator.errors import EmbedderUnavailable, QueueFull
from orchestrator.retrieval.arrays import Vector
from orchestrator.retrieval.embedder_child import ChildLostError, EmbedderChild

QUERY_THREADS = 1
"""
For questions. Their threads wait for each other dozens of times in a question, and on a machine whose
processors are all taken each time costs a scheduler's turn: beside vLLM on two cores a question took
one to two seconds with two threads. Alone, a second thread saves one or two milliseconds.
"""

logger = logging.getLogger(__name__)

_MAX_FAILED_STARTS = 5
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
_ASKED_LATELY_S = 5.0
"""While questions come, passages are embedded in halves of a batch: a question waits for half as long,
and documents take an eighth longer."""
_MAX_PARALLEL = 16
"""Batches that the child computes side by side; beyond that Python itself is what they wait for."""
_SILENT_SHARE = 0.5
"""Of a question's time: a child that was silent for so much of it at a stretch is at fault."""


@dataclass(slots=True, eq=False)
class _Job:
    """Texts that travel together, and the future that their vectors resolve."""

    texts: Sequence[str]
    result: "asyncio.Future[Embeddings]"
    retries: int
    queued_s: float
    threads: int | None


class Embedder:
    """
    The embedding model, in a process that is restarted whenever it dies or falls silent.

    The question in flight when that happens fails; passages in flight are tried once more; what
    waits goes on waiting, except when the process cannot be started again.

    Args:
        model: Folder of a sentence-transformers model.
        threads: CPU threads of the child.
        max_batch: Texts that a thread of the child computes at once, or a GPU; the longest that a
            question waits for.
        max_queued: Requests that may wait in a lane.
        start_timeout_s: Longest that loading the model may take, in seconds.
        request_timeout_s: Silence after which the child counts as hung, in seconds.
        look_s: Seconds between two looks at whether the child works on what it has.
        cross_encoder: Whether the model scores pairs; see `embedder_process.py`.
        device: Where the child computes, in torch's words.
        gpu_memory_bytes: The most that it may allocate on a GPU.
        command: How to start the child; ours unless a test says otherwise.
        on_wait: Told the lane ("embed_query", "embed_passages"), and how long a request waited in
            it before the child got it, in seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        model: Path,
        threads: int,
        max_batch: int = 16,
        max_queued: int = 256,
        start_timeout_s: float = 120.0,
        request_timeout_s: float = 30.0,
        look_s: float = 0.25,
        cross_encoder: bool = False,
        device: str = "cpu",
        gpu_memory_bytes: int = 1 << 30,
        command: Sequence[str] | None = None,
        on_wait: Callable[[str, float], None] = lambda _lane, _wait_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A GPU takes a batch whole, and so does a cross-encoder: it has one question's pairs.
        parallel = min(threads, _MAX_PARALLEL) if device == "cpu" and not cross_encoder else 1
        self._max_batch = max_batch * parallel
        self._command = command or (
            *(sys.executable, "-m", "orchestrator.retrieval.embedder_process"),
            *("--model", str(model), "--threads", str(threads), "--device", device),
            *("--parallel", str(parallel)),
            *("--max-batch", str(self._max_batch), "--gpu-memory-bytes", str(gpu_memory_bytes)),
            *(["--cross-encoder"] if cross_encoder else []),
        )
        self._max_queued = max_queued
        self._start_timeout_s = start_timeout_s
        self._request_timeout_s = request_timeout_s
        self._look_s = look_s
        self._on_wait = on_wait
        self._clock = clock
        self._queries: deque[_Job] = deque()
        self._passages: deque[_Job] = deque()
        self._wake = asyncio.Event()
        self._child: EmbedderChild | None = None
        self._server: asyncio.Task[None] | None = None
        self._failed_starts = 0
        self._asked_s = -math.inf
        self._closed = False
        self.dimension = 0
        self.max_tokens = 0
        self.dtype = ""
        self.restarts = 0

    @property
    def alive(self) -> bool:
        """Whether the child process runs and has its model loaded."""
        return self._child is not None and self._child.running

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests that wait: (questions, micro-batches of passages)."""
        return len(self._queries), len(self._passages)

    @property
    def starting(self) -> bool:
        """Whether the model is being loaded for the first time: nothing has failed, nothing is up."""
        return self._server is not None and not (self.dimension or self._failed_starts)

    def start_soon(self) -> None:
        """
        Start the child in the background, again and again until it comes up.

        Passages wait for it meanwhile, questions do not.
        """
        self._server = asyncio.create_task(self._serve(), name="embedder")

    async def start(self) -> None:
        """
        Start the child and wait until its model is loaded.

        Raises:
            EmbedderUnavailable: If it does not come up at the first attempt.
        """
        try:
            await self._start_child()
        except ChildLostError as exc:
            raise EmbedderUnavailable(f"The embedder did not start: {exc}.") from exc
        self.start_soon()

    async def aclose(self) -> None:
        """End the child; whoever still waits is told."""
        self._closed = True
        if self._server is not None:
            self._server.cancel()
            with suppress(asyncio.CancelledError):
                await self._server
            self._server = None
        await self._stop_child()
        self._fail_waiting(_shutting_down())

    async def embed_query(self, text: str, *, timeout_s: float | None = None) -> Vector:
        """
        The question's vector: (d,) float32 of unit length.

        Args:
            text: The question.
            timeout_s: Longest wait, in seconds; None waits as long as it takes.

        Raises:
            QueueFull: If too many questions wait already.
            EmbedderUnavailable: If the child is gone and being restarted, or if it did nothing at
                all for half of that time.
            TimeoutError: If that time was too short for a child that is at work: it has others
                before this one, or too little of the processor.
        """
        child = self._child
        self._asked_s = self._clock()
        try:
            async with asyncio.timeout(timeout_s):
                rows = await self._submit(self._queries, [text], retries=0)
        except TimeoutError as exc:
            if timeout_s is None or self._at_work(child, _SILENT_SHARE * timeout_s):
                raise
            raise EmbedderUnavailable(
                f"The embedder did nothing for {_SILENT_SHARE * timeout_s:g} s. Try again.",
                retry_after_s=1.0,
            ) from exc
        query: Vector = rows[0]
        return query

    def _at_work(self, child: EmbedderChild | None, silence_s: float) -> bool:
        """Whether it is the same child as before, and has not been silent for so long."""
        return child is not None and child is self._child and child.silent_s < silence_s

    async def embed_passages(self, texts: Sequence[str]) -> Embeddings:
        """
        One row per text, in the order of the texts: (n, d) float32 of unit length.

        Raises:
            QueueFull: If too many callers wait already.
            EmbedderUnavailable: If the child was lost twice over these texts.
        """
        # Texts of like length travel together: the model pads each batch to its longest.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        batches = []
        done = 0
        while done < len(order):
            batch = [texts[index] for index in order[done : done + self._passages_at_once()]]
            batches.append(await self._submit(self._passages, batch, retries=1))
            done += len(batch)
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        vectors[order] = np.concatenate(batches) if batches else vectors
        return vectors

    def _passages_at_once(self) -> int:
        lately = self._clock() - self._asked_s < _ASKED_LATELY_S
        return max(1, self._max_batch // 2) if lately else self._max_batch

    async def _submit(self, lane: deque[_Job], texts: Sequence[str], *, retries: int) -> Embeddings:
        self._check_open(lane)
        threads = QUERY_THREADS if lane is self._queries else None
        future = asyncio.get_running_loop().create_future()
        job = _Job(texts, future, retries, self._clock(), threads)
        lane.append(job)
        self._wake.set()
        try:
            return await job.result
        finally:
            # A cancelled caller leaves no place taken in the lane. Asked first, because a failing
            # remove() formats its argument: 1.5 ms for a vector, a tenth of a whole request.
            if job in lane:
                lane.remove(job)

    def _check_open(self, lane: deque[_Job]) -> None:
        if self._closed or self._server is None or self._server.done():
            raise EmbedderUnavailable("The embedder is not running. Try again in a moment.")
        if lane is self._queries and self._failed_starts:
            raise self._not_restarting()
        if lane is self._queries and self.starting:
            raise EmbedderUnavailable(
                "The embedder is loading its model. Try again in a few seconds.", retry_after_s=2.0
            )
        if len(lane) >= self._max_queued:
            raise QueueFull(
                f"{len(lane)} requests wait for the embedder, and {self._max_queued} may. "
                "Try again in a moment.",
                retry_after_s=1.0,
            )

    async def _serve(self) -> None:
        """Hand the child one request after the other, until cancelled."""
        try:
            await forever(self._serve_next, what="the embedder")
        finally:
            # Whatever ends this task, nobody waits for it any longer.
            self._fail_waiting(_shutting_down())

    async def _serve_next(self) -> None:
        if not self.alive:
            await self._bring_up()
        elif jobs := self._next_jobs():
            await self._run(jobs)
        else:
            self._wake.clear()
            await self._wake.wait()

    def _next_jobs(self) -> list[_Job]:
        """What to send next: all questions that fit, else one micro-batch of passages."""
        lane, room = (self._queries, self._max_batch) if self._queries else (self._passages, 1)
        jobs = [lane.popleft() for _ in range(min(len(lane), room))]
        name = "embed_query" if lane is self._queries else "embed_passages"
        for job in jobs:
            self._on_wait(name, self._clock() - job.queued_s)
        return jobs

    async def _run(self, jobs: list[_Job]) -> None:
        texts = [text for job in jobs for text in job.texts]
        assert self._child is not None  # noqa: S101 - the only caller checked it
        try:
            vectors = await self._child.embed(
                texts, timeout_s=self._request_timeout_s, threads=jobs[0].threads
            )
        except EmbedderUnavailable as exc:
            _fail(jobs, exc)
        except ChildLostError as exc:
            await self._stop_child()
            self._return_or_fail(jobs, exc)
        except BaseException as exc:
            bug = isinstance(exc, Exception)
            _fail(jobs, _broken() if bug else _shutting_down())
            if bug:  # nobody knows how far the child has come: the next one begins anew
                await self._stop_child()
            raise
        else:
            first = 0
            for job in jobs:
                if not job.result.done():
                    job.result.set_result(vectors[first : first + len(job.texts)])
                first += len(job.texts)

    def _return_or_fail(self, jobs: list[_Job], cause: ChildLostError) -> None:
        for job in reversed(jobs):
            if job.result.done():
                continue
            if job.retries:
                job.retries -= 1
                self._passages.appendleft(job)
            else:
                error = f"The embedder was lost while it worked on this: {cause}. "
                _fail([job], EmbedderUnavailable(error + "It is being restarted; try again."))

    async def _start_child(self) -> None:
        self._child = await EmbedderChild.start(
            self._command, timeout_s=self._start_timeout_s, look_s=self._look_s
        )
        self.dimension = self._child.dimension
        self.max_tokens = self._child.max_tokens
        self.dtype = self._child.dtype

    async def _bring_up(self) -> None:
        """Start the child for the first time, or another in the place of one that is gone."""
        await self._stop_child()
        await asyncio.sleep(_BACKOFF_S[min(self._failed_starts, len(_BACKOFF_S) - 1)])
        self.restarts += bool(self.dimension or self._failed_starts)
        try:
            await self._start_child()
            self._failed_starts = 0
        except ChildLostError as exc:
            self._failed_starts += 1
            logger.warning("the embedder did not start (attempt %d): %s", self._failed_starts, exc)
            _fail(list(self._queries), self._not_restarting())
            self._queries.clear()
            if self._failed_starts % _MAX_FAILED_STARTS == 0:
                self._fail_waiting(self._not_restarting())

    def _not_restarting(self) -> EmbedderUnavailable:
        wait_s = _BACKOFF_S[min(self._failed_starts, len(_BACKOFF_S) - 1)]
        return EmbedderUnavailable(
            f"The embedder does not come up ({self._failed_starts} attempts failed); "
            f"the next attempt follows in {wait_s:g} s. Its log says why.",
            retry_after_s=max(wait_s, 1.0),
        )

    async def _stop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.stop()

    def _fail_waiting(self, error: EmbedderUnavailable) -> None:
        _fail([*self._queries, *self._passages], error)
        self._queries.clear()
        self._passages.clear()


def _shutting_down() -> EmbedderUnavailable:
    return EmbedderUnavailable("The embedder is shutting down.")


def _broken() -> EmbedderUnavailable:
    return EmbedderUnavailable(
        "Something of ours broke while it embedded this. The log tells what."
    )


def _fail(jobs: Sequence[_Job], error: EmbedderUnavailable) -> None:
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(copy.copy(error))
