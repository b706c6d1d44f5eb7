"""
The composition root: settings become objects, objects become the application.

The only place that builds anything. Objects are passed by keyword, started in order and closed in
reverse.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from fastapi import FastAPI

from orchestrator.api import error_responses
from orchestrator.api.ask import AskRoutes, QuestionLimits
from orchestrator.api.documents import DocumentRoutes
from orchestrator.api.health import Dependency, HealthRoutes
from orchestrator.api.middleware import BodyLimit, Finished, RequestContext
from orchestrator.api.openai_chat import OpenAIRoutes
from orchestrator.concurrency import Threads
from orchestrator.documents.chunking import Chunker
from orchestrator.documents.sandbox import ParserSandbox, SandboxLimits
from orchestrator.domain import Answer
from orchestrator.errors import EngineError, OrchestratorError
from orchestrator.generation.engine_client import EngineClient, EngineTimeouts
from orchestrator.generation.engine_monitor import EngineMonitor, EngineState
from orchestrator.generation.tokenizer import EngineTokenizer, EstimatedTokens, TokenCounter
from orchestrator.pipelines.ingestion import IngestionPipeline
from orchestrator.pipelines.library import Library, UploadLimits
from orchestrator.pipelines.query import QueryPipeline
from orchestrator.resilience.admission import AdmissionGate, AdmissionLimits
from orchestrator.resilience.retry import RetryPolicy
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.embedder import Embedder
from orchestrator.retrieval.embedder_model import (
    PREFIX_TOKENS,
    EmbedderTokenizer,
    bundled_embedder,
    embedding_dimension,
    model_fingerprint,
)
from orchestrator.retrieval.lexical_index import LexicalIndex
from orchestrator.retrieval.retriever import Retriever
from orchestrator.settings import Settings
from orchestrator.telemetry.metrics import Metrics

VERSION = "0.1.0"
MAX_THREADS = 16
MIN_CHUNK_TOKENS = 30
TOKENIZER_META = "tokenizer"
EMBEDDER_META = "embedder"
CONTROL_TIMEOUT_S = 1.0

logger = logging.getLogger(__name__)


class EmbedderChangedError(Exception):
    """The stored vectors and the embedding model do not belong together."""


@dataclass(frozen=True, slots=True)
class Components:
    """Every object of one orchestrator, built and not yet started."""

    settings: Settings
    embedding_model: Path
    metrics: Metrics
    threads: Threads
    store: DocumentStore
    indexes: CollectionIndexes
    embedder: Embedder
    sandbox: ParserSandbox
    counter: TokenCounter
    engine: EngineClient
    monitor: EngineMonitor
    gate: AdmissionGate
    ingestion: IngestionPipeline
    library: Library
    query: QueryPipeline
    control: httpx2.AsyncClient | None


def assemble(settings: Settings) -> Components:
    """
    Every object, wired.

    Raises:
        OSError: If the data folder cannot be made.
        TokenizerError: If the engine's tokenizer is named and cannot be loaded.
        FileNotFoundError: If the embedding model is not there.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    metrics = Metrics()
    threads = Threads(MAX_THREADS)
    counter = EngineTokenizer.load(settings.tokenizer) if settings.tokenizer else EstimatedTokens()
    model = embedding_folder(settings.embedding_model)
    tokenizer = EmbedderTokenizer(model)
    store = DocumentStore(path=settings.data_dir / "tidegate.db")
    embedder = Embedder(
        model=model,
        threads=settings.embedder_threads or os.cpu_count() or 1,
        max_batch=settings.embedder_batch,
        request_timeout_s=settings.embedder_timeout_s,
    )
    sandbox = ParserSandbox(limits=_sandbox_limits(settings), workers=settings.parser_workers)
    indexes = CollectionIndexes(
        folder=settings.data_dir / "indexes", store=store, dimension=embedding_dimension(model)
    )
    ingestion = IngestionPipeline(
        files=settings.data_dir / "files",
        workers=settings.parser_workers + 1,
        sandbox=sandbox,
        chunker=Chunker(
            tokenizer=tokenizer,
            max_tokens=min(settings.chunk_tokens, tokenizer.max_tokens - PREFIX_TOKENS),
            overlap_tokens=settings.chunk_overlap_tokens,
            min_tokens=MIN_CHUNK_TOKENS,
        ),
        embedder=embedder,
        store=store,
        indexes=indexes,
        counter=counter,
        threads=threads,
        on_done=_count_documents(metrics),
    )
    library = Library(
        folder=settings.data_dir,
        limits=UploadLimits(settings.max_upload_bytes, settings.min_free_disk_bytes),
        store=store,
        sandbox=sandbox,
        ingestion=ingestion,
        indexes=indexes,
        threads=threads,
    )
    engine = _engine_client(settings, metrics)
    monitor = EngineMonitor(
        client=engine,
        poll_s=settings.engine_poll_s,
        default_window_tokens=settings.max_model_len,
        wanted=settings.engine_model,
        on_change=_log_engine,
    )
    gate = AdmissionGate(
        limits=AdmissionLimits(
            max_concurrent=settings.max_concurrent_requests,
            max_queued=settings.max_queued_requests,
            max_wait_s=settings.max_queue_wait_s,
        )
    )
    query = QueryPipeline(
        gate=gate,
        library=library,
        retriever=Retriever(
            embedder=embedder,
            store=store,
            vectors=indexes,
            lexical=LexicalIndex(database=store.database),
            limiter=threads.limiter,
        ),
        engine=engine,
        monitor=monitor,
        counter=counter,
        on_answer=_count_answers(metrics),
    )
    control = (
        httpx2.AsyncClient(
            base_url=settings.control_url, timeout=CONTROL_TIMEOUT_S, trust_env=False
        )
        if settings.control_url
        else None
    )
    return Components(
        settings=settings,
        embedding_model=model,
        metrics=metrics,
        threads=threads,
        store=store,
        indexes=indexes,
        embedder=embedder,
        sandbox=sandbox,
        counter=counter,
        engine=engine,
        monitor=monitor,
        gate=gate,
        ingestion=ingestion,
        library=library,
        query=query,
        control=control,
    )


