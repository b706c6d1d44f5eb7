"""Wire shapes of OpenAI's files and vector stores: what comes in, validated, and what goes out."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from orchestrator.api.schemas import Incoming, Whole

MAX_BATCH_FILES = 2000
MAX_PAIRS = 16
MAX_FILTERS = 64
MAX_QUERIES = 8
MAX_RESULTS = 50

PairKey = Annotated[str, StringConstraints(max_length=64)]
PairText = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[
    dict[PairKey, PairText],
    Field(max_length=MAX_PAIRS, description="Up to 16 pairs: 64 and 512 characters."),
]
AttributesIn = Annotated[
    dict[PairKey, PairText | bool | int | float],
    Field(max_length=MAX_PAIRS, description="Up to 16 pairs; filters look at them."),
]
FileIds = Annotated[list[str], Field(max_length=MAX_BATCH_FILES)]
Name = Annotated[str, StringConstraints(max_length=256)]
Purpose = Literal["assistants", "user_data"]
StoreFileStatusOut = Literal["in_progress", "completed", "failed", "cancelled"]


class ChunkingStrategy(Incoming):
    """How files are cut: `auto` is the only way here."""

    type: str
    static: dict[str, Any] | None = None


class VectorStoreCreateRequest(Incoming):
    """A new store."""

    name: Name | None = None
    description: str | None = Field(None, description="For you; nothing looks at it.")
    file_ids: FileIds = Field([])
    metadata: Metadata | None = None
    chunking_strategy: ChunkingStrategy | None = None
    expires_after: dict[str, Any] | None = Field(None, description="Stores stay: leave it out.")


class VectorStoreUpdateRequest(Incoming):
    """What is to be different; what is left out stays."""

    name: Name | None = None
    metadata: Metadata | None = None
    expires_after: dict[str, Any] | None = Field(None, description="Stores stay: leave it out.")


class StoreFileCreateRequest(Incoming):
    """A file to put into a store."""

    file_id: str
    attributes: AttributesIn | None = None
    chunking_strategy: ChunkingStrategy | None = None


class StoreFileUpdateRequest(Incoming):
    """Other attributes of a file in a store."""

    attributes: AttributesIn | None = Field(description="In place of those that it has.")


class FileBatchCreateRequest(Incoming):
    """Files to put into a store together: by `file_ids`, or by `files` with what is written on each."""

    file_ids: FileIds | None = None
    files: Annotated[list[StoreFileCreateRequest] | None, Field(max_length=MAX_BATCH_FILES)] = None
    attributes: AttributesIn | None = Field(None, description="With `file_ids`: on all of them.")
    chunking_strategy: ChunkingStrategy | None = None


class ComparisonFilter(Incoming):
    """One attribute against a value."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: PairKey
    value: str | bool | int | float | list[str | bool | int | float]


class CompoundFilter(Incoming):
    """Several filters as one."""

    type: Literal["and", "or"]
    filters: Annotated[list["Filter"], Field(min_length=1, max_length=MAX_FILTERS)]


Filter = Annotated[ComparisonFilter | CompoundFilter, Field(discriminator="type")]


class RankingOptions(Incoming):
    """How results are ranked: as everywhere here, by meaning and words together."""

    ranker: str | None = None
    score_threshold: float | None = Field(None, ge=0, le=1)
    hybrid_search: dict[str, Any] | None = Field(
        None, description="Weights are fixed: leave it out."
    )


class StoreSearchRequest(Incoming):
    """What to look for in a store."""

    query: str | Annotated[list[str], Field(min_length=1, max_length=MAX_QUERIES)]
    filters: Filter | None = None
    max_num_results: Whole | None = Field(None, ge=1, le=MAX_RESULTS)
    ranking_options: RankingOptions | None = None
    rewrite_query: bool = Field(default=False, description="Queries are searched as they are.")
    timeout_s: float | None = Field(None, gt=0, description="The request's deadline in seconds.")


class FileOut(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"]
    bytes: int = Field(ge=1)
    created_at: int = Field(description="Seconds since the epoch.")
    expires_at: None
    filename: str
    purpose: Purpose
    status: Literal["processed"]
    status_details: None


class ListPage(BaseModel):
    """A part of a list; `after` and the last id continue it."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FilesPage(ListPage):
    """Uploaded files."""

    data: list[FileOut]


class Deleted(BaseModel):
    """What is gone."""

    id: str
    deleted: Literal[True]


class FileDeleted(Deleted):
    """A file that is gone, also from all stores."""

    object: Literal["file"]


class FileCountsOut(BaseModel):
    """How many files are how far."""

    in_progress: int = Field(ge=0)
    completed: int = Field(ge=0)
    failed: int = Field(ge=0)
    cancelled: int = Field(ge=0)
    total: int = Field(ge=0)


class VectorStoreOut(BaseModel):
    """A vector store."""

    id: str = Field(description="Also the name of its collection on the other routes.")
    object: Literal["vector_store"]
    created_at: int = Field(description="Seconds since the epoch.")
    last_active_at: int
    name: str
    metadata: Metadata
    usage_bytes: int = Field(ge=0, description="Of the files that are completed.")
    file_counts: FileCountsOut
    status: Literal["in_progress", "completed"]
    expires_after: None
    expires_at: None


class VectorStoresPage(ListPage):
    """Vector stores."""

    data: list[VectorStoreOut]


class VectorStoreDeleted(Deleted):
    """A store that is gone; its files stay."""

    object: Literal["vector_store.deleted"]


class LastErrorOut(BaseModel):
    """Why a file could not be taken into a store."""

    code: Literal["server_error", "unsupported_file", "invalid_file"]
    message: str


class AutoChunking(BaseModel):
    """As this service is set up."""

    type: Literal["auto"]


class StoreFileOut(BaseModel):
    """A file in a store."""

    id: str
    object: Literal["vector_store.file"]
    created_at: int = Field(description="Seconds since the epoch.")
    vector_store_id: str
    status: StoreFileStatusOut
    last_error: LastErrorOut | None
    usage_bytes: int = Field(ge=0)
    attributes: dict[str, str | bool | int | float]
    chunking_strategy: AutoChunking
    document_id: str = Field(description="What it is in the collection, once it is completed.")


class StoreFilesPage(ListPage):
    """Files in a store."""

    data: list[StoreFileOut]


class StoreFileDeleted(Deleted):
    """A file that is in this store no more."""

    object: Literal["vector_store.file.deleted"]


class FileBatchOut(BaseModel):
    """Files that were put into a store together."""

    id: str
    object: Literal["vector_store.files_batch"]
    created_at: int = Field(description="Seconds since the epoch.")
    vector_store_id: str
    status: Literal["in_progress", "completed", "cancelled"]
    file_counts: FileCountsOut


class TextOut(BaseModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class StoreContentPage(BaseModel):
    """The text of a file, a page of it each."""

    object: Literal["vector_store.file_content.page"]
    data: list[TextOut]
    has_more: Literal[False]
    next_page: None


class StoreResultOut(BaseModel):
    """A passage that was found."""

    file_id: str
    filename: str
    score: float = Field(ge=0, le=1, description="Similarity to the query.")
    attributes: dict[str, str | bool | int | float]
    content: list[TextOut]
    document_id: str
    page: int = Field(ge=1, description="From 1.")
    char_start: int = Field(ge=0, description="Where it starts in the page's text.")
    char_end: int = Field(ge=0, description="Where it ends there.")


class StoreResultsPage(BaseModel):
    """What was found, best first."""

    object: Literal["vector_store.search_results.page"]
    search_query: list[str]
    data: list[StoreResultOut]
    has_more: Literal[False]
    next_page: None
