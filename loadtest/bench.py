"""One run: load on one system, and everything that is measured around it."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loadtest import corpus
from loadtest.arrivals import Ask, Flow, Mix, schedule
from loadtest.client_rules import ClientRules
from loadtest.corpus import NONCE
from loadtest.figures import RETRIEVAL_ONLY, Figures, Window, figures
from loadtest.generator import (
    Other,
    Record,
    Run,
    Sent,
    Target,
    closed_loop,
    one_by_one,
    open_loop,
)
from loadtest.stack import MODEL_FOLDER, Snapshot, Stack, naive_service
from loadtest.systems import NAIVE, SYSTEMS, SystemName

LOADS_X = (0.5, 0.9, 1.0, 2.0, 10.0)
WARM_UP_SHARE = 0.5
"""At most: who arrives early finds an empty engine, until those give up who came first."""
LAST_ANSWERS_S = 120.0
"""How long a closed loop's last answers may take, when no client asks again any more."""
ENGINE_EMPTY_S = 60.0
CLOSED_S = 36.0
"""At least: clients that start together stay in step for about one answer."""
CPU_OF = ("orchestrator_cpu_s", "children_cpu_s", "engine_cpu_s")
PAIR_PROMPTS = 8
PAIR_TOKENS = 32
SMALL_ASKS_PER_S = 20
"""More than one client gets answered."""


@dataclass(frozen=True, slots=True)
class Result:
    """
    What came of one run.

    Attributes:
        load_x: Offered, in multiples of the capacity; None in a closed loop.
        upstream: The orchestrator's attempts at the engine for each request that it let through.
        engine_requests: What the engine counted, for each of the same.
        others_cpu_s: What else ran on this machine: the more, the less a run can be believed.
        leaks: What was still held afterwards, in words; of tidegate only.
        window: What of the run is looked at.
        records: What each client saw.
    """

    scenario: str
    system: SystemName
    load_x: float | None
    seed: int
    figures: Figures
    upstream: float | None
    engine_requests: float | None
    preemptions: float | None
    orchestrator_cpu_s: float
    children_cpu_s: float
    engine_cpu_s: float
    generator_cpu_s: float
    others_cpu_s: float
    seconds: float
    leaks: tuple[str, ...]
    window: Window
    records: tuple[Record, ...]

    def arrived(self, **having: str) -> list[Record]:
        """Records of the requests that arrived in the window and have these attributes."""
        return [
            r
            for r in self.records
            if self.window.holds(r.at_s) and all(getattr(r, k) == v for k, v in having.items())
        ]


