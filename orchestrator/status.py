"""What the service shows of itself: `/readyz`, `/status`, and gauges read when they are scraped."""

import asyncio
import time
from dataclasses import asdict
from typing import Any

import psutil

from orchestrator import __version__
from orchestrator.api.health import Dependency
from orchestrator.assembly import Components
from orchestrator.domain import StoreCounts
from orchestrator.errors import EngineUnavailable, OrchestratorError
from orchestrator.generation.engines import Engine
from orchestrator.resilience.circuit_breaker import CircuitBreaker
from orchestrator.retrieval.holdings import Holdings

VERSION = __version__


class StatusPicture:
    """What `/readyz` and `/status` show."""

    def __init__(self, parts: Components) -> None:
        self._parts = parts
        self._started_s = time.monotonic()

    async def dependencies(self) -> dict[str, Dependency]:
        """How each dependency is."""
        parts = self._parts
        return {
            "engine": self._engine(parts.engine),
            **{engine.name: self._engine(engine, spare=True) for engine in parts.fallbacks},
            "embedder": self._embedder(),
            "store": await self._store(),
            **self._reranker(),
        }

    async def status(self) -> dict[str, Any]:
        """The whole picture."""
        parts = self._parts
        dependencies = await self.dependencies()
        return {
            "version": VERSION,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "dependencies": {
                name: {"status": d.status, "detail": d.detail} for name, d in dependencies.items()
            },
            "gate": self._gate(),
            "breakers": {name: breaker.state for name, breaker in parts.breakers.items()},
            "engine": {
                "url": parts.engine.client.base_url,
                **self._model(parts.engine),
                "exact_token_counts": parts.counter.exact,
                "waiting_for_wake": parts.wakening.waiting,
                "model_server": await self._model_server(),
            },
            "embedder": {
                "dimension": parts.embedder.dimension,
                "dtype": parts.embedder.dtype,
                "restarts": parts.embedder.restarts,
            },
            "documents": {
                **await self._documents(),
                "queued": parts.ingestion.queued,
                "running": parts.ingestion.running,
            },
            "indexes": {
                "vectors": parts.indexes.sizes(),
                "gpu": parts.indexes.on_gpu(),
                "building": {
                    name: {"vectors": done, "of": total}
                    for name, (done, total) in parts.indexes.building().items()
                },
            },
            "memory": {"rss_bytes": resident_bytes()},
            "process": {
                "tasks": len(asyncio.all_tasks()),
                "open_sockets": len(psutil.Process().net_connections()),
                "loop_lag_max_s": round(parts.lag.take_max_s(), 4),
            },
        }

    async def excerpt(self, owner: str) -> dict[str, Any]:
        """What an owner sees: their own documents, and how long they will wait."""
        parts, gate = self._parts, self._gate()
        dependencies = await self.dependencies()
        return {
            "version": VERSION,
            "dependencies": {
                name: {"status": found.status, "detail": ""} for name, found in dependencies.items()
            },
            "gate": {name: gate[name] for name in ("queued", "max_queued", "wait_target_s")},
            "engine": self._model(parts.engine),
            "documents": await self._documents(owner),
        }

    async def _documents(self, owner: str | None = None) -> dict[str, Any]:
        """What the store holds, of one owner's or in all; a broken store is when that is asked."""
        try:
            counts = await self._parts.threads.run(self._count, owner)
        except OrchestratorError as exc:
            return {"error": exc.message if owner is None else "not readable now"}
        return {
            "total": counts.documents,
            "by_status": counts.by_status,
            "chunks": counts.chunks,
        }

    def _count(self, owner: str | None) -> StoreCounts:
        store = self._parts.store
        return store.counts() if owner is None else Holdings(store.database).counts(owner)

    def _gate(self) -> dict[str, Any]:
        parts = self._parts
        state = asdict(parts.gate.state())
        ratio, count = state.pop("forecast_ratio"), state.pop("forecasts")
        return {
            **state,
            "max_queued": parts.gate.limits.max_queued,
            "wait_target_s": parts.gate.limits.wait_target_s,
            "engine_metrics_stale": _metrics_missed(parts),
            "kv_cache_tokens": parts.gate.capacity.kv_tokens,
            "forecast": {"median_ratio": ratio, "n": count},
        }

    @staticmethod
    def _model(engine: Engine) -> dict[str, Any]:
        state = engine.monitor.state
        return {
            "model": state.model.id if state.model else None,
            "max_model_len": engine.monitor.window_tokens,
            "asleep": state.asleep,
        }

    def _engine(self, engine: Engine, *, spare: bool = False) -> Dependency:
        """An engine that only stands in for another is never the reason not to be ready."""
        state, breaker = engine.monitor.state, self._parts.breakers[engine.name]
        if state.asleep:
            return _asleep(self._parts.wakening.eta_s)
        if state.model is None:
            return Dependency("degraded" if spare else "down", state.detail)
        return _by_breaker(breaker)

    def _embedder(self) -> Dependency:
        if self._parts.embedder.starting:
            return Dependency("degraded", "Its model is being loaded: searches are by words only.")
        if not self._parts.embedder.alive:
            detail = (
                "The embedder does not answer, or is being restarted: searches are by words only."
            )
            return Dependency("degraded", detail)
        return _by_breaker(self._parts.breakers["embedder"])

    def _reranker(self) -> dict[str, Dependency]:
        """If there is one; it is never the reason not to be ready."""
        if self._parts.reranker is None:
            return {}
        if not self._parts.reranker.alive:
            detail = "It is being started or restarted: passages keep the order of the search."
            return {"reranker": Dependency("degraded", detail)}
        return {"reranker": _by_breaker(self._parts.breakers["reranker"])}

    async def _store(self) -> Dependency:
        try:
            await self._parts.threads.run(self._parts.store.check)
        except OrchestratorError as exc:
            return Dependency("down", exc.message)
        return _by_breaker(self._parts.breakers["store"])

    async def _model_server(self) -> dict[str, Any] | None:
        """What model_server says of itself; None with a foreign engine."""
        if self._parts.keeper is None:
            return None
        try:
            return await self._parts.keeper.state()
        except EngineUnavailable as exc:
            return {"state": "unknown", "last_error": exc.message}


