"""
The composition root: settings become objects.

The only place that builds anything. Objects are passed by keyword.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator import __version__
from orchestrator.access.key_file import KeyFile
from orchestrator.access.keyring import Keyring
from orchestrator.concurrency import Threads
from orchestrator.data_folder import DataFolder
from orchestrator.documents import ocr
from orchestrator.documents.chunking import Chunker
from orchestrator.documents.page_recognition import OcrLimits
from orchestrator.documents.sandbox import ParserSandbox, SandboxLimits
from orchestrator.domain import Answer
from orchestrator.errors import EmbedderUnavailable, EngineError, StoreUnavailable
from orchestrator.generation.engine_client import EngineClient, EngineTimeouts
from orchestrator.generation.engine_keeper import EngineKeeper
from orchestrator.generation.engine_metrics import EngineMetrics
from orchestrator.generation.engine_monitor import EngineMonitor, EngineState
from orchestrator.generation.engines import Engine
from orchestrator.generation.tokenizer import EngineTokenizer, EstimatedTokens, TokenCounter
from orchestrator.generation.wakening import Wakening
from orchestrator.pipelines.document_files import DocumentFiles, UploadLimits
from orchestrator.pipelines.embedding import EmbeddingPipeline
from orchestrator.pipelines.housekeeping import Housekeeper
from orchestrator.pipelines.ingestion import IngestionPipeline
from orchestrator.pipelines.library import Library, LibraryLimits
from orchestrator.pipelines.query import QueryPipeline
from orchestrator.pipelines.store_worker import StoreWorker
from orchestrator.pipelines.uploads import Uploads
from orchestrator.pipelines.vector_stores import VectorStores
from orchestrator.resilience.admission import AdmissionGate, Bulkhead
from orchestrator.resilience.admission_policy import AdmissionLimits
from orchestrator.resilience.breaker_probe import BreakerProbe
from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.resilience.engine_capacity import EngineCapacity, EngineReading
from orchestrator.resilience.retry import RETRIED, RetryBudget, RetryPolicy
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.embedder import Embedder
from orchestrator.retrieval.embedder_model import (
    BUNDLED_MODEL,
    PREFIX_TOKENS,
    EmbedderTokenizer,
    bundled_embedder,
    embedding_dimension,
)
from orchestrator.retrieval.gpu_search import GpuSearch, why_no_gpu
from orchestrator.retrieval.holdings import Holdings
from orchestrator.retrieval.job_store import JobStore
from orchestrator.retrieval.lexical_index import LexicalIndex
from orchestrator.retrieval.remote_embedder import RemoteEmbedder
from orchestrator.retrieval.reranker import Reranker
from orchestrator.retrieval.retriever import Retriever
from orchestrator.retrieval.store_file_records import StoreFileRecords
from orchestrator.retrieval.upload_records import UploadRecords
from orchestrator.retrieval.vector_store_records import VectorStoreRecords
from orchestrator.settings import Settings, SettingsError
from orchestrator.telemetry.loop_lag import Liveness, LoopLag
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.tracing import NO_TRACER, Tracer

MAX_THREADS = 16
SEARCH_THREADS = 4
SEARCH_PATIENCE_S = 0.01
"""A search of 10,000 chunks takes a millisecond, four side by side take more of the processor each."""
MIN_CHUNK_TOKENS = 30
PROBE_TEXT = "tide"
STORE_PROBE_S = 5.0
"""Longest that a look at the store may take that is to prove it well, in seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Components:
    """Every object of one orchestrator, built and not yet started."""

    settings: Settings
    embedding_model: Path
    metrics: Metrics
    threads: Threads
    search_threads: Threads
    lag: LoopLag
    liveness: Liveness | None
    data_folder: DataFolder
    keyring: Keyring
    store: DocumentStore
    jobs: JobStore
    housekeeper: Housekeeper
    indexes: CollectionIndexes
    embedder: Embedder | RemoteEmbedder
    reranker: Reranker | None
    sandbox: ParserSandbox
    counter: TokenCounter
    engine: Engine
    fallbacks: tuple[Engine, ...]
    breakers: dict[str, CircuitBreaker]
    probes: tuple[BreakerProbe, ...]
    gate: AdmissionGate
    ingestion: IngestionPipeline
    library: Library
    uploads: Uploads
    stores: VectorStores
    store_worker: StoreWorker
    embedding: EmbeddingPipeline
    query: QueryPipeline
    keeper: EngineKeeper | None
    wakening: Wakening
    tracer: Tracer


