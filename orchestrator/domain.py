"""
The nouns of the orchestrator: what a document, a chunk, a passage and an answer are.

Immutable values without behaviour. Every other module may import this one; this one imports
nothing of ours.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Literal, NewType, TypeAlias

import numpy as np

DocumentId = NewType("DocumentId", str)
ChunkId = NewType("ChunkId", int)

Embeddings: TypeAlias = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""(n, d) float32, rows of unit length."""


class DocumentStatus(StrEnum):
    """Where a document is on its way to being searchable."""

    QUEUED = "queued"
    PARSING = "parsing"
    EMBEDDING = "embedding"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Document:
    """
    One uploaded PDF.

    Attributes:
        pages: Number of pages; 0 until the file was opened.
        pages_done: Pages whose text has been read.
        error_code: Stable word from `errors.py` once the status is FAILED.
        error_message: The sentence that goes with it.
        warning: What a READY document lacks, e.g. pages without text; None when nothing.
        created_at: Seconds since the epoch.
        replaces: The document that goes when this one becomes READY, in the same moment.
    """

    id: DocumentId
    collection: str
    filename: str
    sha256: str
    size_bytes: int
    status: DocumentStatus
    created_at: float
    pages: int = 0
    pages_done: int = 0
    chunks: int = 0
    error_code: str | None = None
    error_message: str | None = None
    warning: str | None = None
    replaces: DocumentId | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """The text of one page, as a reader would see it. `number` starts at 1."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class FlawedPage(Page):
    """
    A page whose text is missing or cut short, although the rest of its document was read.

    Attributes:
        reason: One sentence for people; never text of the document.
    """

    reason: str


Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom of a part of a page, each as a share of its width or height, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    The unit that is embedded, stored and found.

    Attributes:
        ordinal: Position in its document, from 0.
        page: First page of the text, from 1.
        page_end: Last page of the text.
        char_start: Offset of the first character in the text of `page`.
        char_end: Offset after the last character in the text of `page_end`.
        heading: Nearest heading above the text, or "".
        num_tokens: Exact length in the embedder's tokens, special tokens left out.
    """

    ordinal: int
    text: str
    page: int
    page_end: int
    char_start: int
    char_end: int
    heading: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Passage:
    """
    A chunk, or some that follow one another, as found for a question, best first.

    Attributes:
        score: Cosine similarity of question and chunk in [-1, 1]; the relevance that users see.
        prompt_tokens: Tokens that the text takes in the engine's tokenizer, at most.
        chunks: How many it was made of.
    """

    chunk_id: ChunkId
    document_id: DocumentId
    filename: str
    page: int
    page_end: int
    char_start: int
    char_end: int
    text: str
    score: float
    prompt_tokens: int
    chunks: int = 1


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, in OpenAI's roles."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the engine chooses tokens; None leaves a knob at the engine's default."""

    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Band(IntEnum):
    """Who goes first when not everybody can: the lower band waits for the higher."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2


@dataclass(frozen=True, slots=True)
class Caller:
    """
    On whose behalf a question is asked.

    Attributes:
        tenant: What fairness is counted by: one API key, or one address without keys.
        band: The priority asked for.
    """

    tenant: str = "anonymous"
    band: Band = Band.NORMAL


@dataclass(frozen=True, slots=True)
class Question:
    """
    What a caller asks, already validated.

    Attributes:
        document_ids: Search only these; empty means the whole collection.
        top_k: Passages to put before the model at most.
        max_tokens: Longest answer, in the engine's tokens.
        history: Earlier turns, oldest first.
        degrade: Whether a lesser answer may be given under load.
        route: The door it came through; answer lengths are learnt for each.
        traceparent: W3C's name of the trace that it is a part of, if the caller sent one.
    """

    text: str
    collection: str
    top_k: int
    max_tokens: int
    document_ids: tuple[DocumentId, ...] = ()
    history: tuple[Message, ...] = ()
    sampling: Sampling = Sampling()
    caller: Caller = Caller()
    degrade: bool = True
    route: str = "ask"
    traceparent: str | None = None


DegradationLevel: TypeAlias = Literal["L1", "L2", "L3"]


@dataclass(frozen=True, slots=True)
class Degraded:
    """
    How an answer is less than what was asked for.

    Attributes:
        level: L1 fewer passages, a shorter answer, or a search by words alone; L2 another engine;
            L3 the passages themselves, without a generated answer.
        reason: Why, in words.
    """

    level: DegradationLevel
    reason: str


@dataclass(frozen=True, slots=True)
class Citation:
    """
    A numbered source of an answer.

    Attributes:
        n: The number that `[n]` marks in the answer refer to, from 1.
        cited: Whether the answer's text carries the mark.
    """

    n: int
    passage: Passage
    cited: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds a request spent, phase by phase; 0 for a phase that did not happen."""

    queue_ms: float = 0.0
    retrieve_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits. `position` counts from 1; `eta_s` is None while nothing is known."""

    position: int
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Sources:
    """
    The passages that the answer will be made from, numbered from 1 in this order.

    Attributes:
        degraded: Known before the first token, so that it can be a header.
    """

    passages: tuple[Passage, ...]
    degraded: Degraded | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer's text."""

    text: str


FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer, once the engine has finished."""

    text: str
    citations: tuple[Citation, ...]
    usage: Usage
    timings: Timings
    finish_reason: FinishReason = "stop"
    degraded: Degraded | None = None


AnswerEvent: TypeAlias = Queued | Sources | Token | Answer


@dataclass(frozen=True, slots=True)
class EngineChunk:
    """
    What one read of an engine's stream brought.

    Attributes:
        text: New text; may be empty.
        tokens: Steps of the engine that are in it.
        finish_reason: Set on the last step that carries text.
        usage: Set once, when the engine reports it.
    """

    text: str = ""
    tokens: int = 0
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with its vector, as ingestion hands it to the store."""

    chunk: Chunk
    embedding: np.ndarray[tuple[int], np.dtype[np.float32]]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """
    What is done already of a document that is on its way, kept so that a restart goes on there.

    Attributes:
        text_sha256: Of the text that was embedded: the work holds only for the same text.
    """

    ordinal: int
    text_sha256: bytes
    embedding: np.ndarray[tuple[int], np.dtype[np.float32]]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Change:
    """
    What one transaction did to the chunks of a collection.

    Attributes:
        added: Chunks that can be found now, in the order of their document.
        removed: Chunks that are gone.
        replaced: The document that went with it; its file has to follow.
    """

    added: tuple[ChunkId, ...] = ()
    removed: tuple[ChunkId, ...] = ()
    replaced: DocumentId | None = None


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What a store holds."""

    documents: int = 0
    ready: int = 0
    chunks: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
