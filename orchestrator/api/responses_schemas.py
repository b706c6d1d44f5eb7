"""Wire shapes of OpenAI's `/v1/responses`: what comes in, validated, and what goes out."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from orchestrator.api.file_search_schemas import MAX_RESULTS, Filter, Metadata, RankingOptions
from orchestrator.api.schemas import (
    CitationOut,
    DegradedOut,
    Incoming,
    OpenAIQuestion,
    Whole,
)

FILE_SEARCH = "file_search"
RESULTS = "file_search_call.results"


class InputPart(BaseModel):
    """A part of a message's content; only text is understood."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str
    text: str | None = None


class InputItem(BaseModel):
    """A turn, or an item of an earlier answer that comes back."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputPart] | None = None


class FileSearchTool(Incoming):
    """OpenAI's `file_search`, over one vector store."""

    type: Literal["file_search"]
    vector_store_ids: list[str] = Field(min_length=1)
    max_num_results: Whole | None = Field(None, ge=1, le=MAX_RESULTS)
    filters: Filter | None = None
    ranking_options: RankingOptions | None = None


class ForeignTool(BaseModel):
    """A tool that is not served here: it is read so that it can be refused in words."""

    model_config = ConfigDict(extra="allow")

    type: str


def _kind(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return FILE_SEARCH if kind == FILE_SEARCH else "foreign"


Tool = Annotated[
    Annotated[FileSearchTool, Tag(FILE_SEARCH)] | Annotated[ForeignTool, Tag("foreign")],
    Discriminator(_kind),
]


class ResponseRequest(OpenAIQuestion):
    """OpenAI's request for a response."""

    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    include: list[str] | None = None
    stream: bool | None = None
    max_output_tokens: Whole | None = Field(None, ge=1)
    metadata: Metadata | None = None
    store: bool | None = None


class FileCitationOut(BaseModel):
    """A mark in the text, and the page that it points to."""

    type: Literal["file_citation"]
    index: int = Field(ge=0, description="Where the mark stands in the text.")
    file_id: str = Field(description="The file's; the document's where no vector store was asked.")
    filename: str
    n: int = Field(ge=1, description="The number in the mark.")
    document_id: str
    page: int = Field(ge=1, description="From 1.")
    char_start: int = Field(ge=0, description="Where the passage starts in the page's text.")
    char_end: int = Field(ge=0, description="Where it ends there.")


class OutputTextOut(BaseModel):
    """The answer's text."""

    type: Literal["output_text"]
    text: str
    annotations: list[FileCitationOut]
    logprobs: list[Any] = Field(max_length=0)


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class MessageOut(BaseModel):
    """What the assistant says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputTextOut] = Field(max_length=1)


class SearchResultOut(BaseModel):
    """A passage that the model was shown."""

    file_id: str
    filename: str
    score: float = Field(ge=0, le=1)
    text: str
    attributes: dict[str, str | bool | int | float]
    document_id: str
    page: int = Field(ge=1)
    char_start: int = Field(ge=0)
    char_end: int = Field(ge=0)


class FileSearchCallOut(BaseModel):
    """That a store was searched, and for what."""

    id: str
    type: Literal["file_search_call"]
    status: Literal["in_progress", "searching", "completed"]
    queries: list[str]
    results: list[SearchResultOut] | None = Field(
        description="If `include` names `file_search_call.results`."
    )


OutputItemOut = FileSearchCallOut | MessageOut


class InputTokensDetailsOut(BaseModel):
    """What of the prompt was known already; nobody says so here."""

    cached_tokens: Literal[0]
    cache_write_tokens: Literal[0]


class OutputTokensDetailsOut(BaseModel):
    """What of the answer was thought only."""

    reasoning_tokens: Literal[0]


class ResponseUsageOut(BaseModel):
    """Tokens, as the engine counted them."""

    input_tokens: int = Field(ge=0)
    input_tokens_details: InputTokensDetailsOut
    output_tokens: int = Field(ge=0)
    output_tokens_details: OutputTokensDetailsOut
    total_tokens: int = Field(ge=0)


class IncompleteOut(BaseModel):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseErrorOut(BaseModel):
    """What went wrong while the answer was streamed."""

    code: str
    message: str


class PlainText(BaseModel):
    """The only format."""

    type: Literal["text"]


class TextFormatOut(BaseModel):
    """How the answer is written."""

    format: PlainText


class ResponseOut(BaseModel):
    """OpenAI's answer, with the sources beside it."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Seconds since the epoch.")
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed"]
    error: ResponseErrorOut | None
    incomplete_details: IncompleteOut | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: Metadata
    model: str
    output: list[OutputItemOut]
    parallel_tool_calls: Literal[False]
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: TextFormatOut
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsageOut | None
    citations: list[CitationOut]
    degraded: DegradedOut | None


class Event(BaseModel):
    """What each event of a streamed answer carries; needed for the document only, and made then."""

    model_config = ConfigDict(defer_build=True)

    sequence_number: int = Field(ge=0)


class WholeEvent(Event):
    """An event with the whole answer, as far as it is."""

    response: ResponseOut


class CreatedEvent(WholeEvent):
    """The request was taken."""

    type: Literal["response.created"]


class QueuedEvent(WholeEvent):
    """It waits for its turn."""

    type: Literal["response.queued"]
    position: int = Field(ge=1, description="1 goes next.")
    eta_s: float | None = Field(description="Predicted wait in seconds; null if unknown.")


class InProgressEvent(WholeEvent):
    """It is being answered."""

    type: Literal["response.in_progress"]


class CompletedEvent(WholeEvent):
    """It is answered."""

    type: Literal["response.completed"]


class IncompleteEvent(WholeEvent):
    """It is answered as far as `max_output_tokens` let it."""

    type: Literal["response.incomplete"]


class FailedEvent(WholeEvent):
    """It could not be answered."""

    type: Literal["response.failed"]


class ItemEvent(Event):
    """An event about a part of the output."""

    output_index: int = Field(ge=0)


class ItemAddedEvent(ItemEvent):
    """A new part begins."""

    type: Literal["response.output_item.added"]
    item: OutputItemOut


class ItemDoneEvent(ItemEvent):
    """A part is whole."""

    type: Literal["response.output_item.done"]
    item: OutputItemOut


class SearchEvent(ItemEvent):
    """How far a search is."""

    type: Literal[
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
        "response.file_search_call.completed",
    ]
    item_id: str


class ContentEvent(ItemEvent):
    """An event about the text."""

    item_id: str
    content_index: Literal[0]


class PartAddedEvent(ContentEvent):
    """The text begins."""

    type: Literal["response.content_part.added"]
    part: OutputTextOut


class PartDoneEvent(ContentEvent):
    """The text is whole."""

    type: Literal["response.content_part.done"]
    part: OutputTextOut


class TextDeltaEvent(ContentEvent):
    """The next piece of the text."""

    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[Any] = Field(max_length=0)


class TextDoneEvent(ContentEvent):
    """All of the text."""

    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[Any] = Field(max_length=0)


class AnnotationAddedEvent(ContentEvent):
    """A mark in the text, and the page that it points to."""

    type: Literal["response.output_text.annotation.added"]
    annotation_index: int = Field(ge=0)
    annotation: FileCitationOut


class ErrorEvent(Event):
    """Why the answer broke off; `retry_after_s` is ours."""

    type: Literal["error"]
    code: str
    message: str
    param: str | None
    retry_after_s: float | None


EVENTS: dict[str, type[Event]] = {
    "response.created": CreatedEvent,
    "response.queued": QueuedEvent,
    "response.in_progress": InProgressEvent,
    "response.output_item.added": ItemAddedEvent,
    "response.output_item.done": ItemDoneEvent,
    "response.file_search_call.in_progress": SearchEvent,
    "response.file_search_call.searching": SearchEvent,
    "response.file_search_call.completed": SearchEvent,
    "response.content_part.added": PartAddedEvent,
    "response.content_part.done": PartDoneEvent,
    "response.output_text.delta": TextDeltaEvent,
    "response.output_text.done": TextDoneEvent,
    "response.output_text.annotation.added": AnnotationAddedEvent,
    "response.completed": CompletedEvent,
    "response.incomplete": IncompleteEvent,
    "response.failed": FailedEvent,
    "error": ErrorEvent,
}
"""What a streamed answer's events carry, by their names."""