@dataclass(frozen=True, slots=True)
class Bench:
    """
    Sends loads and measures.

    Attributes:
        generator: One worker process; the load is sent from there.
        capacity_rps: What the engine does by itself, in logical requests a second.
        seconds: Length of an ordinary run.
        seed: Of this repeat.
        on_result: Told of each run as it ends.
        loads_x: The multiples of the capacity that the curve offers.
        systems: Whom the curve compares.
        drifts: Whether the engine is slower when the machine is, which others may share.
    """

    stack: Stack
    generator: ProcessPoolExecutor
    rules: ClientRules
    mix: Mix
    seconds: float
    seed: int
    on_result: Callable[[Result], None]
    loads_x: tuple[float, ...] = LOADS_X
    systems: tuple[SystemName, ...] = SYSTEMS
    drifts: bool = False
    capacity_rps: float = 1.0

    def flow(self, load_x: float, **options: object) -> Flow:
        """Arrivals at a multiple of the capacity, for the whole run unless told otherwise."""
        wanted = {"end_s": self.seconds, **options}
        return Flow(rate_per_s=load_x * self.capacity_rps, **wanted)  # type: ignore[arg-type] # a Flow's

    def open(
        self,
        scenario: str,
        system: SystemName,
        flows: Sequence[Flow],
        *,
        load_x: float,
        window: Window | None = None,
        turn: int = 0,
    ) -> Result:
        """
        Arrivals that wait for nobody, on one system; a patience, or half the run, warms up.

        Each `turn` of the same within a repeat has arrivals, and asks, of its own.
        """
        end_s = max(flow.end_s for flow in flows)
        # A collapsed baseline would take minutes to run dry: after this nothing is good any more.
        tail_s = self.rules.patience_s + self.rules.grace_s + 1
        run = Run(
            system=system,
            asks=self._asks(flows, salt=f"{scenario}/{system}/{load_x}/{turn}"),
            rules=self.rules,
            stop_retries_s=end_s + self.rules.first_token_slo_s,
            cut_s=end_s + tail_s + (self.rules.first_token_slo_s if system == "tidegate" else 0),
            seed=self.seed,
        )
        return self._around(
            scenario,
            run,
            load_x=load_x,
            window=window or self._steady(end_s),
            clients=None,
        )

    def closed(self, scenario: str, system: SystemName, *, clients: int) -> Result:
        """So many clients that each ask again once they were answered."""
        seconds = max(CLOSED_S, self.seconds)
        # More asks than any system here can answer in the time; the times do not matter.
        flow = Flow(rate_per_s=max(2.0 * clients, 50.0), end_s=seconds)
        run = Run(
            system=system,
            asks=self._asks([flow], salt=f"{scenario}/{system}"),
            rules=ClientRules(patience_s=4 * seconds, first_token_slo_s=4 * seconds),
            stop_retries_s=seconds,
            cut_s=seconds + LAST_ANSWERS_S,
            seed=self.seed,
        )
        window = self._steady(seconds)
        return self._around(scenario, run, load_x=None, window=window, clients=clients)

    def pairs(self, repeats: int) -> Sent:
        """
        Records of the orchestrator and of the engine in turn, one request at a time.

        Each prompt was asked once before: what is compared is not who finds it computed already.
        """
        small = self._small_prompts()[:PAIR_PROMPTS]
        asks = _small_asks(small, len(small) + repeats)
        run = Run("tidegate", asks, self.rules, stop_retries_s=0, cut_s=0, seed=self.seed)
        both = self.generator.submit(one_by_one, self.stack.target, "tidegate", "engine", run)
        sent = both.result()
        return Sent(sent.records[2 * len(small) :], sent.cpu_s)

    def small(self, *, clients: int, seconds: float) -> Sent:
        """Records of so many clients who ask tidegate small questions, again and again."""
        asks = _small_asks(self._small_prompts(), int(clients * seconds * SMALL_ASKS_PER_S))
        rules = ClientRules(patience_s=4 * seconds, first_token_slo_s=4 * seconds)
        run = Run("tidegate", asks, rules, stop_retries_s=seconds, cut_s=seconds, seed=self.seed)
        return self.generator.submit(closed_loop, self.stack.target, run, clients=clients).result()

    def _small_prompts(self) -> list[int]:
        return [n for n, p in enumerate(self.stack.target.pool) if p.size == "small"]

    def _asks(self, flows: Sequence[Flow], *, salt: str) -> tuple[Ask, ...]:
        sizes = [prompt.size for prompt in self.stack.target.pool]
        return schedule(flows, pool=sizes, mix=self.mix, seed=self.seed, salt=salt)

    def _steady(self, end_s: float) -> Window:
        return Window(min(self.rules.patience_s, WARM_UP_SHARE * end_s), end_s)

    def _around(
        self,
        scenario: str,
        run: Run,
        *,
        load_x: float | None,
        window: Window,
        clients: int | None,
    ) -> Result:
        self._engine_runs_dry()
        with self._asked(run.system) as target:
            before = self.stack.snapshot()
            began_s = time.monotonic()
            if clients is None:
                sent = self.generator.submit(open_loop, target, run).result()
            else:
                sent = self.generator.submit(closed_loop, target, run, clients=clients).result()
        leaks = self.stack.leaks(before) if run.system == "tidegate" else []
        after = self.stack.snapshot()
        took_s = time.monotonic() - began_s
        first = _let_through(sent.records)
        result = Result(
            scenario=scenario,
            system=run.system,
            load_x=load_x,
            seed=self.seed,
            figures=figures(sent.records, run.rules, window),
            upstream=_ratio(_delta(before, after, "retries"), first, plus=1.0),
            engine_requests=_ratio(_delta(before, after, "engine_requests"), first),
            preemptions=_delta(before, after, "preemptions"),
            **_cpu(before, after, sent.cpu_s),
            seconds=took_s,
            leaks=tuple(leaks),
            window=window,
            records=tuple(sent.records),
        )
        self.on_result(result)
        return result

    @contextmanager
    def _asked(self, system: SystemName) -> Iterator[Target]:
        """
        Where the load goes; the naive service is new for each run, with its model in memory.

        What one run has left it to do would last far into the next.
        """
        target = self.stack.target
        if system != NAIVE:
            yield target
            return
        tokens = round(self.mix.mean_tokens)
        with (
            tempfile.TemporaryDirectory() as folder,
            naive_service(Path(folder) / "naive.log", answer_tokens=tokens) as program,
        ):
            corpus.upload(program.http)
            question = target.pool[0].question
            program.http.post("/ask", json={"question": question}).raise_for_status()
            naive = Other(program.address, str(MODEL_FOLDER))
            yield replace(target, others=(*target.others, (NAIVE, naive)))
            program.process.kill()

    def _engine_runs_dry(self) -> None:
        """Wait until nothing of the run before is left."""
        if left := self.stack.leaks(self.stack.snapshot(), settle_s=ENGINE_EMPTY_S):
            raise SystemExit(f"the run before left something behind for good: {left}")


def _small_asks(prompts: Sequence[int], count: int) -> tuple[Ask, ...]:
    """So many asks with short answers, taking the prompts in turn."""
    return tuple(
        Ask(0.0, prompts[n % len(prompts)], PAIR_TOKENS, NONCE, False, "load", "normal", False)  # noqa: FBT003 - a record's fields
        for n in range(count)
    )


def _cpu(before: Snapshot, after: Snapshot, generator_cpu_s: float) -> dict[str, float]:
    """CPU seconds of each part, and of what is none of ours."""
    ours = {n: getattr(after, n) - getattr(before, n) for n in CPU_OF}
    ours["generator_cpu_s"] = generator_cpu_s
    all_s = after.machine_cpu_s - before.machine_cpu_s
    return {**ours, "others_cpu_s": all_s - sum(ours.values())}


def _delta(before: Snapshot, after: Snapshot, name: str) -> float | None:
    was, now = getattr(before, name), getattr(after, name)
    return None if was is None or now is None else now - was


def _ratio(part: float | None, whole: int, *, plus: float = 0.0) -> float | None:
    return None if part is None or not whole else plus + part / whole


def _let_through(records: Sequence[Record]) -> int:
    """Attempts of clients for which the engine was asked: answered by it, or failed by it."""
    answered = sum(r.whole and r.degraded != RETRIEVAL_ONLY for r in records)
    failed = sum(a.code.startswith("engine_") for r in records for a in r.attempts)
    return answered + failed