def assemble(settings: Settings) -> Components:
    """
    Every object, wired.

    Raises:
        TokenizerError: If the engine's tokenizer is named and cannot be loaded.
        FileNotFoundError: If the embedding model is not there.
    """
    metrics = Metrics()
    on_wait = metrics.waited
    threads = Threads(MAX_THREADS, name="store", on_wait=on_wait)
    search_threads = Threads(
        SEARCH_THREADS, name="search", patience_s=SEARCH_PATIENCE_S, on_wait=on_wait
    )
    counter = EngineTokenizer.load(settings.tokenizer) if settings.tokenizer else EstimatedTokens()
    model = embedding_folder(settings.embedding_model)
    tokenizer = EmbedderTokenizer(model)
    store = DocumentStore(path=settings.data_dir / "tidegate.db")
    jobs = JobStore(store.database)
    files = DocumentFiles(
        folder=settings.data_dir,
        limits=UploadLimits(settings.max_upload_bytes, settings.min_free_disk_bytes),
    )
    breakers = _breakers(settings)
    embedder = _embedder(settings, model, on_wait)
    reranker = _reranker(settings, breakers, on_wait)
    sandbox = ParserSandbox(
        limits=_sandbox_limits(settings), workers=settings.parser_workers, ocr=_ocr_limits(settings)
    )
    indexes = CollectionIndexes(
        folder=settings.data_dir / "indexes",
        store=store,
        dimension=embedding_dimension(model),
        wait_s=settings.index_wait_s,
        idle_s=settings.index_idle_s,
        exact_up_to=settings.exact_index_chunks,
        gpu=_gpu_search(settings),
    )
    ingestion = IngestionPipeline(
        files=files,
        workers=settings.parser_workers + 1,
        sandbox=sandbox,
        chunker=_chunker(settings, tokenizer),
        embedder=embedder,
        store=store,
        jobs=jobs,
        indexes=indexes,
        counter=counter,
        threads=threads,
        max_failures=settings.ingestion_max_failures,
        max_interruptions=settings.ingestion_max_interruptions,
        lease_s=settings.ingestion_lease_s,
        on_done=_count_documents(metrics),
    )
    library = Library(
        files=files,
        limits=LibraryLimits(
            collection_documents=settings.max_collection_documents,
            collection_bytes=settings.max_collection_bytes,
            queued_documents=settings.max_queued_documents,
        ),
        store=store,
        jobs=jobs,
        sandbox=sandbox,
        ingestion=ingestion,
        indexes=indexes,
        threads=threads,
    )
    tracer = _tracer(settings)
    uploads, stores, store_worker = _file_search(settings, store, sandbox, library, threads)
    gate = _gate(settings)
    keeper = _keeper(settings)
    engine, *fallbacks = _engines(settings, breakers, gate, metrics, keeper)
    wakening = Wakening(
        monitor=engine.monitor,
        keeper=keeper,
        max_waiting=settings.max_queued_requests,
        check_open=gate.check_open,
    )
    query = QueryPipeline(
        gate=gate,
        library=library,
        retriever=Retriever(
            embedder=embedder,
            store=store,
            vectors=indexes,
            lexical=LexicalIndex(database=store.database),
            threads=search_threads,
            embedder_breaker=breakers["embedder"],
            store_breaker=breakers["store"],
            embed_timeout_s=settings.embed_wait_s,
            reranker=reranker,
        ),
        engine=engine,
        wakening=wakening,
        counter=counter,
        fallbacks=fallbacks,
        fallback_places=Bulkhead(settings.max_fallback_requests),
        passages_places=Bulkhead(settings.max_passages_only_requests),
        on_answer=_count_answers(metrics),
        tracer=tracer,
    )
    lag = LoopLag(stall_s=settings.loop_stall_s, on_lag=metrics.loop_lag_seconds.observe)
    port = settings.liveness_port
    return Components(
        settings=settings,
        embedding_model=model,
        metrics=metrics,
        threads=threads,
        search_threads=search_threads,
        lag=lag,
        liveness=None if port is None else Liveness(port, lag, host=settings.host),
        data_folder=DataFolder(settings.data_dir),
        keyring=Keyring(
            KeyFile(settings.data_dir), threads=threads, refresh_s=settings.keys_refresh_s
        ),
        store=store,
        jobs=jobs,
        housekeeper=Housekeeper(
            indexes=indexes, threads=threads, finished=lambda: ingestion.finished
        ),
        indexes=indexes,
        embedder=embedder,
        reranker=reranker,
        sandbox=sandbox,
        counter=counter,
        engine=engine,
        fallbacks=tuple(fallbacks),
        breakers=breakers,
        probes=_probes(settings, breakers, embedder, store, search_threads),
        gate=gate,
        ingestion=ingestion,
        library=library,
        uploads=uploads,
        stores=stores,
        store_worker=store_worker,
        embedding=EmbeddingPipeline(
            embedder=embedder,
            tokenizer=tokenizer,
            threads=threads,
            places=Bulkhead(settings.max_embedding_requests),
            model=_embedding_name(settings),
            dimension=embedding_dimension(model),
        ),
        query=query,
        keeper=keeper,
        wakening=wakening,
        tracer=tracer,
    )


