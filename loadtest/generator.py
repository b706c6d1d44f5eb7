"""
Sends the load from a process of its own, and writes down what each client saw.

The functions here are run by a worker process: values in, records out.
"""

import asyncio
import gc
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from tokenizers import Tokenizer

from loadtest.arrivals import Ask, Band, Size
from loadtest.client_rules import ClientRules, retry_after_s
from loadtest.corpus import Prompt
from loadtest.http_client import Client, Response
from loadtest.systems import (
    NAIVE,
    SEMAPHORE_PLACES,
    Engine,
    Naive,
    Reading,
    System,
    SystemName,
    Tidegate,
)

MAX_PAUSE_S = 5.0
"""Longest pause that a closed loop makes after a refusal."""


@dataclass(frozen=True, slots=True)
class Other:
    """
    A further system.

    Attributes:
        address: (host, port).
        model: Its name on OpenAI's wire; of the naive service the folder of the model.
    """

    address: tuple[str, int]
    model: str


@dataclass(frozen=True, slots=True)
class Target:
    """
    Where the load goes.

    Attributes:
        engine: (host, port) of the engine.
        orchestrator: (host, port) of the orchestrator.
        bands: Whether the orchestrator knows priorities.
        others: Further systems, by name.
        keys: The key of each tenant, where the orchestrator asks for keys.
    """

    engine: tuple[str, int]
    orchestrator: tuple[str, int]
    model: str
    bands: bool
    pool: tuple[Prompt, ...]
    others: tuple[tuple[SystemName, Other], ...] = ()
    keys: tuple[tuple[str, str], ...] = ()

    def other(self, name: SystemName) -> Other | None:
        """A system that is none of our own three; None if the name is one of theirs."""
        return dict(self.others).get(name)

    def address(self, name: SystemName) -> tuple[str, int]:
        """(host, port) of a system."""
        if (other := self.other(name)) is not None:
            return other.address
        return self.orchestrator if name == "tidegate" else self.engine

    def system(self, name: SystemName) -> System:
        """How a system is asked."""
        host = "{}:{}".format(*self.address(name))
        if name == "tidegate":
            return Tidegate(host=host, pool=self.pool, bands=self.bands, keys=dict(self.keys))
        if (other := self.other(name)) is not None and name == NAIVE:
            tokenizer = Tokenizer.from_file(str(Path(other.model) / "tokenizer.json"))
            return Naive(host=host, pool=self.pool, tokens=_counted(tokenizer))
        model = other.model if other is not None else self.model
        places = SEMAPHORE_PLACES if name == "semaphore" else None
        return Engine(host=host, pool=self.pool, model=model, places=places)


