"""The engine and the orchestrator under load, and what they say of themselves."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import httpx2
import psutil

from deploy.stack_options import LOOKAHEAD
from loadtest import corpus
from loadtest.generator import Target
from loadtest.programs import ROOT, Program, free_port, machine_cpu_s, running
from model_server.planner import DEFAULT_NUM_SEQS
from orchestrator.access.key_file import KeyFile
from orchestrator.access.ownership import LOCAL

EngineName = Literal["simulator", "vllm"]

H100_LIKE = ("--profile", "h100-8b", "--stream-interval", "8")
"""Arguments of the simulator: a large engine, that no test of these two cores can fill by itself."""
NO_ENGINE = "http://127.0.0.1:9"
"""For an orchestrator that only takes documents and searches them."""
ENGINE_START_S = 400.0
ORCHESTRATOR_START_S = 120.0
NAIVE_START_S = 180.0
SETTLE_S = 5.0
LOOK_EVERY_S = 0.1
SPARE_SOCKETS = 8
"""Kept-alive connections, to the engine above all, are no leak."""
SPARE_TASKS = 4

MODEL_FOLDER = ROOT / ".models" / "smollm2-135m-instruct"
ENGINE_PYTHON = ROOT / ".venv-engine" / "bin" / "python"
VLLM_MODEL = "smollm2-135m-instruct"

_LINE = re.compile(r"^(?P<name>[\w:]+)(?P<labels>\{[^}]*\})?\s+(?P<value>\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Device:
    """
    Where an engine computes.

    Attributes:
        name: For people.
        large: Whether it is a GPU, real or modelled: long prompts and answers, hundreds at a time.
        num_seqs: How many the engine answers at a time at most.
    """

    name: str
    large: bool
    num_seqs: int


MODELLED = Device("a model of an H100", large=True, num_seqs=DEFAULT_NUM_SEQS["cuda"])
"""Of the simulator, with H100_LIKE."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    Counters at one moment. What a program does not export is None.

    Attributes:
        engine_cpu_s: The engine's process and all below it.
        orchestrator_cpu_s: The orchestrator's process alone.
        children_cpu_s: Its embedder and parsers.
        machine_cpu_s: Everything that runs on this machine.
        engine_requests: That the engine has ended, in any way, and those that it refused.
        retries: Further attempts of the orchestrator at the engine.
    """

    engine_cpu_s: float
    orchestrator_cpu_s: float
    children_cpu_s: float
    machine_cpu_s: float
    preemptions: float | None
    engine_requests: float | None
    generated_tokens: float | None
    retries: float | None
    tasks: int | None
    open_sockets: int | None


@dataclass(frozen=True, slots=True)
class Stack:
    """
    Both programs.

    Attributes:
        engine_process: What was started for the engine (model_server, if it is vLLM).
        engine: A client of the engine.
        orchestrator: The orchestrator.
        target: The same, as the generator needs it.
        device: Where the engine computes.
    """

    engine_process: Program
    engine: httpx2.Client
    orchestrator: Program
    target: Target
    device: Device

    def status(self) -> dict[str, Any]:
        """The orchestrator's /status."""
        found: dict[str, Any] = self.orchestrator.http.get("/status").raise_for_status().json()
        return found

    def keeper(self) -> dict[str, Any]:
        """The /state of model_server; of a stack that has one."""
        found: dict[str, Any] = self.engine_process.http.get("/state").raise_for_status().json()
        return found

    def engine_family(self) -> list[psutil.Process]:
        """Every process of the engine: all below the guard that model_server names; none while it is gone."""
        guard = self.keeper()["pid"]
        # Without a number psutil means this very process, and its family is everything that we started.
        return [] if guard is None else psutil.Process(guard).children(recursive=True)

    def kill_engine(self) -> None:
        """End every process of the engine with -9."""
        for process in self.engine_family():
            with contextlib.suppress(psutil.NoSuchProcess):  # they end together
                process.kill()

    def snapshot(self) -> Snapshot:
        """Every counter, now."""
        engine = self.engine.get("/metrics").text
        ours = self.orchestrator.http.get("/metrics").text
        process = self.status().get("process") or {}
        ended = series(engine, "vllm:request_success_total")
        refused = series(engine, "vllm:admission_rejections_total") or 0.0
        own_s = self.orchestrator.own_cpu_s()
        return Snapshot(
            engine_cpu_s=self.engine_process.tree_cpu_s(),
            orchestrator_cpu_s=own_s,
            children_cpu_s=self.orchestrator.tree_cpu_s() - own_s,
            machine_cpu_s=machine_cpu_s(),
            preemptions=series(engine, "vllm:num_preemptions_total"),
            engine_requests=None if ended is None else ended + refused,
            generated_tokens=series(engine, "vllm:generation_tokens_total"),
            # A labelled counter that never counted has no line: that is zero, not unknown.
            retries=series(ours, "tidegate_engine_retries_total") or 0.0,
            tasks=process.get("tasks"),
            open_sockets=process.get("open_sockets"),
        )

    def leaks(self, before: Snapshot, *, settle_s: float = SETTLE_S) -> list[str]:
        """What is still held, in words, when all clients have gone and `settle_s` have passed."""
        until_s = time.monotonic() + settle_s
        while True:
            found = [*self._gate_leaks(before), *self._engine_leaks()]
            if not found or time.monotonic() >= until_s:
                return found
            time.sleep(LOOK_EVERY_S)

    def _gate_leaks(self, before: Snapshot) -> list[str]:
        status = self.status()
        gate, process = status.get("gate") or {}, status.get("process") or {}
        found = [
            f"gate.{name} is {gate[name]}"
            for name in ("running", "queued", "reserved_tokens")
            if gate.get(name)
        ]
        for name, was, spare in (
            ("tasks", before.tasks, SPARE_TASKS),
            ("open_sockets", before.open_sockets, SPARE_SOCKETS),
        ):
            now = process.get(name)
            if was is not None and now is not None and now > was + spare:
                found.append(f"process.{name} is {now}, was {was}")
        return found

    def _engine_leaks(self) -> list[str]:
        text = self.engine.get("/metrics").text
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        return [f"{name} is {left:g}" for name in names if (left := series(text, name))]