def embedding_folder(model: str | None) -> Path:
    """
    Where the embedding model is; the bundled one if none is named.

    Raises:
        FileNotFoundError: If it is neither a folder nor a model that the hub gives.
    """
    return bundled_embedder() if model is None else model_folder(model, "EMBEDDING_MODEL")


def model_folder(model: str, setting: str) -> Path:
    """
    Where a model is that this setting names; downloaded if it is a Hugging Face id.

    Raises:
        FileNotFoundError: If it is neither a folder nor a model that the hub gives.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - 0.3 s that most starts save

    try:
        return Path(snapshot_download(model))
    except Exception as exc:
        raise FileNotFoundError(
            f"ORCHESTRATOR_{setting}: {model} is neither a folder nor a model that the hub "
            f"gave us ({exc})."
        ) from exc


def _tracer(settings: Settings) -> Tracer:
    if not settings.traces_url:
        return NO_TRACER
    from orchestrator.telemetry.otlp import OtlpTracer  # noqa: PLC0415 - 0.3 s that most starts save

    return OtlpTracer(settings.traces_url, share=settings.traces_share, version=__version__)


def _embedding_name(settings: Settings) -> str:
    """What the embedding model is called on OpenAI's wire."""
    if settings.embedder_url is not None:
        return settings.embedder_served_model
    named = settings.embedding_model
    if named is None:
        return BUNDLED_MODEL
    return Path(named).name if Path(named).is_dir() else named


def _file_search(
    settings: Settings,
    store: DocumentStore,
    sandbox: ParserSandbox,
    library: Library,
    threads: Threads,
) -> tuple[Uploads, VectorStores, StoreWorker]:
    """OpenAI's files and vector stores, beside the documents."""
    holdings = Holdings(store.database)
    uploads = Uploads(
        files=DocumentFiles(
            folder=settings.data_dir / "uploads",
            limits=UploadLimits(settings.max_upload_bytes, settings.min_free_disk_bytes),
        ),
        records=UploadRecords(store.database),
        holdings=holdings,
        sandbox=sandbox,
        threads=threads,
        max_files=settings.max_files,
    )
    records, places = VectorStoreRecords(store.database), StoreFileRecords(store.database)
    worker = StoreWorker(
        uploads=uploads, stores=records, files=places, library=library, threads=threads
    )
    stores = VectorStores(
        uploads=uploads,
        stores=records,
        files=places,
        worker=worker,
        library=library,
        holdings=holdings,
        threads=threads,
        max_stores=settings.max_vector_stores,
    )
    return uploads, stores, worker


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


def _ocr_limits(settings: Settings) -> OcrLimits | None:
    """None if pictures are not to be read, or nothing is installed that could."""
    if not (settings.ocr and ocr.installed()):
        return None
    return OcrLimits(
        memory_bytes=settings.ocr_memory_bytes,
        cpu_s_per_page=settings.ocr_page_timeout_s,
        max_pages=settings.ocr_max_pages,
        max_file_pages=settings.max_pages,
        max_chars_per_page=settings.max_page_chars,
    )


def _chunker(settings: Settings, tokenizer: EmbedderTokenizer) -> Chunker:
    return Chunker(
        tokenizer=tokenizer,
        max_tokens=min(settings.chunk_tokens, tokenizer.max_tokens - PREFIX_TOKENS),
        overlap_tokens=settings.chunk_overlap_tokens,
        min_tokens=MIN_CHUNK_TOKENS,
    )