def create_app(parts: Components) -> FastAPI:
    """The application around the parts; starting and stopping it starts and stops them."""
    settings = parts.settings
    app = FastAPI(
        title="Tidegate",
        version=VERSION,
        summary="Answers over your own PDFs, with cited pages.",
        lifespan=lambda _: running(parts),
        docs_url=None,  # Swagger's page loads scripts from a CDN
        redoc_url=None,
    )
    limits = QuestionLimits(
        max_question_chars=settings.max_question_chars,
        max_history_messages=settings.max_history_messages,
        top_k=settings.top_k,
        max_top_k=settings.max_top_k,
        max_tokens=settings.max_tokens,
        max_max_tokens=settings.max_max_tokens,
        request_timeout_s=settings.request_timeout_s,
    )
    picture = StatusPicture(parts)
    for routes in (
        AskRoutes(query=parts.query, limits=limits),
        DocumentRoutes(library=parts.library, max_files=settings.max_upload_files),
        OpenAIRoutes(query=parts.query, monitor=parts.monitor, limits=limits),
        HealthRoutes(
            dependencies=picture.dependencies, status=picture.status, metrics=parts.metrics
        ),
    ):
        app.include_router(routes.router())
    error_responses.install(app)
    app.add_middleware(
        BodyLimit,
        limits={"/upload": settings.max_upload_body_bytes},
        default_bytes=settings.max_body_bytes,
    )
    app.add_middleware(
        RequestContext,
        max_open=settings.max_open_requests,
        on_finished=_count_requests(parts.metrics),
    )
    return app


def prepare(parts: Components) -> None:
    """
    Open what is on disk, before anything is served.

    Raises:
        OrchestratorError: If the data folder cannot be used.
        EmbedderChangedError: If its vectors were made by another embedding model.
    """
    parts.store.open()
    _require_same_embedder(parts)
    _recount_if_changed(parts)
    parts.library.open()


