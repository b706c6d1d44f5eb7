"""
What `make chaos` pulls plugs on: both programs, a proxy between them, and a small disk of their own.

model_server with its engine as a user has it, under a memory limit where one can be set; the orchestrator
reaches the engine through the proxy. Both are started again on the same ports, and the same data, when
they were killed. A Prometheus watches, where there is one.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from deploy.stack_options import LOOKAHEAD
from loadtest import corpus
from loadtest.memory_group import MemoryGroup, NoMemoryGroup, memory_group
from loadtest.programs import Program, free_port, wait_until_up
from loadtest.prometheus import Prometheus, prometheus
from loadtest.stack import (
    H100_LIKE,
    MODEL_FOLDER,
    MODELLED,
    Device,
    EngineName,
    Stack,
    device_of,
    orchestrator,
    target,
    vllm,
)
from tests.chaos_proxy import ChaosProxy, proxying
from tests.disks import small_disk
from tests.unit.model_server.making import write_model
from tests.without import OF_CHAOS, OF_MODEL_SERVER, VARIABLE

DISK_BYTES = 256 * 1024 * 1024
KEEPER_BYTES = 6 * 1024**3
"""What model_server, its engine and whoever eats memory beside them may have together."""
HANG_S = {"simulator": 5, "vllm": 20}
"""After which an engine that does nothing is killed; longer than its longest prompt takes."""
UP_WITHIN_S = 60.0
HANGS, ALARMS = "hang detection", "alarms"
"""Safeguards that are taken out by a setting, and by leaving the rules away."""
WITHOUT = (*OF_CHAOS, *OF_MODEL_SERVER, HANGS, ALARMS)
LOOK_S = 0.1


class Gone(Exception):
    """Something did not come back; nothing more can be tried with this stage."""


@dataclass(slots=True)
class Stage:
    """
    Everything that a plug can be pulled on.

    Attributes:
        keeper: model_server, which keeps the engine.
        proxy: Between orchestrator and engine.
        disk: A small disk with the orchestrator's data; None where nobody may mount one.
        group: The memory limit that model_server is under; None where none can be set.
        prometheus: Watches both programs; None where there is none.
        changes: MODEL_SERVER_* that model_server was started with.
        stack: The same programs, as the load tests know them.
    """

    engine: EngineName
    keeper: Program
    proxy: ChaosProxy
    disk: Path | None
    group: MemoryGroup | None
    prometheus: Prometheus | None
    changes: dict[str, str]
    stack: Stack
    _folder: Path
    _settings: dict[str, str]
    _port: int
    _module: str
    _on: contextlib.ExitStack

    @property
    def url(self) -> str:
        """Of the orchestrator, before and after it was killed."""
        return f"http://127.0.0.1:{self._port}"

    def engine_ready(self, *, within_s: float = UP_WITHIN_S) -> float:
        """
        Wait until the engine is ready; gives the seconds that it took.

        Raises:
            Gone: If it is not in time.
        """
        began_s = time.monotonic()
        while not self.keeper.http.get("/readyz").is_success:
            if time.monotonic() - began_s > within_s:
                raise Gone(f"the engine was not ready within {within_s:g} s")
            time.sleep(LOOK_S)
        return time.monotonic() - began_s

    def start_again(self) -> float:
        """An orchestrator in the place of the one that is gone; gives the seconds until it is ready."""
        began_s = time.monotonic()
        program = self._on.enter_context(
            orchestrator(
                self._folder, self.proxy.url, self._settings, port=self._port, module=self._module
            )
        )
        took_s = time.monotonic() - began_s
        self.stack = replace(self.stack, orchestrator=program)
        return took_s

    def keeper_again(self, **changes: str) -> None:
        """model_server in the place of the one that is gone, with its engine ready; or with `changes`."""
        with _inside(self.group):
            program, _ = self._on.enter_context(vllm(self._folder, {**self.changes, **changes}))
        self.keeper = program
        self.stack = replace(self.stack, engine_process=program)

    def upload(self, name: str, data: bytes) -> httpx2.Response:
        """What the orchestrator says to a document, without waiting for its work."""
        return httpx2.post(
            f"{self.url}/upload", files={"file": (name, data)}, timeout=30, trust_env=False
        )

    def documents(self) -> dict[str, str]:
        """Status by id of all documents."""
        found: list[dict[str, Any]] = (
            self.stack.orchestrator.http.get("/documents").raise_for_status().json()["documents"]
        )
        return {str(document["id"]): str(document["status"]) for document in found}


@contextmanager
def stage(engine: EngineName, folder: Path, *, without: str = "") -> Iterator[Stage]:
    """
    The whole of it with the documents in, until the block ends.

    Args:
        engine: Which engine model_server keeps.
        folder: For data and logs.
        without: One of WITHOUT: a safeguard that is taken out.
    """
    with contextlib.ExitStack() as on:
        disk = on.enter_context(small_disk(folder / "disk", DISK_BYTES))
        group = _group(on)
        changes = {
            "MODEL_SERVER_HANG_TIMEOUT_S": str(HANG_S[engine]),
            "MODEL_SERVER_CONTROL_PORT": str(free_port()),
            "MODEL_SERVER_ENGINE_PORT": str(free_port()),
            **({} if engine == "vllm" else _simulator(folder)),
        }
        if without == HANGS:
            changes["MODEL_SERVER_HANG_TIMEOUT_S"] = "3600"
        keeper_module, module = _modules(without)
        if "tests.without" in {keeper_module, module}:
            on.enter_context(_variable(VARIABLE, without))
        with _inside(group):
            keeper, engine_url = on.enter_context(vllm(folder, changes, module=keeper_module))
        proxy = on.enter_context(proxying(engine_url))
        client = on.enter_context(httpx2.Client(base_url=engine_url, timeout=60, trust_env=False))
        device = device_of(engine, keeper)
        settings = _settings(engine, device, keeper, disk or folder)
        port = free_port()
        program = on.enter_context(
            orchestrator(folder, proxy.url, settings, port=port, module=module)
        )
        wait_until_up(program, "embedder", within_s=UP_WITHIN_S)
        corpus.upload(program.http)
        bare = corpus.prompts(corpus.GPU_SIZES if device.large else corpus.CPU_SIZES)
        running = Stack(keeper, client, program, target(client, program, bare), device)
        watching = on.enter_context(
            prometheus(
                folder / "prometheus",
                {
                    "orchestrator": program.url.removeprefix("http://"),
                    "model_server": keeper.url.removeprefix("http://"),
                },
                alarms=without != ALARMS,
            )
        )
        yield Stage(
            engine=engine, keeper=keeper, proxy=proxy, disk=disk, group=group, prometheus=watching,
            stack=running, _folder=folder, changes=changes, _settings=settings, _port=port,
            _module=module, _on=on,
        )  # fmt: skip


def _modules(without: str) -> tuple[str, str]:
    """What is run as model_server, and what as the orchestrator."""
    return (
        "tests.without" if without in OF_MODEL_SERVER else "model_server",
        "tests.without" if without in OF_CHAOS else "orchestrator",
    )


def _group(on: contextlib.ExitStack) -> MemoryGroup | None:
    try:
        return on.enter_context(memory_group(KEEPER_BYTES))
    except NoMemoryGroup:
        return None


def _inside(group: MemoryGroup | None) -> contextlib.AbstractContextManager[None]:
    return group.around_children() if group else contextlib.nullcontext()


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """An environment variable, for the programs that are started in the block."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _settings(engine: EngineName, device: Device, keeper: Program, disk: Path) -> dict[str, str]:
    """The orchestrator's."""
    return {
        "MAX_CONCURRENT_REQUESTS": str(device.num_seqs + LOOKAHEAD),
        "CONTROL_URL": keeper.url,
        **({"TOKENIZER": str(MODEL_FOLDER)} if engine == "vllm" else {}),
        "DATA_DIR": str(disk / "data"),
        "MIN_FREE_DISK_BYTES": str(DISK_BYTES // 16),
    }


def _simulator(folder: Path) -> dict[str, str]:
    """model_server's settings for a simulator in the engine's place, of an H100's speed."""
    options = (*H100_LIKE, "--max-num-seqs", str(MODELLED.num_seqs))
    return {
        "MODEL_SERVER_ENGINE": "simulator",
        "MODEL_SERVER_MODEL": str(write_model(folder / "model")),
        "MODEL_SERVER_DEVICE": "cpu",
        "MODEL_SERVER_ENGINE_ARGS": " ".join(options),
    }
