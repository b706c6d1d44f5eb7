"""What the tools of the MCP server take."""

from pydantic import Field

from orchestrator.api.schemas import DEFAULT_COLLECTION, CollectionName, Incoming, Whole

PATH = "/mcp"
MAX_INLINE_BYTES = 8 * 1024**2
MAX_BODY_BYTES = MAX_INLINE_BYTES * 4 // 3 + 64 * 1024
MAX_LISTED = 100


class SearchArguments(Incoming):
    """Where to look, and for what."""

    question: str = Field(description="What to look for, in your own words.")
    collection: CollectionName = DEFAULT_COLLECTION
    document_ids: list[str] = Field([], description="Search only these; none: the collection.")
    top_k: Whole | None = Field(None, ge=1, description="Passages at most.")


class AskArguments(SearchArguments):
    """What to answer."""

    max_tokens: Whole | None = Field(None, ge=1, description="Longest answer, in tokens.")


class ListArguments(Incoming):
    """Which documents."""

    collection: CollectionName | None = None
    limit: Whole = Field(20, ge=1, le=MAX_LISTED)
    after: str | None = Field(None, description="`next` of the list before.")


class AddArguments(Incoming):
    """A PDF, inside the call."""

    filename: str = Field(description="What it is called.")
    content_base64: str = Field(
        description=f"The PDF, in base64; up to {MAX_INLINE_BYTES // 1024**2} MiB of it.",
        max_length=MAX_INLINE_BYTES * 4 // 3 + 4,
    )
    collection: CollectionName = DEFAULT_COLLECTION


class AddPathArguments(Incoming):
    """A PDF on this machine."""

    path: str = Field(description="Where the PDF is.")
    collection: CollectionName = DEFAULT_COLLECTION
