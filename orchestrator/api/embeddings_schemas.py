"""Wire shapes of OpenAI's `/v1/embeddings`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api.schemas import Whole

MAX_TEXTS = 256


class EmbeddingsRequest(BaseModel):
    """Texts to embed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    input: (
        str | Annotated[list[str | int | list[int]], Field(min_length=1, max_length=MAX_TEXTS)]
    ) = Field(description="One text, or up to 256. Tokens are refused.")
    input_type: Literal["passage", "query"] = Field(
        "passage", description="What the texts are, for models that tell the two apart."
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Whole | None = Field(None, ge=1)
    user: str | None = None
    timeout_s: float | None = Field(None, gt=0, description="The request's deadline in seconds.")


class EmbeddingOut(BaseModel):
    """One text's vector, of unit length."""

    object: Literal["embedding"]
    index: int = Field(ge=0)
    embedding: list[float] | str = Field(description="As base64: float32, little-endian.")


class EmbeddingsUsageOut(BaseModel):
    """Tokens, as the embedding model counts them."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class EmbeddingsResponse(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingOut]
    usage: EmbeddingsUsageOut
