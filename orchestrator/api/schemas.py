"""Wire shapes: what comes in, validated, and what goes out, documented."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

COLLECTION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DEFAULT_COLLECTION = "default"
MAX_DOCUMENT_IDS = 1000

CollectionName = Annotated[
    str,
    StringConstraints(pattern=COLLECTION_PATTERN),
    Field(description="Letters, digits, '.', '_' and '-', at most 64."),
]


def _whole(value: object) -> object:
    """A whole number that came as `5.0`, which JSON does not tell from 5; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Priority = Literal["interactive", "normal", "batch"]


class Incoming(BaseModel):
    """A JSON body: unknown fields and other types are refused, so that no slip is silently ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class HistoryMessage(Incoming):
    """An earlier turn."""

    role: Literal["user", "assistant"]
    content: str


class SearchRequest(Incoming):
    """What to look for, and where."""

    question: str = Field(
        description="In your own words.",
        # Looked at in `QuestionLimits`, in words that say what to do.
        json_schema_extra={"minLength": 1, "pattern": r"\S"},
    )
    collection: CollectionName = DEFAULT_COLLECTION
    document_ids: list[str] = Field(
        [], max_length=MAX_DOCUMENT_IDS, description="Search only these; none: the collection."
    )
    top_k: Whole | None = Field(
        None, ge=1, description="Chunks of about 150 tokens; neighbours on a page are one passage."
    )
    timeout_s: float | None = Field(
        None, gt=0, description="The request's deadline in seconds; can only be shortened."
    )


class AskRequest(SearchRequest):
    """A question to answer."""

    max_tokens: Whole | None = Field(None, ge=1, description="Longest answer, in tokens.")
    stream: bool = Field(
        default=False, description="Server-sent events instead of one JSON object."
    )
    history: list[HistoryMessage] = Field([], description="Earlier turns, oldest first.")
    degrade: bool = Field(
        default=True, description="Whether a lesser answer may be given under load; false opts out."
    )
    priority: Priority = Field(
        "normal", description="Who goes first under load: interactive, normal, batch."
    )


class PassageOut(BaseModel):
    """A passage that was found."""

    document_id: str
    filename: str
    page: int = Field(ge=1, description="From 1.")
    char_start: int = Field(ge=0, description="Where it starts in the page's text.")
    char_end: int = Field(ge=0, description="Where it ends there.")
    text: str
    score: float = Field(ge=-1, le=1, description="Cosine similarity to the question.")


class SearchResponse(BaseModel):
    """What was found, best first."""

    passages: list[PassageOut]
    degraded: "DegradedOut | None"


class Mark(BaseModel):
    """How an answer refers to a source."""

    n: int = Field(ge=1, description="What `[n]` in the answer refers to.")


class SourceOut(PassageOut, Mark):
    """A numbered source, before the answer."""


class CitationOut(SourceOut):
    """A numbered source of an answer."""

    cited: bool = Field(description="Whether the answer's text carries the mark.")


class UsageOut(BaseModel):
    """Tokens, as the engine counted them."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class TimingsOut(BaseModel):
    """Milliseconds from the request's arrival."""

    queue: float = Field(ge=0, description="Spent waiting for a place.")
    retrieve: float = Field(ge=0, description="Spent on the search.")
    first_token: float = Field(ge=0, description="Until the first token; 0 if none was generated.")
    total: float = Field(ge=0)


class DegradedOut(BaseModel):
    """How the answer is less than what was asked for."""

    level: Literal["L1", "L2", "L3"] = Field(
        description="L1: fewer passages, a shorter answer, or a search by words only. L2: another "
        "engine. L3: the passages themselves, nothing generated."
    )
    reason: str


FinishReason = Literal["stop", "length"]


class QueuedOut(BaseModel):
    """An event: a place in the queue."""

    position: int = Field(ge=1, description="1 goes next.")
    eta_s: float | None = Field(description="Predicted wait in seconds; null if unknown.")


