"""The application around the parts: what is opened, started, served and closed, in which order."""

import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.types import ASGIApp

from orchestrator.access.quotas import Quotas
from orchestrator.api import (
    ask,
    error_responses,
    mcp_schemas,
    openai_chat,
    openapi_document,
    responses_schemas,
)
from orchestrator.api.access import Access
from orchestrator.api.ask import AskRoutes
from orchestrator.api.documents import DocumentRoutes
from orchestrator.api.health import HealthRoutes
from orchestrator.api.json_route import ShortWay
from orchestrator.api.mcp_door import McpDoor
from orchestrator.api.middleware import BodyLimit, Finished, RequestContext
from orchestrator.api.openai_chat import OpenAIRoutes
from orchestrator.api.openai_embeddings import EmbeddingRoutes
from orchestrator.api.openai_files import FileRoutes
from orchestrator.api.openai_responses import ResponsesRoutes
from orchestrator.api.openai_vector_stores import VectorStoreRoutes
from orchestrator.api.page import PageFiles, PageRoutes
from orchestrator.api.question_limits import QuestionLimits
from orchestrator.api.sse import StreamTimers
from orchestrator.assembly import Components
from orchestrator.errors import OrchestratorError
from orchestrator.retrieval.embedder_model import model_fingerprint
from orchestrator.status import VERSION, StatusPicture, export_gauges
from orchestrator.telemetry.metrics import Metrics

GC_ALLOCATIONS = 10_000
"""New objects between two looks of the collector: a request makes some thousands, and no cycles."""
SWITCH_S = 0.0005
TOKENIZER_META = "tokenizer"
EMBEDDER_META = "embedder"

logger = logging.getLogger(__name__)


class EmbedderChangedError(Exception):
    """The stored vectors and the embedding model do not belong together."""