def series(text: str, name: str) -> float | None:
    """The sum of a Prometheus series over all its labels; None if the page does not have it."""
    values = [float(m["value"]) for m in _LINE.finditer(text) if m["name"] == name]
    return sum(values) if values else None


@contextmanager
def stack(
    engine: EngineName,
    folder: Path,
    *,
    simulator_options: Sequence[str] = (),
    settings: Sequence[tuple[str, str]] = (),
    model_server: Mapping[str, str] | None = None,
    tenants: Sequence[str] = (),
) -> Iterator[Stack]:
    """
    Engine and orchestrator with the documents in, until the block ends.

    Args:
        engine: Which engine.
        folder: For data and logs.
        simulator_options: Further arguments of the simulator.
        settings: ORCHESTRATOR_* by name without the prefix.
        model_server: MODEL_SERVER_* by their whole names, of vLLM's model_server.
        tenants: Who gets a key; then nobody is let in without one.
    """
    with contextlib.ExitStack() as on:
        starting = (
            vllm(folder, model_server or {})
            if engine == "vllm"
            else simulator(folder, simulator_options)
        )
        process, url = on.enter_context(starting)
        client = on.enter_context(httpx2.Client(base_url=url, timeout=60, trust_env=False))
        device = device_of(engine, process)
        wanted = {
            # As `make run` sets it by the plan: the engine's batch, and a few more.
            "MAX_CONCURRENT_REQUESTS": str(device.num_seqs + LOOKAHEAD),
            **dict(settings),
        }
        if engine == "vllm":
            model = (model_server or {}).get("MODEL_SERVER_MODEL", str(MODEL_FOLDER))
            wanted |= {"TOKENIZER": model, "CONTROL_URL": process.url}
        ours = on.enter_context(orchestrator(folder, url, wanted))
        corpus.upload(ours.http)
        bare = corpus.prompts(corpus.GPU_SIZES if device.large else corpus.CPU_SIZES)
        pool = corpus.assembled(ours.http, bare)
        keys = keys_of(tenants, ours, folder / "data") if tenants else ()
        asked = replace(target(client, ours, pool), keys=keys)
        yield Stack(process, client, ours, asked, device)


def keys_of(tenants: Sequence[str], ours: Program, data: Path) -> tuple[tuple[str, str], ...]:
    """
    A key for each, to the documents that are there already; the program's own client gets an admin's.

    Without keys callers are told apart by their addresses, and all of a load test's have the same.
    """
    file = KeyFile(data)
    made = tuple((name, file.create(name, owner=LOCAL)[1]) for name in tenants)
    _, admin = file.create("loadtest", owner=LOCAL, admin=True)
    until = time.monotonic() + SETTLE_S
    while ours.http.get("/metrics").is_success:  # it knows of keys once it asks for one
        if time.monotonic() > until:
            raise SystemExit("the orchestrator does not ask for the keys that were made")
        time.sleep(LOOK_EVERY_S)
    ours.http.headers["Authorization"] = f"Bearer {admin}"
    return made