def _embedder(
    settings: Settings, model: Path, on_wait: Callable[[str, float], None]
) -> Embedder | RemoteEmbedder:
    if settings.embedder_url is not None:
        return RemoteEmbedder(
            base_url=settings.embedder_url,
            model=settings.embedder_served_model,
            dimension=embedding_dimension(model),
            api_key=settings.embedder_api_key,
            max_batch=settings.embedder_batch,
            request_timeout_s=settings.embedder_timeout_s,
        )
    return Embedder(
        model=model,
        threads=settings.embedder_threads or os.cpu_count() or 1,
        max_batch=settings.embedder_batch,
        device=settings.embedder_device,
        gpu_memory_bytes=settings.embedder_memory_bytes,
        request_timeout_s=settings.embedder_timeout_s,
        on_wait=on_wait,
    )


def _gpu_search(settings: Settings) -> GpuSearch | None:
    if settings.index_device == "cpu":
        return None
    device = int(settings.index_device.partition(":")[2] or 0)
    if reason := why_no_gpu(device):
        raise SettingsError(f"ORCHESTRATOR_INDEX_DEVICE={settings.index_device}: {reason}.")
    return GpuSearch(device=device, memory_bytes=settings.index_memory_bytes)


def _reranker(
    settings: Settings,
    breakers: dict[str, CircuitBreaker],
    on_wait: Callable[[str, float], None],
) -> Reranker | None:
    if settings.reranker_model is None:
        return None
    process = Embedder(
        model=model_folder(settings.reranker_model, "RERANKER_MODEL"),
        threads=settings.embedder_threads or os.cpu_count() or 1,
        max_batch=settings.reranker_candidates,
        request_timeout_s=settings.embedder_timeout_s,
        cross_encoder=True,
        on_wait=lambda _lane, wait_s: on_wait("rerank", wait_s),
    )
    return Reranker(
        process=process,
        breaker=breakers["reranker"],
        candidates=settings.reranker_candidates,
        wait_s=settings.rerank_wait_s,
    )


def _keeper(settings: Settings) -> EngineKeeper | None:
    if settings.control_url is None:
        return None
    return EngineKeeper(settings.control_url, key=settings.control_key)


def _gate(settings: Settings) -> AdmissionGate:
    limits = AdmissionLimits(
        max_concurrent=settings.max_concurrent_requests,
        max_queued=settings.max_queued_requests,
        wait_target_s=settings.wait_target_s,
        kv_tokens=settings.kv_cache_tokens,
        safety=settings.kv_cache_share,
        batch_share=settings.batch_share,
        prefill_window_tokens=settings.prefill_window_tokens,
        brownout_at=settings.brownout_at,
        recover_at=settings.brownout_until,
    )
    capacity = EngineCapacity(limits, stale_s=settings.metrics_stale_s)
    return AdmissionGate(limits=limits, capacity=capacity)


def _breakers(settings: Settings) -> dict[str, CircuitBreaker]:
    """One for each dependency; the fallback engines are numbered in their order."""
    policy = BreakerPolicy(
        window_s=settings.breaker_window_s,
        failure_rate=settings.breaker_failure_rate,
        slow_rate=settings.breaker_slow_rate,
        open_s=settings.breaker_open_s,
    )
    reranker = [] if settings.reranker_model is None else ["reranker"]
    names = ["embedder", "store", *reranker, *_engine_names(settings)]
    return {
        name: CircuitBreaker(name=name, policy=policy, on_change=_log_breaker) for name in names
    }


def _probes(
    settings: Settings,
    breakers: dict[str, CircuitBreaker],
    embedder: Embedder | RemoteEmbedder,
    store: DocumentStore,
    threads: Threads,
) -> tuple[BreakerProbe, ...]:
    """For what answers a cheap question; an engine proves itself with an answer of some length."""

    async def embed() -> None:
        await embedder.embed_query(PROBE_TEXT, timeout_s=settings.embed_wait_s)

    async def read() -> None:
        async with asyncio.timeout(STORE_PROBE_S):
            await threads.run(store.check)

    return (
        BreakerProbe(
            breaker=breakers["embedder"],
            attempt=embed,
            failures=(EmbedderUnavailable,),
            worth_trying=lambda: embedder.alive or settings.embedder_url is not None,
        ),
        BreakerProbe(
            breaker=breakers["store"], attempt=read, failures=(StoreUnavailable, TimeoutError)
        ),
    )


def _engine_names(settings: Settings) -> list[str]:
    stand_ins = range(1, len(settings.fallback_engine_urls) + 1)
    return ["engine", *(f"fallback-{n}" for n in stand_ins)]