@asynccontextmanager
async def running(parts: Components) -> AsyncIterator[None]:
    """Everything started, after `prepare`; closed in reverse when the block ends."""
    async with AsyncExitStack() as stack:
        stack.callback(parts.store.close)
        stack.push_async_callback(parts.engine.aclose)
        if parts.control is not None:
            stack.push_async_callback(parts.control.aclose)
        stack.push_async_callback(parts.embedder.aclose)
        stack.push_async_callback(parts.sandbox.aclose)
        await asyncio.gather(parts.embedder.start(), parts.sandbox.start())
        stack.push_async_callback(parts.threads.run, parts.indexes.save)
        await parts.monitor.start()
        stack.push_async_callback(parts.monitor.aclose)
        await parts.ingestion.start()
        stack.push_async_callback(parts.ingestion.aclose)
        stack.callback(parts.gate.drain)
        _export_gauges(parts)
        yield


class StatusPicture:
    """What `/readyz` and `/status` show."""

    def __init__(self, parts: Components) -> None:
        self._parts = parts
        self._started_s = time.monotonic()

    async def dependencies(self) -> dict[str, Dependency]:
        """How each dependency is."""
        parts = self._parts
        state = parts.monitor.state
        return {
            "engine": Dependency("ok") if state.model else Dependency("down", state.detail),
            "embedder": Dependency("ok")
            if parts.embedder.alive
            else Dependency("down", "The embedder's process is being restarted."),
            "store": await self._store(),
        }

    async def status(self) -> dict[str, Any]:
        """The whole picture."""
        parts = self._parts
        counts = await parts.threads.run(parts.store.counts)
        dependencies = await self.dependencies()
        model = parts.monitor.state.model
        return {
            "version": VERSION,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "dependencies": {
                name: {"status": d.status, "detail": d.detail} for name, d in dependencies.items()
            },
            "gate": {
                "running": parts.gate.running,
                "queued": parts.gate.queued,
                "max_concurrent": parts.gate.limits.max_concurrent,
                "max_queued": parts.gate.limits.max_queued,
            },
            "engine": {
                "url": parts.engine.base_url,
                "model": model.id if model else None,
                "max_model_len": parts.monitor.window_tokens,
                "exact_token_counts": parts.counter.exact,
                "model_server": await self._model_server(),
            },
            "embedder": {
                "dimension": parts.embedder.dimension,
                "dtype": parts.embedder.dtype,
                "restarts": parts.embedder.restarts,
            },
            "documents": {
                "total": counts.documents,
                "by_status": counts.by_status,
                "chunks": counts.chunks,
                "queued": parts.ingestion.queued,
                "running": parts.ingestion.running,
            },
            "memory": {"rss_bytes": resident_bytes()},
        }

    async def _store(self) -> Dependency:
        try:
            await self._parts.threads.run(self._parts.store.check)
        except OrchestratorError as exc:
            return Dependency("down", exc.message)
        return Dependency("ok")

    async def _model_server(self) -> dict[str, Any] | None:
        """What model_server says of itself; None with a foreign engine."""
        if self._parts.control is None:
            return None
        try:
            state = (await self._parts.control.get("/state")).json()
        except (httpx2.HTTPError, ValueError) as exc:
            return {"state": "unknown", "last_error": f"no answer ({type(exc).__name__})"}
        return dict(state)


def embedding_folder(model: str | None) -> Path:
    """
    Where the embedding model is; downloaded if it is a Hugging Face id.

    Raises:
        FileNotFoundError: If it is neither a folder nor a model that the hub gives.
    """
    if model is None:
        return bundled_embedder()
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - 0.3 s that most starts save

    try:
        return Path(snapshot_download(model))
    except Exception as exc:
        raise FileNotFoundError(
            f"ORCHESTRATOR_EMBEDDING_MODEL: {model} is neither a folder nor a model that the hub "
            f"gave us ({exc})."
        ) from exc


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