def create_app(parts: Components) -> ASGIApp:
    """
    The application around the parts; starting and stopping it starts and stops them.

    What is around every request is around the framework, too: a question on its short way meets
    none of the framework's own layers.
    """
    settings = parts.settings
    app = FastAPI(
        title="Tidegate",
        version=VERSION,
        summary="Answers over your own PDFs, with cited pages.",
        lifespan=lambda _: _serving(parts, door),
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
    timers = StreamTimers(settings.keep_alive_s, settings.write_timeout_s)
    picture, quotas = StatusPicture(parts), Quotas()
    routers = [
        routes.router()
        for routes in (
            AskRoutes(query=parts.query, limits=limits, quotas=quotas, timers=timers),
            DocumentRoutes(
                library=parts.library, max_files=settings.max_upload_files, timers=timers
            ),
            OpenAIRoutes(
                query=parts.query,
                monitor=parts.engine.monitor,
                embedding_model=parts.embedding.model,
                limits=limits,
                quotas=quotas,
                timers=timers,
            ),
            FileRoutes(uploads=parts.uploads, stores=parts.stores),
            VectorStoreRoutes(stores=parts.stores, query=parts.query, limits=limits),
            ResponsesRoutes(
                query=parts.query,
                stores=parts.stores,
                monitor=parts.engine.monitor,
                limits=limits,
                quotas=quotas,
                timers=timers,
            ),
            EmbeddingRoutes(pipeline=parts.embedding, limits=limits, quotas=quotas),
            HealthRoutes(
                dependencies=picture.dependencies,
                status=picture.status,
                excerpt=picture.excerpt,
                metrics=parts.metrics,
            ),
            PageRoutes(),
        )
    ]
    for router in routers:
        app.include_router(router)
    app.mount(PageFiles.path, PageFiles())
    routes = [route for router in routers for route in router.routes]
    error_responses.install(app, routes=routes)
    events: tuple[type, ...] = (*ask.EVENTS.values(), *responses_schemas.EVENTS.values())
    openapi_document.describe(app, streamed=(*events, *openai_chat.CHUNKS))
    door: McpDoor = McpDoor(
        app,
        query=parts.query,
        library=parts.library,
        limits=limits,
        quotas=quotas,
        version=VERSION,
    )
    limits_bytes = dict.fromkeys(("/upload", "/v1/files"), settings.max_upload_body_bytes)
    limited = BodyLimit(
        ShortWay(door, routes=routes),
        limits=limits_bytes | {mcp_schemas.PATH: mcp_schemas.MAX_BODY_BYTES},
        default_bytes=settings.max_body_bytes,
    )
    return RequestContext(
        Access(limited, keyring=parts.keyring, quotas=quotas, any_host=settings.insecure),
        max_open=settings.max_open_requests,
        on_finished=_count_requests(parts.metrics),
    )


@asynccontextmanager
async def _serving(parts: Components, door: McpDoor) -> AsyncIterator[None]:
    async with running(parts), door.running():
        yield


def prepare(parts: Components) -> None:
    """
    Open what is on disk, before anything is served.

    Raises:
        OrchestratorError: If the data folder cannot be used.
        EmbedderChangedError: If its vectors were made by another embedding model.
    """
    parts.data_folder.claim()
    parts.store.open()
    _require_same_embedder(parts)
    _recount_if_changed(parts)
    parts.library.open()
    parts.uploads.open()
    parts.keyring.read()


@asynccontextmanager
async def running(parts: Components) -> AsyncIterator[None]:
    """Everything started, after `prepare`; closed in reverse when the block ends."""
    async with AsyncExitStack() as stack:
        stack.callback(parts.data_folder.release)
        stack.callback(parts.store.close)
        stack.callback(parts.threads.close)
        stack.callback(parts.search_threads.close)
        stack.push_async_callback(parts.tracer.aclose)
        engines = (parts.engine, *parts.fallbacks)
        for engine in engines:
            stack.push_async_callback(engine.client.aclose)
        if parts.keeper is not None:
            stack.push_async_callback(parts.keeper.aclose)
        stack.push_async_callback(parts.embedder.aclose)
        stack.push_async_callback(parts.sandbox.aclose)
        # Loading a model takes longer than all the rest: until it is up, words must do.
        parts.embedder.start_soon()
        if parts.reranker is not None:
            stack.push_async_callback(parts.reranker.aclose)
            parts.reranker.start_soon()
        await parts.sandbox.start()
        stack.callback(parts.indexes.close)
        # While the embedder loads its model anyway: the first question finds both.
        with suppress(OrchestratorError):  # a store that fails is told by every question
            await parts.threads.run(parts.indexes.load_soon)
        await parts.keyring.start()
        stack.push_async_callback(parts.keyring.aclose)
        await parts.housekeeper.start()
        stack.push_async_callback(parts.housekeeper.aclose)
        for engine in engines:
            await engine.monitor.start()
            stack.push_async_callback(engine.monitor.aclose)
        stack.push_async_callback(parts.wakening.aclose)
        for probe in parts.probes:
            await probe.start()
            stack.push_async_callback(probe.aclose)
        await parts.ingestion.start()
        stack.push_async_callback(parts.ingestion.aclose)
        await parts.store_worker.start()
        stack.push_async_callback(parts.store_worker.aclose)
        stack.callback(parts.gate.drain)
        await parts.lag.start()
        stack.push_async_callback(parts.lag.aclose)
        if parts.liveness is not None:
            parts.liveness.start()
            stack.callback(parts.liveness.close)
        export_gauges(parts)
        _settle_garbage()
        # A search thread may hold the interpreter for 5 ms by default: many refusals' whole time.
        sys.setswitchinterval(SWITCH_S)
        yield


def _settle_garbage() -> None:
    """
    Take what was loaded at start out of the collector's sight.

    Half a million objects that live as long as the process were looked at again and again, 0.1 s at
    a time, while every request waited.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


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
    if known != current:
        parts.jobs.forget_chunks()
        parts.store.set_meta(EMBEDDER_META, current)


def _recount_if_changed(parts: Components) -> None:
    """Token counts are stored with the chunks: another model's tokenizer makes them anew."""
    known = parts.store.get_meta(TOKENIZER_META)
    if known == parts.counter.fingerprint:
        return
    parts.jobs.forget_chunks()
    recounted = parts.store.recount_prompt_tokens(parts.counter.count)
    parts.store.set_meta(TOKENIZER_META, parts.counter.fingerprint)
    if recounted:
        logger.info(
            "token counts of %d chunks made anew: the engine's tokenizer changed", recounted
        )


def _count_requests(metrics: Metrics) -> Callable[[Finished], None]:
    def finished(done: Finished) -> None:
        metrics.finished(done.route, done.code, done.seconds)

    return finished
