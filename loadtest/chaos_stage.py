"""
What `make chaos` pulls plugs on: both programs, a proxy between them, and a small disk of their own.

model_server with its engine as a user has it; the orchestrator reaches the engine through the proxy, and
is started again on the same port and the same data when it was killed.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from deploy.stack_options import LOOKAHEAD
from loadtest import corpus
from loadtest.programs import Program, free_port, wait_until_up
from loadtest.stack import (
    H100_LIKE,
    MODEL_FOLDER,
    NUM_SEQS,
    EngineName,
    Stack,
    orchestrator,
    target,
    vllm,
)
from tests.chaos_proxy import ChaosProxy, proxying
from tests.disks import small_disk
from tests.unit.model_server.making import write_model

DISK_BYTES = 256 * 1024 * 1024
UP_WITHIN_S = 60.0
LOOK_S = 0.1


@dataclass(slots=True)
class Stage:
    """
    Everything that a plug can be pulled on.

    Attributes:
        keeper: model_server, which keeps the engine.
        proxy: Between orchestrator and engine.
        disk: A small disk with the orchestrator's data; None where nobody may mount one.
        stack: The same programs, as the load tests know them.
    """

    keeper: Program
    proxy: ChaosProxy
    disk: Path | None
    stack: Stack
    _folder: Path
    _settings: dict[str, str]
    _port: int
    _on: contextlib.ExitStack

    @property
    def url(self) -> str:
        """Of the orchestrator, before and after it was killed."""
        return f"http://127.0.0.1:{self._port}"

    def engine_ready(self, *, within_s: float = UP_WITHIN_S) -> float:
        """Wait until the engine is ready; gives the seconds that it took."""
        began_s = time.monotonic()
        while not self.keeper.http.get("/readyz").is_success:
            if time.monotonic() - began_s > within_s:
                raise SystemExit(f"the engine did not come back:\n{self.keeper.tail()}")
            time.sleep(LOOK_S)
        return time.monotonic() - began_s

    def start_again(self) -> float:
        """An orchestrator in the place of the one that is gone; gives the seconds until it is ready."""
        began_s = time.monotonic()
        program = self._on.enter_context(
            orchestrator(self._folder, self.proxy.url, self._settings, port=self._port)
        )
        took_s = time.monotonic() - began_s
        self.stack = Stack(self.keeper, self.stack.engine, program, self.stack.target)
        return took_s

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
def stage(engine: EngineName, folder: Path) -> Iterator[Stage]:
    """
    The whole of it with the documents in, until the block ends.

    Args:
        engine: Which engine model_server keeps.
        folder: For data and logs.
    """
    with contextlib.ExitStack() as on:
        disk = on.enter_context(small_disk(folder / "disk", DISK_BYTES))
        changes = {} if engine == "vllm" else _simulator(folder)
        keeper, engine_url = on.enter_context(vllm(folder, changes))
        proxy = on.enter_context(proxying(engine_url))
        client = on.enter_context(httpx2.Client(base_url=engine_url, timeout=60, trust_env=False))
        settings = {
            "MAX_CONCURRENT_REQUESTS": str(NUM_SEQS[engine] + LOOKAHEAD),
            "CONTROL_URL": keeper.url,
            **({"TOKENIZER": str(MODEL_FOLDER)} if engine == "vllm" else {}),
            "DATA_DIR": str((disk or folder) / "data"),
            "MIN_FREE_DISK_BYTES": str(DISK_BYTES // 16),
        }
        port = free_port()
        program = on.enter_context(orchestrator(folder, proxy.url, settings, port=port))
        wait_until_up(program, "embedder", within_s=UP_WITHIN_S)
        corpus.upload(program.http)
        bare = corpus.prompts(corpus.CPU_SIZES if engine == "vllm" else corpus.GPU_SIZES)
        running = Stack(keeper, client, program, target(client, program, bare))
        yield Stage(keeper, proxy, disk, running, folder, settings, port, on)


def _simulator(folder: Path) -> dict[str, str]:
    """model_server's settings for a simulator in the engine's place, of an H100's speed."""
    options = (*H100_LIKE, "--max-num-seqs", str(NUM_SEQS["simulator"]))
    return {
        "MODEL_SERVER_ENGINE": "simulator",
        "MODEL_SERVER_MODEL": str(write_model(folder / "model")),
        "MODEL_SERVER_DEVICE": "cpu",
        "MODEL_SERVER_ENGINE_ARGS": " ".join(options),
    }