def _counted(tokenizer: Tokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass(slots=True)
class Attempt:
    """
    One try of a client.

    Attributes:
        code: "ok", the server's error code, or a word for what came instead.
        status: The HTTP status; 0 if none came.
        took_s: Seconds from sending to the end.
        server_ms: What the server says that it took.
        told_s: The `Retry-After` that came with it, in seconds.
    """

    code: str
    status: int
    took_s: float
    server_ms: float | None
    told_s: float | None


@dataclass(slots=True)
class Record:
    """
    One logical request, as its client lived through it.

    Attributes:
        at_s: Arrival, in seconds from the start of the run.
        late_s: How much later than planned the generator sent it.
        whole: Whether a complete answer came in the end.
        tokens_s: Seconds from arrival to each token of the answer, or to each few of them that come
            together; empty if there was none, or it was not streamed.
        total_s: Seconds from arrival to the end.
        cut: The run was over before its client had given up: neither good nor bad.
    """

    at_s: float
    size: Size
    tenant: str
    band: Band
    late_s: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    whole: bool = False
    degraded: str | None = None
    tokens_s: tuple[float, ...] = ()
    total_s: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retrieve_ms: float = 0.0
    cut: bool = False

    @property
    def first_token_s(self) -> float | None:
        """Seconds from arrival to the first token; None if none came, or not streamed."""
        return self.tokens_s[0] if self.tokens_s else None


@dataclass(frozen=True, slots=True)
class Run:
    """
    What to send.

    Attributes:
        asks: In order of arrival.
        stop_retries_s: No further attempt starts later than this, from the start of the run, and in
            a closed loop no first one either.
        cut_s: When whatever is left is cut off.
        seed: Of the back-off's jitter.
    """

    system: SystemName
    asks: tuple[Ask, ...]
    rules: ClientRules
    stop_retries_s: float
    cut_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of a run: a record a request, and the CPU seconds that the generator took."""

    records: list[Record]
    cpu_s: float


def open_loop(target: Target, run: Run) -> Sent:
    """The records of requests that arrive when they arrive, whatever the system does."""
    return _measured(_open_loop(target, run))


def closed_loop(target: Target, run: Run, *, clients: int) -> Sent:
    """
    The records of so many clients that each ask again once they were answered.

    `run.asks` is what they ask, in turn; its times are not used.
    """
    return _measured(_closed_loop(target, run, clients))


def one_by_one(target: Target, first: SystemName, second: SystemName, run: Run) -> Sent:
    """Each question to both systems, one at a time, taking turns at going first; ours first in pairs."""
    return _measured(_one_by_one(target, (first, second), run))


def _measured(load: Coroutine[Any, Any, list[Record]]) -> Sent:
    gc.collect()
    gc.disable()  # a pause of the generator would look like one of the server
    began_s = time.process_time()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            records = runner.run(load)
    finally:
        gc.enable()
    return Sent(records, time.process_time() - began_s)


class _Clients:
    """Everybody who asks one system during one run."""

    def __init__(self, target: Target, run: Run, system: SystemName) -> None:
        self._run = run
        self._system = target.system(system)
        self._pool = target.pool
        self._http = Client(*target.address(system))
        self._rng = random.Random(run.seed)  # noqa: S311 - jitter of a load test
        places = self._system.places
        self._places = asyncio.Semaphore(places) if places else None
        self._began_s = time.monotonic()

    @property
    def now_s(self) -> float:
        """Seconds from the start of the run."""
        return time.monotonic() - self._began_s

    def close(self) -> None:
        """Close idle connections."""
        self._http.close()

    def record(self, ask: Ask, at_s: float) -> Record:
        """An empty record of a request that arrives now."""
        size = self._pool[ask.prompt].size
        return Record(at_s=at_s, size=size, tenant=ask.tenant, band=ask.band)

    async def ask(self, ask: Ask, record: Record) -> None:
        """One logical request with all its attempts, written into the record as it goes."""
        rules = self._run.rules
        try:
            while True:
                response, reading = await self._attempt(ask, record, retries=len(record.attempts))
                self._write(record, response, reading)
                if reading.whole:
                    return
                wait_s = rules.wait_s(
                    status=reading.status,
                    headers=response.headers,
                    retries=len(record.attempts) - 1,
                    rng=self._rng,
                )
                if wait_s is None:
                    return
                if self.now_s + wait_s > self._run.stop_retries_s:
                    record.cut = True
                    return
                await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            record.cut = True
            record.total_s = self.now_s - record.at_s
            raise

    async def _attempt(self, ask: Ask, record: Record, *, retries: int) -> tuple[Response, Reading]:
        rules = self._run.rules
        began_s = time.monotonic()
        give_up_s = began_s + rules.patience_s + rules.grace_s
        request = self._system.request(ask, retries=retries, patience_s=rules.patience_s)
        if await self._place(give_up_s - began_s):
            try:
                response = await self._http.send(
                    request, mark=self._system.mark, give_up_s=give_up_s
                )
            finally:
                if self._places is not None:
                    self._places.release()
        else:
            response = Response("gave_up")
        queued_s = (response.sent_s or began_s) - began_s
        response.took_s = time.monotonic() - began_s
        response.begun_earlier(queued_s)
        since_s = began_s - self._began_s - record.at_s
        record.tokens_s = tuple(since_s + mark_s for mark_s in response.marks_s)
        return response, self._system.read(response)

    async def _place(self, patience_s: float) -> bool:
        """Whether one of the system's places could be had in time."""
        if self._places is None:
            return True
        try:
            async with asyncio.timeout(patience_s):
                return await self._places.acquire()
        except TimeoutError:
            return False

    def _write(self, record: Record, response: Response, reading: Reading) -> None:
        record.attempts.append(
            Attempt(
                code=reading.code,
                status=response.status,
                took_s=response.took_s,
                server_ms=reading.server_ms,
                told_s=retry_after_s(response.headers),
            )
        )
        record.total_s = self.now_s - record.at_s
        record.whole = reading.whole
        record.degraded = reading.degraded
        record.prompt_tokens = reading.prompt_tokens
        record.completion_tokens = reading.completion_tokens
        record.retrieve_ms = reading.retrieve_ms
        if not reading.whole:
            record.tokens_s = ()


async def _open_loop(target: Target, run: Run) -> list[Record]:
    clients = _Clients(target, run, run.system)
    records: list[Record] = []
    tasks: set[asyncio.Task[None]] = set()
    try:
        for ask in run.asks:
            if (early_s := ask.at_s - clients.now_s) > 0:
                await asyncio.sleep(early_s)
            record = clients.record(ask, ask.at_s)
            record.late_s = clients.now_s - ask.at_s
            records.append(record)
            task = asyncio.create_task(clients.ask(ask, record))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(_raised)
        if tasks:
            await asyncio.wait(tasks, timeout=max(run.cut_s - clients.now_s, 0))
    finally:
        await _cancelled(tasks)
        clients.close()
    return records


async def _closed_loop(target: Target, run: Run, count: int) -> list[Record]:
    clients = _Clients(target, run, run.system)
    records: list[Record] = []
    turn = iter(run.asks)

    async def one() -> None:
        for ask in turn:
            if clients.now_s >= run.stop_retries_s:
                return
            record = clients.record(ask, clients.now_s)
            records.append(record)
            await clients.ask(ask, record)
            if not record.whole:
                told_s = record.attempts[-1].told_s or 1.0
                await asyncio.sleep(min(told_s, MAX_PAUSE_S))

    tasks = {asyncio.create_task(one()) for _ in range(count)}
    for task in tasks:
        task.add_done_callback(_raised)
    try:
        await asyncio.wait(tasks, timeout=run.cut_s)
    finally:
        await _cancelled(tasks)
        clients.close()
    return records


async def _one_by_one(
    target: Target, names: tuple[SystemName, SystemName], run: Run
) -> list[Record]:
    both = [_Clients(target, run, name) for name in names]
    records: list[Record] = []
    for n, ask in enumerate(run.asks):
        pair = [clients.record(ask, clients.now_s) for clients in both]
        for which in (n % 2, 1 - n % 2):
            pair[which].at_s = both[which].now_s
            await both[which].ask(ask, pair[which])
        records.extend(pair)
    for clients in both:
        clients.close()
    return records


def _raised(task: asyncio.Task[None]) -> None:
    """A mistake of ours ends the run loudly, instead of looking like a client that got nothing."""
    if not task.cancelled() and (exc := task.exception()):
        raise SystemExit(f"the generator is broken: {exc!r}") from exc


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
