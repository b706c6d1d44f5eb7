"""
Takes one safeguard out, to see whether anybody notices: for `tests/safeguards.py` and `tests/chaos_red.py`.

`pytest -p tests.without` with TIDEGATE_WITHOUT set patches the tests' own process and every
orchestrator that they start, which is then `python -m tests.without serve`; and so is the
model_server of `make chaos`, where the safeguard is its own.
"""

import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from model_server.supervisor import Supervisor
from orchestrator.generation import engine_client
from orchestrator.generation.engine_monitor import EngineMonitor
from orchestrator.pipelines import document_files, query
from orchestrator.resilience import admission_policy
from orchestrator.resilience.admission import AdmissionGate
from orchestrator.resilience.admission_policy import Action, Capacity, Decision
from orchestrator.resilience.circuit_breaker import CircuitBreaker
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.engine_capacity import EngineCapacity
from orchestrator.retrieval.retriever import Retriever

VARIABLE = "TIDEGATE_WITHOUT"
NEVER_S = 3600.0
NO_LIMIT = 10**6


def _no_memory_watching() -> None:
    """The gate knows nothing of the engine's cache."""
    _capacity(lambda known: Capacity(None, known.concurrent, known.prefill_tokens))


def _no_queue_bound() -> None:
    """Whoever would be refused waits."""
    decide = admission_policy.decide

    def patient(**facts: Any) -> Decision:
        decision = decide(**facts)
        refused = decision.action is Action.REFUSE
        return Decision(Action.WAIT, decision.eta_s) if refused else decision

    _replace(admission_policy, "decide", patient)


def _no_concurrency_limit() -> None:
    """Everybody goes to the engine at once."""
    _capacity(lambda known: Capacity(known.kv_tokens, NO_LIMIT, NO_LIMIT))
    initialise = engine_client.EngineClient.__init__

    def unlimited(self: Any, **arguments: Any) -> None:
        initialise(self, **{**arguments, "max_concurrent": NO_LIMIT})

    _replace(engine_client.EngineClient, "__init__", unlimited)


def _no_timeouts() -> None:
    """No timer at the engine ever fires, and no deadline passes."""
    timers = engine_client.EngineTimeouts(connect_s=NEVER_S, first_token_s=NEVER_S, stall_s=NEVER_S)
    initialise = engine_client.EngineClient.__init__

    def patient(self: Any, **arguments: Any) -> None:
        initialise(self, **{**arguments, "timeouts": timers})

    _replace(engine_client.EngineClient, "__init__", patient)
    _replace(Deadline, "remaining_s", lambda _: NEVER_S)
    _replace(Deadline, "expired", property(lambda _: False))


def _no_degradation() -> None:
    """An error is an error."""
    _replace(query, "ELSEWHERE", ())


def _no_unloading() -> None:
    """What is idle keeps all that it ever took."""
    from orchestrator.retrieval import embedder_process  # noqa: PLC0415 - torch's home

    _replace(embedder_process, "give_back_when_idle", lambda _: None)


def _no_cleanup() -> None:
    """A reservation is never given back."""
    _replace(AdmissionGate, "leave", lambda _self, _ticket: None)


def _no_recovery() -> None:
    """Nothing is tried a second time."""
    _replace(engine_client, "stop_when", lambda *_, **__: lambda _state: True)


def _no_health_checks() -> None:
    """The engine is looked at once, at the start."""

    async def blind(_self: EngineMonitor) -> None:
        await asyncio.sleep(NEVER_S)

    _replace(EngineMonitor, "_look_again", blind)


def _no_breakers() -> None:
    """No breaker hears how a call ended."""
    _replace(CircuitBreaker, "settle", lambda _self, _era, _result, _why="": None)


def _no_metrics_age() -> None:
    """What the engine's metrics said last holds for ever."""
    _replace(EngineCapacity, "stale", property(lambda _: False))


def _no_search_by_words() -> None:
    """A question that cannot be embedded is not searched."""
    vector = Retriever._vector

    async def demanding(self: Retriever, text: str) -> Any:
        found = await vector(self, text)
        if isinstance(found, Exception):
            raise found
        return found

    _replace(Retriever, "_vector", demanding)


def _no_disk_errors() -> None:
    """Nobody looks how much disk is left, and what it says is nobody's business."""

    def escaping(exc: OSError) -> Any:
        raise exc

    _replace(document_files.DocumentFiles, "_check_room", lambda _self, _size: None)
    _replace(document_files, "_disk_error", escaping)


def _no_durability() -> None:
    """Documents are gone with the process that took them."""
    name = "ORCHESTRATOR_DATA_DIR"
    os.environ[name] = f"{os.environ[name]}/of-{os.getpid()}"


def _no_supervision() -> None:
    """An engine that has ended stays away."""

    async def stays_away(self: Supervisor, seconds: float) -> None:
        del self, seconds
        await asyncio.sleep(NEVER_S)

    _replace(Supervisor, "_pause", stays_away)


PATCHES: Mapping[str, Callable[[], None]] = {
    "GPU memory watching": _no_memory_watching,
    "request queue": _no_queue_bound,
    "concurrency limit": _no_concurrency_limit,
    "timeouts": _no_timeouts,
    "graceful degradation": _no_degradation,
    "model unloading": _no_unloading,
    "memory cleanup": _no_cleanup,
    "error recovery": _no_recovery,
    "health checks": _no_health_checks,
    "circuit breakers": _no_breakers,
}
"""The ten of docs/operations.md."""

OF_CHAOS: Mapping[str, Callable[[], None]] = {
    **PATCHES,
    "age of metrics": _no_metrics_age,
    "search by words": _no_search_by_words,
    "errors of the disk": _no_disk_errors,
    "durability": _no_durability,
}
OF_MODEL_SERVER: Mapping[str, Callable[[], None]] = {"supervision": _no_supervision}


def _capacity(change: Callable[[Capacity], Capacity]) -> None:
    current = EngineCapacity.current
    _replace(EngineCapacity, "current", lambda self: change(current(self)))


def _replace(owner: Any, name: str, value: Any) -> None:
    """
    Put something else in its place.

    Raises:
        AttributeError: If there is no such thing: then nothing would have been taken out.
        TypeError: If it is called in another way: then the test would fail for that reason.
    """
    old = getattr(owner, name)
    if callable(old):
        taken = inspect.signature(old).parameters.values()
        in_order = [p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD]
        by_name = {p.name: None for p in taken if p.kind is p.KEYWORD_ONLY}
        inspect.signature(value).bind(*in_order, **by_name)
    setattr(owner, name, value)


def pytest_configure() -> None:
    """Take it out here, and from every orchestrator that is started."""
    from tests import running  # noqa: PLC0415 - the server has no use for it

    name = os.environ[VARIABLE]
    PATCHES[name]()
    program = running.program

    def unsafe(module: str, *, settings: dict[str, str], **how: Any) -> Any:
        module = "tests.without" if module == "orchestrator" else module
        return program(module, settings={**settings, VARIABLE: name}, **how)

    _replace(running, "program", unsafe)


def main() -> None:
    """The `tidegate` command, or model_server's, without a safeguard."""
    name = os.environ.pop(VARIABLE)
    if name in OF_MODEL_SERVER:
        OF_MODEL_SERVER[name]()
        from model_server.__main__ import main as keep  # noqa: PLC0415 - only once it is taken out

        sys.exit(keep())
    OF_CHAOS[name]()
    from orchestrator.__main__ import main as serve  # noqa: PLC0415 - only once it is taken out

    serve()


if __name__ == "__main__":
    main()