def _asleep(eta_s: float | None) -> Dependency:
    takes = "" if eta_s is None else f", which takes about {eta_s:.0f} s"
    return Dependency("ok", f"Asleep, its memory given back: the next question wakes it{takes}.")


def _by_breaker(breaker: CircuitBreaker) -> Dependency:
    if breaker.state == "closed":
        return Dependency("ok")
    if breaker.state == "open":
        soon = f"it is tried again in {max(breaker.retry_after_s, 1):.0f} s"
    elif breaker.retry_after_s:
        soon = "it is being tried at this moment"
    else:
        soon = "the next call tries it"
    why = f" ({breaker.last_failure.rstrip('.')})" if breaker.last_failure else ""
    return Dependency("degraded", f"It failed too often of late{why}; {soon}.")


def _metrics_missed(parts: Components) -> bool:
    """Whether the engine ought to say more of itself; one that sleeps says nothing."""
    return parts.gate.capacity.stale and not parts.engine.monitor.state.asleep


def resident_bytes() -> int:
    """Memory of this process and of those it started, in bytes."""
    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # ended between the two calls
            continue
    return total


def export_gauges(parts: Components) -> None:
    """Add the series whose values are read when they are scraped."""
    gauge = parts.metrics.gauge
    gauge(
        "tidegate_requests_running",
        "Questions that hold a reservation.",
        lambda: parts.gate.running,
    )
    gauge("tidegate_requests_queued", "Questions that wait.", lambda: parts.gate.queued)
    gauge(
        "tidegate_requests_waiting_for_wake",
        "Questions that wait for a sleeping engine to wake.",
        lambda: parts.wakening.waiting,
    )
    gauge(
        "tidegate_engine_asleep",
        "1 while the engine sleeps, or wakes, else 0.",
        lambda: float(parts.engine.monitor.state.asleep),
    )
    gauge(
        "tidegate_engine_ready",
        "1 while the engine answers, else 0.",
        lambda: float(parts.engine.monitor.state.model is not None),
    )
    gauge(
        "tidegate_reserved_kv_tokens",
        "Most tokens of the engine's cache that the admitted questions will hold at once.",
        lambda: parts.gate.state().reserved_tokens,
    )
    gauge(
        "tidegate_capacity_kv_tokens",
        "Tokens of the engine's cache that may be reserved now; 0 while unknown.",
        lambda: parts.gate.capacity.current().kv_tokens or 0,
    )
    gauge(
        "tidegate_capacity_requests",
        "Questions that may be with the engine now.",
        lambda: parts.gate.state().concurrent,
    )
    gauge(
        "tidegate_capacity_correction",
        "Factor on the limits learnt from the engine's metrics, 0.3 to 1.",
        lambda: parts.gate.capacity.correction,
    )
    gauge(
        "tidegate_engine_metrics_stale",
        "1 while the engine's metrics are missing, old or standing still, else 0.",
        lambda: float(_metrics_missed(parts)),
    )
    gauge(
        "tidegate_brownout",
        "1 while answers are degraded under load (L1), else 0.",
        lambda: float(parts.gate.brownout),
    )
    gauge(
        "tidegate_predicted_wait_seconds",
        "Predicted wait of whoever came last, in seconds; 0 while unknown.",
        lambda: parts.gate.state().eta_s or 0.0,
    )
    parts.metrics.breaker_gauge(parts.breakers)
    gauge(
        "tidegate_documents_waiting",
        "Documents that wait for ingestion.",
        lambda: parts.ingestion.queued,
    )
    gauge(
        "tidegate_resident_memory_bytes",
        "Memory of the orchestrator, its parser and its embedder, in bytes.",
        lambda: float(resident_bytes()),
    )