def device_of(engine: EngineName, process: Program) -> Device:
    """Where the engine computes; vLLM's is what its model_server planned for."""
    if engine == "simulator":
        return MODELLED
    plan = process.http.get("/plan").raise_for_status().json()
    return Device(
        name=plan["device"]["name"],
        large=plan["device"]["kind"] == "cuda",
        num_seqs=plan["max_num_seqs"],
    )


def target(engine: httpx2.Client, ours: Program, pool: Sequence[corpus.Prompt]) -> Target:
    """Engine and orchestrator as the generator needs them."""
    return Target(
        engine=(engine.base_url.host, engine.base_url.port or 80),
        orchestrator=ours.address,
        model=str(engine.get("/v1/models").json()["data"][0]["id"]),
        bands="priority" in ours.http.get("/openapi.json").text,
        pool=tuple(pool),
    )


@contextmanager
def simulator(folder: Path, options: Sequence[str] = ()) -> Iterator[tuple[Program, str]]:
    """The simulator, and where it listens; its log goes to the folder."""
    with running(
        ["model_server.simulator", "--port", "0", *options],
        log=folder / "simulator.log",
        start_s=30,
        ready_path="/health",
    ) as program:
        yield program, program.url


@contextmanager
def vllm(
    folder: Path,
    changes: Mapping[str, str] = MappingProxyType({}),
    *,
    module: str = "model_server",
) -> Iterator[tuple[Program, str]]:
    """model_server with vLLM and the bundled model, and where the engine listens; or with `changes`."""
    control = int(changes.get("MODEL_SERVER_CONTROL_PORT", "0")) or free_port()
    settings = {
        "MODEL_SERVER_MODEL": str(MODEL_FOLDER),
        "MODEL_SERVER_SERVED_MODEL_NAME": VLLM_MODEL,
        "MODEL_SERVER_ENGINE_PYTHON": str(ENGINE_PYTHON),
        "MODEL_SERVER_ENGINE_PORT": str(free_port()),
        "MODEL_SERVER_CONTROL_PORT": str(control),
        "MODEL_SERVER_LOG_DIR": str(folder),
    }
    with running(
        [module, "serve"],
        log=folder / "model_server.log",
        start_s=ENGINE_START_S,
        url=f"http://127.0.0.1:{control}",
        ready_path="/readyz",
        environment={**settings, **changes},
    ) as program:
        yield program, str(program.http.get("/state").json()["engine_url"])


@contextmanager
def naive_service(log: Path, *, answer_tokens: int, port: int | None = None) -> Iterator[Program]:
    """
    The service that people write first, with no document yet, until the block ends.

    Args:
        log: File for what it writes.
        answer_tokens: Longest answer.
        port: Where it listens; None is a free one.
    """
    port = port or free_port()
    arguments = [
        *("loadtest.naive_service", "--port", str(port), "--model", str(MODEL_FOLDER)),
        *("--max-new-tokens", str(answer_tokens)),
    ]
    with running(
        arguments,
        log=log,
        start_s=NAIVE_START_S,
        url=f"http://127.0.0.1:{port}",
        ready_path="/documents",
    ) as program:
        yield program


@contextmanager
def orchestrator(
    folder: Path,
    engine_url: str,
    settings: Mapping[str, str] = MappingProxyType({}),
    *,
    ready_path: str = "/readyz",
    port: int | None = None,
    module: str = "orchestrator",
) -> Iterator[Program]:
    """
    An orchestrator in front of that engine, from when it is ready until the block ends.

    Args:
        folder: Holds its `data` and its log.
        engine_url: Where the engine listens.
        settings: ORCHESTRATOR_* by name without the prefix.
        ready_path: Answers 200 once it is ready.
        port: Where it listens; None is a free one.
        module: What is run in its place.
    """
    port = port or free_port()
    wanted = {"PORT": str(port), "DATA_DIR": str(folder / "data"), "ENGINE_URL": engine_url}
    with running(
        [module, "serve"],
        log=folder / "orchestrator.log",
        start_s=ORCHESTRATOR_START_S,
        url=f"http://127.0.0.1:{port}",
        ready_path=ready_path,
        environment={f"ORCHESTRATOR_{k.upper()}": v for k, v in (wanted | dict(settings)).items()},
    ) as program:
        yield program
