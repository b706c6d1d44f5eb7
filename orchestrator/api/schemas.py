"""Wire shapes: what comes in, validated, and what goes out, documented."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

COLLECTION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DEFAULT_COLLECTION = "default"
MAX_DOCUMENT_IDS = 1000

CollectionName = Annotated[
    str,
    StringConstraints(pattern=COLLECTION_PATTERN),
    Field(description="Letters, digits, '.', '_' and '-', at most 64."),
]


Priority = Literal["interactive", "normal", "batch"]


class Incoming(BaseModel):
    """A JSON body: unknown fields are refused, so that a typing error is not silently ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class HistoryMessage(Incoming):
    """An earlier turn."""

    role: Literal["user", "assistant"]
    content: str


class SearchRequest(Incoming):
    """What to look for, and where."""

    question: str = Field(description="In your own words.")
    collection: CollectionName = DEFAULT_COLLECTION
    document_ids: list[str] = Field(
        [], max_length=MAX_DOCUMENT_IDS, description="Search only these; none: the collection."
    )
    top_k: int | None = Field(
        None, ge=1, description="Chunks of about 150 tokens; neighbours on a page are one passage."
    )
    timeout_s: float | None = Field(
        None, gt=0, description="The request's deadline in seconds; can only be shortened."
    )


class AskRequest(SearchRequest):
    """A question to answer."""

    max_tokens: int | None = Field(None, ge=1, description="Longest answer, in tokens.")
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
    page: int = Field(description="From 1.")
    char_start: int = Field(description="Where it starts in the page's text.")
    char_end: int = Field(description="Where it ends there.")
    text: str
    score: float = Field(description="Cosine similarity to the question, -1 to 1.")


class SearchResponse(BaseModel):
    """What was found, best first."""

    passages: list[PassageOut]
    degraded: "DegradedOut | None"


class Mark(BaseModel):
    """How an answer refers to a source."""

    n: int = Field(description="What `[n]` in the answer refers to.")
    cited: bool = Field(description="Whether the answer's text carries the mark.")


class CitationOut(PassageOut, Mark):
    """A numbered source of an answer."""


class UsageOut(BaseModel):
    """Tokens, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int


class TimingsOut(BaseModel):
    """Milliseconds from the request's arrival."""

    queue: float
    retrieve: float
    first_token: float
    total: float


class DegradedOut(BaseModel):
    """How the answer is less than what was asked for."""

    level: Literal["L1", "L2", "L3"] = Field(
        description="L1: fewer passages, a shorter answer, or a search by words only. L2: another "
        "engine. L3: the passages themselves, nothing generated."
    )
    reason: str


class AskResponse(BaseModel):
    """An answer with its sources."""

    answer: str
    citations: list[CitationOut]
    degraded: DegradedOut | None
    finish_reason: Literal["stop", "length"]
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
    size_bytes: int
    pages: int
    pages_done: int
    chunks: int
    warning: str | None
    replaces: str | None = Field(
        description="The document that goes in the moment in which this one becomes ready."
    )
    error: DocumentErrorOut | None
    created_at: float = Field(description="Seconds since the epoch.")


class BoxesResponse(BaseModel):
    """Where a passage stands on its page."""

    page: int
    boxes: list[tuple[float, float, float, float]] = Field(
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
    type: str
    code: str
    param: str | None


class ErrorResponse(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


class TextPart(BaseModel):
    """A part of a message's content; only text is understood."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A turn, as OpenAI writes it."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class StreamOptions(BaseModel):
    """What else a stream should carry."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatCompletionRequest(BaseModel):
    """OpenAI's request, with our collection beside it (`extra_body` of the client)."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    collection: CollectionName = DEFAULT_COLLECTION
    document_ids: list[str] = Field([], max_length=MAX_DOCUMENT_IDS)
    top_k: int | None = Field(None, ge=1)
    timeout_s: float | None = Field(None, gt=0)
    degrade: bool = True
    priority: Priority = "normal"

    def extras(self) -> dict[str, Any]:
        """Fields that OpenAI may know and we do not."""
        return self.model_extra or {}