class SourcesOut(BaseModel):
    """An event: what the model is shown."""

    citations: list[SourceOut]
    degraded: DegradedOut | None


class TokenOut(BaseModel):
    """An event: the next piece of the answer."""

    text: str


class AskResponse(BaseModel):
    """An answer with its sources."""

    answer: str
    citations: list[CitationOut]
    degraded: DegradedOut | None
    finish_reason: FinishReason
    usage: UsageOut
    timings_ms: TimingsOut
    request_id: str


class DocumentErrorOut(BaseModel):
    """Why a document failed."""

    code: str
    message: str


class DocumentOut(BaseModel):
    """A document and where it is on its way."""

    id: str
    collection: str
    filename: str
    status: Literal["queued", "parsing", "embedding", "ready", "failed"]
    size_bytes: int = Field(ge=1)
    pages: int = Field(ge=0)
    pages_done: int = Field(ge=0, description="Pages whose text has been read.")
    chunks: int = Field(ge=0)
    warning: str | None = Field(description="What a ready document lacks.")
    replaces: str | None = Field(
        description="The document that goes in the moment in which this one becomes ready."
    )
    error: DocumentErrorOut | None
    created_at: float = Field(description="Seconds since the epoch.")


Share = Annotated[float, Field(ge=0, le=1)]
Box = Annotated[list[Share], Field(min_length=4, max_length=4)]


class BoxesResponse(BaseModel):
    """Where a passage stands on its page."""

    page: int = Field(ge=1)
    boxes: list[Box] = Field(
        description="One a line: left, top, right, bottom as shares of the page, from 0 to 1. Empty "
        "if it is not sure where the passage stands: then mark nothing."
    )


class UploadedDocumentOut(DocumentOut):
    """A document as its upload left it."""

    duplicate: bool = Field(description="The same bytes were there already: nothing was done.")


class UploadRefusedOut(BaseModel):
    """A file of an upload of several that could not be taken."""

    filename: str
    status: Literal["refused"]
    error: DocumentErrorOut


class UploadResponse(BaseModel):
    """One entry a file, in order."""

    documents: list[UploadedDocumentOut | UploadRefusedOut]


class DocumentsResponse(BaseModel):
    """A page of documents. `next` continues the list, if there is more."""

    documents: list[DocumentOut]
    next: str | None


class ErrorDetail(BaseModel):
    """What went wrong, and what to do."""

    message: str
    type: str = Field(description="The kind of error, in OpenAI's words.")
    code: str = Field(description="A stable word; docs/operations.md explains each.")
    param: str | None = Field(description="The field at fault, if one is.")


