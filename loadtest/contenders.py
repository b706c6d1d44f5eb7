"""The two systems of `before_after`: started in a memory group, kept up, and asked how they are."""

import contextlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import httpx2

from loadtest import corpus
from loadtest.memory_group import MemoryGroup
from loadtest.programs import Program, free_port
from loadtest.stack import Stack, naive_service, stack


class Contender(ABC):
    """
    A system with the documents in, for as long as its block lasts.

    Args:
        group: Everything of it is born there.
        folder: For data and logs.
        answer_tokens: Longest answer.
    """

    name: str

    def __init__(self, group: MemoryGroup, folder: Path, *, answer_tokens: int) -> None:
        self.group = group
        self._folder = folder
        self._answer_tokens = answer_tokens
        self._on = contextlib.ExitStack()

    @property
    @abstractmethod
    def program(self) -> Program:
        """Whom people ask."""

    @abstractmethod
    def keep_up(self) -> None:
        """Start again what has ended, as a process manager does."""

    @abstractmethod
    def deaths(self) -> int:
        """How often a part of it ended that nobody had asked to."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None:
        self._on.close()

    def documents(self) -> int:
        """Documents that can be asked about; none if it does not say."""
        try:
            found: list[dict[str, Any]] = (
                self.program.http.get("/documents").raise_for_status().json()["documents"]
            )
        except httpx2.HTTPError:
            return 0
        return sum(document.get("status", "ready") == "ready" for document in found)


class Naive(Contender):
    """`naive_service`, and a process manager that starts it again whenever it has ended."""

    name = "naive"

    def __enter__(self) -> Self:
        self._port = free_port()
        self._ended = 0
        self._start()
        corpus.upload(self.program.http)
        return self

    @property
    def program(self) -> Program:
        """The process that lives now, or lived last."""
        return self._program

    def keep_up(self) -> None:
        """Start it again, if it has ended."""
        if self._program.process.poll() is not None:
            self._ended += 1
            self._start()

    def deaths(self) -> int:
        """Processes that ended before their time."""
        return self._ended

    def _start(self) -> None:
        self._on.close()
        with self.group.around_children():
            self._program = self._on.enter_context(
                naive_service(
                    self._folder / f"naive-{self._ended}.log",
                    answer_tokens=self._answer_tokens,
                    port=self._port,
                )
            )


class Tidegate(Contender):
    """model_server with real vLLM, and the orchestrator; they see to their own restarts."""

    name = "tidegate"

    def __enter__(self) -> Self:
        self._restarts = 0
        with self.group.around_children():
            self._stack: Stack = self._on.enter_context(stack("vllm", self._folder))
        return self

    @property
    def program(self) -> Program:
        """The orchestrator."""
        return self._stack.orchestrator

    def keep_up(self) -> None:
        """Nothing: the engine and the embedder are started again by the two programs."""

    def deaths(self) -> int:
        """Programs that are gone, and restarts of the engine and of the embedder."""
        programs = (self._stack.engine_process, self._stack.orchestrator)
        ended = sum(program.process.poll() is not None for program in programs)
        with contextlib.suppress(httpx2.HTTPError):  # then what was last known of it holds
            embedder = self._stack.status()["embedder"]
            self._restarts = self._stack.keeper()["restarts"] + embedder["restarts"]
        return ended + self._restarts