def _sandbox_limits(settings: Settings) -> SandboxLimits:
    return SandboxLimits(
        memory_bytes=settings.parser_memory_bytes,
        cpu_s_per_page=settings.parser_page_timeout_s,
        wall_s_per_document=settings.parser_timeout_s,
        wall_s_inspect=settings.parser_inspect_timeout_s,
        max_pages=settings.max_pages,
        max_chars_per_page=settings.max_page_chars,
        max_chars_per_document=settings.max_document_chars,
    )


def _engine_client(settings: Settings, metrics: Metrics) -> EngineClient:
    def on_retry(error: EngineError) -> None:
        metrics.engine_retries.labels(code=error.code).inc()

    return EngineClient(
        base_url=settings.engine_url,
        timeouts=EngineTimeouts(
            connect_s=settings.connect_timeout_s,
            first_token_s=settings.first_token_timeout_s,
            stall_s=settings.stall_timeout_s,
        ),
        retry=RetryPolicy(attempts=settings.max_attempts),
        max_concurrent=settings.max_concurrent_requests,
        api_key=settings.engine_api_key,
        on_retry=on_retry,
    )


def _require_same_embedder(parts: Components) -> None:
    """Vectors of two models cannot be compared: searching them together would find nonsense."""
    current = model_fingerprint(parts.embedding_model)
    known = parts.store.get_meta(EMBEDDER_META)
    if known not in {None, current} and parts.store.counts().chunks:
        raise EmbedderChangedError(
            f"The documents in {parts.settings.data_dir} were embedded by another model than "
            f"{parts.embedding_model}. Start with that model (ORCHESTRATOR_EMBEDDING_MODEL), or add "
            "the documents to another folder (ORCHESTRATOR_DATA_DIR)."
        )
    parts.store.set_meta(EMBEDDER_META, current)


def _recount_if_changed(parts: Components) -> None:
    """Token counts are stored with the chunks: another model's tokenizer makes them anew."""
    known = parts.store.get_meta(TOKENIZER_META)
    if known == parts.counter.fingerprint:
        return
    recounted = parts.store.recount_prompt_tokens(parts.counter.count)
    parts.store.set_meta(TOKENIZER_META, parts.counter.fingerprint)
    if recounted:
        logger.info(
            "token counts of %d chunks made anew: the engine's tokenizer changed", recounted
        )


def _log_engine(state: EngineState) -> None:
    if state.model is None:
        logger.warning("engine lost: %s", state.detail)
    else:
        logger.info("engine ready: %s", state.model.id)


def _count_requests(metrics: Metrics) -> Callable[[Finished], None]:
    def finished(done: Finished) -> None:
        metrics.requests.labels(route=done.route, code=done.code).inc()
        metrics.request_seconds.labels(route=done.route).observe(done.seconds)

    return finished


def _count_answers(metrics: Metrics) -> Callable[[Answer], None]:
    def answered(answer: Answer) -> None:
        metrics.queue_seconds.observe(answer.timings.queue_ms / 1000)
        metrics.retrieve_seconds.observe(answer.timings.retrieve_ms / 1000)
        metrics.first_token_seconds.observe(answer.timings.first_token_ms / 1000)
        metrics.prompt_tokens.inc(answer.usage.prompt_tokens)
        metrics.completion_tokens.inc(answer.usage.completion_tokens)

    return answered


def _count_documents(metrics: Metrics) -> Callable[[str, int, float], None]:
    def done(code: str, pages: int, seconds: float) -> None:
        metrics.documents_ingested.labels(code=code).inc()
        metrics.pages_ingested.inc(pages)
        if pages:
            metrics.ingest_seconds.observe(seconds)

    return done


def _export_gauges(parts: Components) -> None:
    gauge = parts.metrics.gauge
    gauge("tidegate_requests_running", "Questions that hold a permit.", lambda: parts.gate.running)
    gauge("tidegate_requests_queued", "Questions that wait.", lambda: parts.gate.queued)
    gauge(
        "tidegate_engine_ready",
        "1 while the engine answers, else 0.",
        lambda: float(parts.monitor.state.model is not None),
    )
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
