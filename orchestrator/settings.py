"""
Every knob of the orchestrator, once: name, unit, default, bounds, and why.

Read at start by `app.py` and `__main__.py`, and nowhere else: the rooms receive values.
`docs/configuration.md` is generated from this module.
"""

import os
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ORCHESTRATOR_"

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

EMBEDDER_GPU_BYTES = GIB
"""What the embedder may allocate on a GPU if nothing else is said."""

INDEX_GPU_BYTES = GIB
"""What the vectors may take of a GPU if nothing else is said."""


class SettingsError(Exception):
    """The environment holds a setting that cannot be used; the message says which and why."""


class Settings(BaseSettings):
    """Effective configuration; each field can be set as `ORCHESTRATOR_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    # --- the door
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(
        8080, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one."
    )
    published_host: str | None = Field(
        None,
        description="Address at which others reach a container that listens on all of its own; by "
        "it is judged whether keys are needed.",
    )
    insecure: bool = Field(
        default=False,
        description="Whether anybody who reaches the address may do anything. Without it an address "
        "that others can reach is refused while there are no keys (tidegate keys create).",
    )
    keys_refresh_s: float = Field(
        1,
        gt=0,
        description="Seconds between two looks at the keys: so long a new one is unknown, and a "
        "revoked one good.",
    )
    data_dir: Path = Field(
        Path(".data"),
        description="Folder of everything that outlives the process: database, indexes, PDFs.",
    )
    max_body_bytes: int = Field(
        1 * MIB, gt=0, description="Largest JSON body, in bytes; a larger one is refused with 413."
    )
    max_open_requests: int = Field(
        2048,
        gt=0,
        description="Requests that may be open at once, of every kind; the next one gets 503.",
    )
    drain_timeout_s: float = Field(
        20,
        gt=0,
        description="Seconds that requests in flight may take to finish after SIGTERM.",
    )

    # --- questions
    max_question_chars: int = Field(8000, gt=0, description="Longest question, in characters.")
    max_history_messages: int = Field(50, ge=0, description="Earlier turns taken with a question.")
    top_k: int = Field(5, ge=1, le=50, description="Chunks put before the model, by default.")
    max_top_k: int = Field(50, ge=1, description="Largest top_k that a caller may ask for.")
    max_tokens: int = Field(256, ge=1, description="Longest answer by default, in tokens.")
    max_max_tokens: int = Field(
        2048, ge=1, description="Longest answer that a caller may ask for, in tokens."
    )
    request_timeout_s: float = Field(
        120,
        gt=0,
        description="A request's deadline from door to last token, in seconds; callers may only "
        "shorten it.",
    )

    # --- admission
    max_concurrent_requests: int = Field(
        256,
        ge=1,
        description="Questions that may be with the engine at once, at most: its batch (vLLM's "
        "--max-num-seqs, which is in no metric) and a few more, so that it never waits for a "
        "retrieval. `make run` sets it by what is planned. The KV cache binds first as a rule.",
    )
    max_queued_requests: int = Field(
        256,
        ge=0,
        description="Questions that may wait for a place; beyond it the answer is 429 at once. A "
        "bound on memory: what bounds the wait is the next one.",
    )
    wait_target_s: float = Field(
        5,
        gt=0,
        description="Longest predicted wait at which a question is still taken, in seconds; beyond "
        "it the answer is 429 at once. Nobody waits longer than twice this.",
    )
    kv_cache_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens that the engine's KV cache holds; needed only for an engine that does "
        "not say so in its /metrics.",
    )
    kv_cache_share: float = Field(
        0.95, gt=0, le=1, description="Share of the KV cache that is given out to requests."
    )
    batch_share: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Share of everything that questions of priority batch may fill.",
    )
    prefill_window_tokens: int = Field(
        4096,
        gt=0,
        description="Prompt tokens that may be with the engine before their first token; raised by "
        "itself, but for priority batch, while first tokens come within a second.",
    )
    brownout_at: float = Field(
        0.4,
        gt=0,
        le=1,
        description="Predicted wait from which answers are degraded (L1), as a share of "
        "wait_target_s.",
    )
    brownout_until: float = Field(
        0.2, ge=0, lt=1, description="The share below which answers are whole again."
    )
    max_fallback_requests: int = Field(
        8, ge=1, description="Questions that may be with the fallback engines at once (L2)."
    )
    max_passages_only_requests: int = Field(
        4,
        ge=1,
        description="Questions that may be answered by passages alone at once (L3); beyond it the "
        "answer is 429 or 503.",
    )

    # --- engine
    engine_url: str = Field(
        "http://127.0.0.1:8000",
        description="OpenAI-compatible engine (vLLM); with or without a trailing /v1.",
    )
    engine_model: str | None = Field(
        None, description="Model to ask for; default: the first one that the engine lists."
    )
    engine_api_key: str | None = Field(
        None, description="Sent to the engine as a bearer token, if it asks for one."
    )
    fallback_engine_urls: tuple[str, ...] = Field(
        (),
        description="Engines that stand in when the first one is down or full, in this order, as a "
        'JSON list: ["http://10.0.0.2:8000"]. Each is asked for the first model it lists.',
    )
    tokenizer: str | None = Field(
        None,
        description="Folder or Hugging Face id of the engine's tokenizer, for exact token counts; "
        "without it lengths are estimated on the safe side.",
    )
    max_model_len: int = Field(
        4096,
        gt=0,
        description="Context window in tokens, used until the engine reports its own.",
    )
    control_url: str | None = Field(
        None,
        description="model_server's control API, which wakes a sleeping engine and says how it is; "
        "absent with a foreign engine.",
    )
    control_key: str | None = Field(
        None,
        description="Sent to model_server as a bearer token: its MODEL_SERVER_CONTROL_KEY.",
    )
    connect_timeout_s: float = Field(
        2, gt=0, description="Longest time to open a connection to the engine, in seconds."
    )
    first_token_timeout_s: float = Field(
        60, gt=0, description="Longest wait for the engine's first token, in seconds."
    )
    stall_timeout_s: float = Field(
        20, gt=0, description="Longest silence between two tokens, in seconds."
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="Attempts at the engine before its first byte; nothing is retried after it.",
    )
    retry_ratio: float = Field(
        0.09, ge=0, description="Retries that each first attempt pays for: 0.1 is one in ten."
    )
    retry_per_s: float = Field(
        1, ge=0, description="Retries that a second pays for if its first attempts paid for fewer."
    )
    retry_burst: float = Field(
        5,
        ge=1,
        description="Retries that can be saved up for a short fault; saved up at the start.",
    )
    breaker_window_s: float = Field(
        10, gt=0, description="Seconds over which a dependency's failures are counted."
    )
    breaker_failure_rate: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of failed calls in the window from which a dependency is left alone.",
    )
    breaker_slow_rate: float = Field(0.8, gt=0, le=1, description="The same for slow calls.")
    breaker_open_s: float = Field(
        5,
        gt=0,
        description="Seconds for which it is left alone before one request tries it; doubled with "
        "each failed try, at most to a minute.",
    )
    slow_first_token_s: float = Field(
        30, gt=0, description="First token later than this counts as a slow call, in seconds."
    )
    engine_poll_s: float = Field(
        1, gt=0, description="Seconds between two looks at the engine's health and metrics."
    )
    metrics_stale_s: float = Field(
        3, gt=0, description="Age at which the engine's metrics count as unknown, in seconds."
    )

    # --- documents
    max_upload_bytes: int = Field(
        200 * MIB, gt=0, description="Largest PDF, in bytes; a larger one is refused with 413."
    )
    max_upload_body_bytes: int = Field(
        1 * GIB, gt=0, description="Largest upload request, all its files together, in bytes."
    )
    max_upload_files: int = Field(20, gt=0, description="Files in one upload request.")
    max_queued_documents: int = Field(
        5000,
        ge=1,
        description="Documents that may wait to be read; the next upload gets 429.",
    )
    max_collection_documents: int = Field(
        100_000, ge=1, description="Documents that a collection may hold; the next one gets 507."
    )
    max_collection_bytes: int = Field(
        100 * GIB,
        ge=1,
        description="Bytes that the PDFs of a collection may take together; beyond it 507.",
    )
    max_embedding_requests: int = Field(
        4, ge=1, description="Requests to /v1/embeddings at once; the next one gets 429."
    )
    traces_url: str | None = Field(
        None,
        description="Where an OpenTelemetry collector takes traces over OTLP/HTTP, such as "
        "http://localhost:4318/v1/traces; empty sends none.",
    )
    traces_share: float = Field(
        1.0, ge=0, le=1, description="Share of the questions that are followed, if any are."
    )
    max_files: int = Field(
        100_000,
        ge=1,
        description="Files that an owner may have below /v1/files; the next one gets 429.",
    )
    max_vector_stores: int = Field(
        1000, ge=1, description="Vector stores that an owner may have; the next one gets 429."
    )
    max_pages: int = Field(5000, gt=0, description="Most pages that a PDF may have.")
    max_document_chars: int = Field(
        20_000_000, gt=0, description="Most characters of text that a PDF may give."
    )
    max_page_chars: int = Field(
        400_000, gt=0, description="Most characters taken from one page; the rest is left out."
    )
    parser_workers: int = Field(1, ge=1, description="PDFs that are read at the same time.")
    parser_memory_bytes: int = Field(
        1 * GIB, gt=0, description="Address space that reading a PDF may take, in bytes."
    )
    parser_page_timeout_s: float = Field(
        10, gt=0, description="CPU seconds that reading one page may take."
    )
    parser_timeout_s: float = Field(
        300, gt=0, description="Seconds that reading a whole PDF may take."
    )
    parser_inspect_timeout_s: float = Field(
        10, gt=0, description="Seconds that opening a PDF may take while its upload waits."
    )
    ocr: bool = Field(
        default=True,
        description="Whether pages without text are read from their pictures, if the ocr extra is "
        "installed (OCR=1 make run); otherwise they are only named.",
    )
    ocr_max_pages: int = Field(
        200, ge=1, description="Pages of one PDF that are read from their pictures, at most."
    )
    ocr_page_timeout_s: float = Field(
        60, gt=0, description="CPU seconds that reading one picture may take; usual are 2 to 4."
    )
    ocr_memory_bytes: int = Field(
        2 * GIB,
        gt=0,
        description="Address space that reading pictures may take, models included, in bytes. The "
        "process holds half a gigabyte, and ends after 30 seconds without a picture.",
    )
    min_free_disk_bytes: int = Field(
        512 * MIB,
        ge=0,
        description="Disk kept free, in bytes; an upload that would use it gets 507.",
    )
    ingestion_lease_s: float = Field(
        60,
        gt=0,
        description="Seconds after which another worker takes up a document whose worker is silent.",
    )
    ingestion_max_failures: int = Field(
        8,
        ge=0,
        description="How often in a row a full disk or a missing embedder may stop a document that "
        "does not come further, before it is failed; the pauses grow from 2 to 60 seconds.",
    )
    ingestion_max_interruptions: int = Field(
        5,
        ge=1,
        description="How often in a row the process may end while it works on a document that does "
        "not come further, before it is failed. From the third time on the document is worked on "
        "alone, 4, 16 and then 64 seconds after the start: only what ends the process counts.",
    )
    index_wait_s: float = Field(
        0.5,
        gt=0,
        description="Longest that a question waits for a vector index that is not in memory, in "
        "seconds; then it is searched by words only.",
    )
    exact_index_chunks: int = Field(
        100_000,
        ge=1000,
        description="Chunks of a collection up to which every search compares every vector; beyond "
        "it vectors stand in lists, and a search finds at least 95 % of the ten exact neighbours.",
    )
    index_device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="Where indexes of up to EXACT_INDEX_CHUNKS chunks are searched: cpu, cuda or "
        "cuda:<number> (faiss-gpu). A GPU that it shares with the engine has to be told to the plan: "
        "MODEL_SERVER_INDEX_BYTES; make run does.",
    )
    index_memory_bytes: int = Field(
        INDEX_GPU_BYTES,
        ge=128 * MIB,
        description="Most that vectors may take of that GPU, in bytes: 8 for each number of a "
        "vector. What does not fit is searched on the CPU. On a CPU it means nothing.",
    )
    index_idle_s: float = Field(
        3600,
        gt=0,
        description="Seconds without a question after which a collection's vector index leaves the "
        "memory.",
    )
    chunk_tokens: int = Field(
        150,
        ge=32,
        description="Longest chunk, in the embedder's tokens; never above its window. Measured: "
        "longer chunks find the right page less often.",
    )
    chunk_overlap_tokens: int = Field(
        20, ge=0, description="Tokens that neighbouring chunks share."
    )

    # --- embedder
    embedding_model: str | None = Field(
        None,
        description="Folder or Hugging Face id of a sentence-transformers model; default: the "
        "bundled all-MiniLM-L6-v2.",
    )
    embedder_url: str | None = Field(
        None,
        description="Server with /v1/embeddings (vLLM, TEI, OpenAI) that computes the vectors instead "
        "of a process of ours; EMBEDDING_MODEL then names the folder of the model that it runs, for "
        "its tokenizer and sizes.",
    )
    embedder_served_model: str = Field("default", description="What that server calls the model.")
    embedder_api_key: str | None = Field(
        None, description="Sent to that server as a bearer token, if it asks for one."
    )
    embedder_device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?)$",
        description="Where the embedder computes: cpu, cuda or cuda:<number>. A GPU that it shares "
        "with the engine has to be told to the plan: MODEL_SERVER_EMBEDDER_BYTES; make run does.",
    )
    embedder_memory_bytes: int = Field(
        EMBEDDER_GPU_BYTES,
        ge=128 * MIB,
        description="Most that the embedder may allocate on a GPU, in bytes; a batch that does not "
        "fit is halved. Its CUDA context comes on top. On a CPU it means nothing.",
    )
    embedder_threads: int = Field(
        0,
        ge=0,
        description="CPU threads of the embedder for documents; 0 takes every core. A question "
        "takes one.",
    )
    embedder_batch: int = Field(
        16,
        ge=1,
        description="Chunks that each thread of the embedder computes at once; lower lets a question "
        "overtake an upload sooner.",
    )
    embedder_timeout_s: float = Field(
        60,
        gt=0,
        description="Longest time for one batch, in seconds; then the embedder is restarted.",
    )

    reranker_model: str | None = Field(
        None,
        description="Folder or Hugging Face id of a sentence-transformers cross-encoder that orders "
        "what was found a second time, on the CPU; none by default.",
    )
    reranker_candidates: int = Field(
        20, ge=2, le=100, description="Passages that the reranker reads with each question."
    )
    rerank_wait_s: float = Field(
        2,
        gt=0,
        description="Longest wait for the reranker, in seconds; then the passages keep their order.",
    )
    embed_wait_s: float = Field(
        2,
        gt=0,
        description="Longest wait for a question's embedding, in seconds; then the search is by "
        "words only.",
    )

    # --- streams and the event loop
    keep_alive_s: float = Field(
        10, gt=0, description="Silence after which a stream sends a comment, in seconds."
    )
    write_timeout_s: float = Field(
        30,
        gt=0,
        description="Longest time that a client may not read its stream, in seconds; then it is "
        "given up and the engine's work aborted.",
    )
    loop_stall_s: float = Field(
        1,
        gt=0,
        description="Seconds after which a blocked event loop is logged, with what blocks it.",
    )
    liveness_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port on which a thread of its own answers /healthz, also while the event loop "
        "is busy; none by default.",
    )

    # --- logs
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")


def load_settings() -> Settings:
    """
    Settings from the environment.

    Raises:
        SettingsError: If a value is out of bounds, or a variable with our prefix is unknown.
    """
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX)
        and name.removeprefix(PREFIX).lower() not in Settings.model_fields
    )
    if unknown:
        raise SettingsError(
            f"unknown setting {', '.join(unknown)}: `tidegate config` lists those that exist"
        )
    try:
        return Settings()
    except ValidationError as exc:
        lines = [
            f"{PREFIX}{'.'.join(str(part) for part in error['loc']).upper()}: {error['msg']}"
            for error in exc.errors()
        ]
        raise SettingsError("; ".join(lines)) from exc
