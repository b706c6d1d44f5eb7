"""OpenAI's `POST /v1/embeddings`: vectors of the model that documents and questions are embedded by."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from orchestrator.access.quotas import Quotas
from orchestrator.api.access import identity
from orchestrator.api.embeddings_schemas import EmbeddingsRequest, EmbeddingsResponse
from orchestrator.api.json_route import JsonRoute
from orchestrator.api.openapi_document import DEADLINE, ERRORS
from orchestrator.api.question_limits import QuestionLimits
from orchestrator.api.sse import unless_disconnected
from orchestrator.domain import Embeddings
from orchestrator.errors import InvalidParameter, ModelNotFound
from orchestrator.pipelines.embedding import EmbeddingPipeline
from orchestrator.resilience.deadline import Deadline


class EmbeddingRoutes:
    """The embedder's own door."""

    def __init__(
        self, *, pipeline: EmbeddingPipeline, limits: QuestionLimits, quotas: Quotas
    ) -> None:
        self._pipeline = pipeline
        self._limits = limits
        self._quotas = quotas

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1", responses=ERRORS)
        router.add_api_route(
            "/embeddings",
            self.embeddings,
            methods=["POST"],
            response_model=EmbeddingsResponse,
            openapi_extra=DEADLINE,
            route_class_override=JsonRoute,
            summary="Embed texts",
        )
        return router

    async def embeddings(self, body: EmbeddingsRequest, request: Request) -> Response:
        """Embed texts as passages, or as questions where the model tells them apart."""
        self._check(body)
        texts = _texts(body)
        deadline = self._limits.deadline(request, body.timeout_s)
        vectors, tokens = await unless_disconnected(
            request, self._embedded(texts, body, request, deadline)
        )
        return JSONResponse({
            "object": "list",
            "model": body.model,
            "data": [
                {"object": "embedding", "index": n, "embedding": row}
                for n, row in enumerate(_rows(vectors, body.encoding_format))
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        })

    async def _embedded(
        self, texts: list[str], body: EmbeddingsRequest, request: Request, deadline: Deadline
    ) -> tuple[Embeddings, int]:
        """The vectors, and the tokens that they took, which the key pays for."""
        async with deadline.scope():
            tokens = await self._pipeline.count(texts)
            with self._quotas.tokens(identity(request).key, tokens) as spending:
                spending.used = 0
                vectors = await self._pipeline.embed(texts, questions=body.input_type == "query")
                spending.used = tokens
        return vectors, tokens

    def _check(self, body: EmbeddingsRequest) -> None:
        if body.model != self._pipeline.model:
            raise ModelNotFound(
                f"The embedding model {body.model!r} is not served here. Use "
                f"{self._pipeline.model}.",
                param="model",
            )
        if body.dimensions not in {None, self._pipeline.dimension}:
            raise InvalidParameter(
                f"Vectors have {self._pipeline.dimension} dimensions, always. Leave `dimensions` out.",
                param="dimensions",
            )


def _texts(body: EmbeddingsRequest) -> list[str]:
    """
    What is to be embedded.

    Raises:
        InvalidParameter: If it is tokens, or holds a text without a word.
    """
    given = [body.input] if isinstance(body.input, str) else body.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise InvalidParameter(
            "Send text, not tokens: they would be those of another tokenizer. (LangChain: "
            "check_embedding_ctx_length=False.)",
            param="input",
        )
    if not all(text.strip() for text in texts):
        raise InvalidParameter("A text to embed is empty. Leave it out.", param="input")
    return texts


def _rows(vectors: Embeddings, encoding: str) -> list[Any]:
    if encoding == "base64":
        little = np.ascontiguousarray(vectors, dtype="<f4")
        return [base64.b64encode(row.tobytes()).decode() for row in little]
    return [row.tolist() for row in vectors]