class ErrorResponse(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


class ErrorEventDetail(ErrorDetail):
    """An error in a stream, whose headers were sent long before."""

    retry_after_s: float | None = Field(
        description="When to come back, in seconds; null if that is not known, or would be in vain."
    )


class ErrorEventOut(BaseModel):
    """The last event of a stream that could not go on."""

    error: ErrorEventDetail


class TextPart(BaseModel):
    """A part of a message's content; only text is understood."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A turn, as OpenAI writes it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class StreamOptions(BaseModel):
    """What else a stream should carry."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


StopText = Annotated[str, StringConstraints(min_length=1)]


class OpenAIQuestion(BaseModel):
    """What OpenAI's requests have in common here: our fields beside theirs (`extra_body` of the client)."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    collection: CollectionName = DEFAULT_COLLECTION
    document_ids: list[str] = Field([], max_length=MAX_DOCUMENT_IDS)
    top_k: Whole | None = Field(None, ge=1)
    timeout_s: float | None = Field(None, gt=0)
    degrade: bool = True
    priority: Priority = "normal"

    def extras(self) -> dict[str, Any]:
        """Fields that OpenAI may know and we do not."""
        return self.model_extra or {}


class ChatCompletionRequest(OpenAIQuestion):
    """OpenAI's request for a chat's next turn."""

    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    seed: Whole | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: StopText | list[StopText] | None = None
    n: Whole | None = None


class ChatUsageOut(UsageOut):
    """Tokens, as OpenAI counts them."""

    total_tokens: int = Field(ge=0)


class ChatMessageOut(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoiceOut(BaseModel):
    """The only choice."""

    index: Literal[0]
    message: ChatMessageOut
    logprobs: None
    finish_reason: FinishReason


class ChatStamp(BaseModel):
    """What stands on an answer and on each of its chunks."""

    id: str
    created: int = Field(description="Seconds since the epoch.")
    model: str


class ChatCompletionResponse(ChatStamp):
    """OpenAI's answer, with the sources beside it."""

    object: Literal["chat.completion"]
    choices: list[ChatChoiceOut] = Field(min_length=1, max_length=1)
    usage: ChatUsageOut
    citations: list[CitationOut]
    degraded: DegradedOut | None


class OpeningDelta(BaseModel):
    """Who speaks; nothing is said yet."""

    role: Literal["assistant"]
    content: Literal[""]


class TextDelta(BaseModel):
    """The next piece of the answer."""

    content: str


class ClosingDelta(BaseModel):
    """Nothing is added any more."""

    model_config = ConfigDict(extra="forbid")


class SpeakingChoiceOut(BaseModel):
    """The choice while it grows."""

    index: Literal[0]
    delta: OpeningDelta | TextDelta
    logprobs: None
    finish_reason: None


class FinishedChoiceOut(BaseModel):
    """The choice at its end."""

    index: Literal[0]
    delta: ClosingDelta
    logprobs: None
    finish_reason: FinishReason


class ChatChunkStamp(ChatStamp):
    """What stands on each chunk."""

    object: Literal["chat.completion.chunk"]


class ChatChunkOut(ChatChunkStamp):
    """A chunk of a streamed answer."""

    choices: list[SpeakingChoiceOut] = Field(min_length=1, max_length=1)


class LastChatChunkOut(ChatChunkStamp):
    """The last chunk with a choice; it carries the sources."""

    choices: list[FinishedChoiceOut] = Field(min_length=1, max_length=1)
    citations: list[CitationOut]
    degraded: DegradedOut | None


class UsageChunkOut(ChatChunkStamp):
    """What the answer took, where `stream_options` asks for it."""

    choices: list[SpeakingChoiceOut] = Field(max_length=0)
    usage: ChatUsageOut


class ModelOut(BaseModel):
    """A model that the engine serves."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsResponse(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ModelOut]


Health = Literal["ok", "degraded", "down"]


class AliveResponse(BaseModel):
    """The process answers."""

    status: Literal["ok"]


class DependencyOut(BaseModel):
    """How one dependency is."""

    status: Health
    detail: str = Field(description="Why, in words; empty if it is well, or for strangers.")


class ReadyResponse(BaseModel):
    """Whether questions can be answered now: unless a dependency is down."""

    status: Health = Field(description="That of the worst dependency.")
    dependencies: dict[str, DependencyOut]


class ForecastOut(BaseModel):
    """How well waits were foretold."""

    median_ratio: float | None = Field(description="Retry-After over the wait that then served.")
    n: int = Field(ge=0)


class GateExcerpt(BaseModel):
    """How long one will wait."""

    queued: int = Field(ge=0, description="Questions that wait.")
    max_queued: int = Field(ge=0)
    wait_target_s: float = Field(description="Longest predicted wait that is taken, in seconds.")


class GateOut(GateExcerpt):
    """What has been given out of the engine."""

    running: int = Field(ge=0, description="Questions that hold a reservation.")
    reserved_tokens: int = Field(ge=0, description="Most tokens that they will hold at once.")
    capacity_tokens: int | None = Field(description="Tokens to reserve; null while unknown.")
    concurrent: int = Field(ge=0, description="Questions that may run.")
    waits_for: Literal["seats", "time", "prompts", "cache"] | None = Field(
        description="Which limit keeps the next question from the engine; null if none waits."
    )
    correction: float = Field(ge=0, le=1, description="Learnt factor on the limits.")
    brownout: bool = Field(description="Whether answers are degraded under load.")
    sustained_overload: bool
    drain_tokens_per_s: float | None
    eta_s: float | None = Field(description="Predicted wait of whoever came last, in seconds.")
    engine_metrics_stale: bool
    kv_cache_tokens: int | None = Field(description="Size of the engine's cache.")
    forecast: ForecastOut


class EngineExcerpt(BaseModel):
    """What answers."""

    model: str | None
    max_model_len: int = Field(ge=0, description="Context window, in tokens.")
    asleep: bool


class EngineOut(EngineExcerpt):
    """The engine, and who keeps it."""

    url: str
    exact_token_counts: bool
    waiting_for_wake: int = Field(ge=0, description="Questions that wait for it to wake.")
    model_server: dict[str, Any] | None = Field(description="Its own `/state`.")


class EmbedderOut(BaseModel):
    """The embedder."""

    dimension: int = Field(ge=0, description="Length of a vector; 0 until it is up.")
    dtype: str
    restarts: int = Field(ge=0)


class DocumentCountsOut(BaseModel):
    """What is stored."""

    total: int = Field(ge=0)
    by_status: dict[Literal["queued", "parsing", "embedding", "ready", "failed"], int]
    chunks: int = Field(ge=0)


class StoreSilentOut(BaseModel):
    """The store cannot be read."""

    error: str


class BacklogOut(BaseModel):
    """Documents on their way."""

    queued: int = Field(ge=0)
    running: int = Field(ge=0)


class AllDocumentsOut(DocumentCountsOut, BacklogOut):
    """What is stored, and what is on its way."""


class AllDocumentsSilentOut(StoreSilentOut, BacklogOut):
    """What is on its way; the store cannot be read."""


class GpuIndexOut(BaseModel):
    """The card that searches."""

    device: str
    vectors: int = Field(ge=0)
    bytes: int = Field(ge=0)
    max_bytes: int = Field(ge=0)
    failure: str | None


class IndexProgressOut(BaseModel):
    """An index that is being built."""

    vectors: int = Field(ge=0)
    of: int = Field(ge=0)


class IndexesOut(BaseModel):
    """Vector indexes, by collection."""

    vectors: dict[str, int]
    gpu: GpuIndexOut | None
    building: dict[str, IndexProgressOut]


class MemoryOut(BaseModel):
    """Memory of the orchestrator and its children."""

    rss_bytes: int = Field(ge=0)


class ProcessOut(BaseModel):
    """The orchestrator's own process."""

    tasks: int = Field(ge=0)
    open_sockets: int = Field(ge=0)
    loop_lag_max_s: float = Field(ge=0, description="Worst since the last look, in seconds.")


class StatusExcerpt(BaseModel):
    """What an owner sees."""

    version: str
    dependencies: dict[str, DependencyOut]
    gate: GateExcerpt
    engine: EngineExcerpt
    documents: DocumentCountsOut | StoreSilentOut


class StatusResponse(BaseModel):
    """What whoever runs the service sees."""

    version: str
    uptime_s: float = Field(ge=0)
    dependencies: dict[str, DependencyOut]
    gate: GateOut
    breakers: dict[str, Literal["closed", "half_open", "open"]]
    engine: EngineOut
    embedder: EmbedderOut
    documents: AllDocumentsOut | AllDocumentsSilentOut
    indexes: IndexesOut
    memory: MemoryOut
    process: ProcessOut


def component_schemas(*models: type[BaseModel]) -> dict[str, Any]:
    """The JSON schemas of these shapes, and of those inside them, by name, as OpenAPI refers to them."""
    found: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(
            ref_template="#/components/schemas/{model}", mode="serialization"
        )
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return found