def _engines(
    settings: Settings,
    breakers: dict[str, CircuitBreaker],
    gate: AdmissionGate,
    metrics: Metrics,
    keeper: EngineKeeper | None,
) -> list[Engine]:
    """The engine behind the gate, then the fallback engines."""
    before = EngineMetrics()

    def looked(found: EngineMetrics | None) -> None:
        nonlocal before
        gate.observe(None if found is None else _reading(found, before))
        before = found or EngineMetrics()

    engines = []
    urls = [settings.engine_url, *settings.fallback_engine_urls]
    for name, url in zip(_engine_names(settings), urls, strict=True):
        first = name == "engine"
        on_overload = gate.capacity.refused if first else _ignored
        client = _engine_client(settings, metrics, breakers[name], name, url, on_overload)
        monitor = EngineMonitor(
            client=client,
            poll_s=settings.engine_poll_s,
            default_window_tokens=settings.max_model_len,
            wanted=settings.engine_model if first else None,
            on_change=partial(_engine_changed, name, breakers[name]),
            on_metrics=looked if first else None,
            keeper=keeper if first else None,
        )
        engines.append(Engine(name, client, monitor))
    return engines


def _engine_client(
    settings: Settings,
    metrics: Metrics,
    breaker: CircuitBreaker,
    name: str,
    url: str,
    on_overload: Callable[[], None],
) -> EngineClient:
    for kind in RETRIED:  # from 0: the first of a new series is no rate
        metrics.engine_retries.labels(code=kind.code)

    def on_retry(error: EngineError) -> None:
        metrics.engine_retries.labels(code=error.code).inc()

    return EngineClient(
        base_url=url,
        name=name,
        timeouts=EngineTimeouts(
            connect_s=settings.connect_timeout_s,
            first_token_s=settings.first_token_timeout_s,
            stall_s=settings.stall_timeout_s,
        ),
        retry=RetryPolicy(attempts=settings.max_attempts),
        budget=RetryBudget(
            ratio=settings.retry_ratio,
            per_s=settings.retry_per_s,
            burst=settings.retry_burst,
        ),
        breaker=breaker,
        slow_first_token_s=settings.slow_first_token_s,
        max_concurrent=settings.max_concurrent_requests,
        api_key=settings.engine_api_key if name == "engine" else None,
        on_retry=on_retry,
        on_overload=lambda _: on_overload(),
    )


def _ignored() -> None:
    """A fallback engine has no gate that could learn from it."""


def _reading(found: EngineMetrics, before: EngineMetrics) -> EngineReading:
    return EngineReading(
        kv_tokens=found.kv_cache_tokens,
        kv_usage=found.kv_usage,
        running=found.running,
        waiting=found.waiting,
        waiting_for_cache=found.waiting_capacity,
        preemptions=found.preemptions_total,
        generated=found.generation_tokens_total,
        steps=found.iterations_total,
        token_s=found.median_inter_token_s(before),
    )


def _log_breaker(name: str, state: str, why: str) -> None:
    if state == "open":
        logger.warning("breaker %s: open; the last failure was: %s", name, why)
    else:
        logger.info("breaker %s: %s", name, state)


def _engine_changed(
    name: str, breaker: CircuitBreaker, state: EngineState, before: EngineState
) -> None:
    if state.asleep or before.asleep:
        breaker.forget()
    if state.asleep:
        logger.info("%s asleep: the next question wakes it", name)
    elif state.model is None:
        logger.warning("%s lost: %s", name, state.detail)
    else:
        logger.info("%s ready: %s", name, state.model.id)
        breaker.try_soon()


def _count_answers(metrics: Metrics) -> Callable[[Answer], None]:
    def answered(answer: Answer) -> None:
        metrics.queue_seconds.observe(answer.timings.queue_ms / 1000)
        metrics.retrieve_seconds.observe(answer.timings.retrieve_ms / 1000)
        metrics.first_token_seconds.observe(answer.timings.first_token_ms / 1000)
        metrics.prompt_tokens.inc(answer.usage.prompt_tokens)
        metrics.completion_tokens.inc(answer.usage.completion_tokens)
        if answer.degraded is not None:
            metrics.degraded.labels(level=answer.degraded.level).inc()

    return answered


def _count_documents(metrics: Metrics) -> Callable[[str, int, float], None]:
    def done(code: str, pages: int, seconds: float) -> None:
        metrics.documents_ingested.labels(code=code).inc()
        metrics.pages_ingested.inc(pages)
        if pages:
            metrics.ingest_seconds.observe(seconds)

    return done
