"""
An embedder behind HTTP: any server with `/v1/embeddings` (vLLM's pooling models, TEI, OpenAI).

The same face as `embedder.py`: questions before documents, unit vectors out, errors of the tree. The
model's tokenizer and sizes are still read from a local folder; the vectors come over the wire.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np

from orchestrator.domain import Embeddings
from orchestrator.errors import EmbedderUnavailable, QueueFull
from orchestrator.retrieval.arrays import Vector

PASSAGE_REQUESTS = 2
"""With the server at once: one is computed while the next is on its way."""
_CONNECT_S = 2.0


class RemoteEmbedder:
    """
    Texts in, unit vectors out, computed by a server.

    Args:
        base_url: With or without a trailing /v1.
        model: What the server calls the model.
        dimension: Length of its vectors; others are refused.
        api_key: Sent as a bearer token.
        max_batch: Texts of one request.
        max_queued: Questions that may wait.
        request_timeout_s: Longest time that a request may take, in seconds.
    """

    dtype = "remote"
    restarts = 0
    starting = False

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        dimension: int,
        api_key: str | None = None,
        max_batch: int = 16,
        max_queued: int = 256,
        request_timeout_s: float = 60.0,
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.dimension = dimension
        self._model = model
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._http = httpx2.AsyncClient(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(request_timeout_s, connect=_CONNECT_S),
            trust_env=False,  # a neighbour: a proxy from the environment is a mistake
        )
        self._questions = 0
        self._no_questions = asyncio.Event()
        self._no_questions.set()
        self._passages = asyncio.Semaphore(PASSAGE_REQUESTS)
        self._well = True

    @property
    def alive(self) -> bool:
        """Whether the last request was answered; a server that was never asked is believed."""
        return self._well

    def start_soon(self) -> None:
        """Nothing has to be started; a server that is not there yet is found by the next request."""

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def embed_query(self, text: str, *, timeout_s: float | None = None) -> Vector:
        """
        The question's vector: (d,) float32 of unit length.

        Raises:
            QueueFull: If too many questions wait already.
            EmbedderUnavailable: If the server does not answer as it should.
            TimeoutError: If it takes longer than that.
        """
        if self._questions >= self._max_queued:
            raise QueueFull(
                f"{self._questions} questions wait for the embedder, and {self._max_queued} may. "
                "Try again in a moment.",
                retry_after_s=1.0,
            )
        self._questions += 1
        self._no_questions.clear()
        try:
            async with asyncio.timeout(timeout_s):
                rows = await self._embed([text])
        finally:
            self._questions -= 1
            if not self._questions:
                self._no_questions.set()
        query: Vector = rows[0]
        return query

    async def embed_passages(self, texts: Sequence[str]) -> Embeddings:
        """
        One row per text, in the order of the texts: (n, d) float32 of unit length.

        Raises:
            EmbedderUnavailable: If the server does not answer as it should.
        """
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)

        async def embed(batch: list[int]) -> None:
            async with self._passages:
                await self._no_questions.wait()
                vectors[batch] = await self._embed([texts[index] for index in batch])

        starts = range(0, len(order), self._max_batch)
        try:
            async with asyncio.TaskGroup() as group:
                for start in starts:
                    group.create_task(embed(order[start : start + self._max_batch]))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return vectors

    async def _embed(self, texts: Sequence[str]) -> Embeddings:
        body = {
            "model": self._model,
            "input": [text.encode("utf-8", "replace").decode() for text in texts],
            "encoding_format": "float",
        }
        self._well = False
        try:
            response = await self._http.post("/v1/embeddings", json=body)
        except httpx2.HTTPError as exc:
            raise EmbedderUnavailable(
                f"The embedder at {self.base_url} cannot be reached ({type(exc).__name__}).",
                retry_after_s=2.0,
            ) from exc
        if not response.is_success:
            raise EmbedderUnavailable(
                f"The embedder at {self.base_url} answered {response.status_code} to /v1/embeddings.",
                retry_after_s=2.0,
            )
        vectors = self._unit_rows(response, len(texts))
        self._well = True
        return vectors

    def _unit_rows(self, response: httpx2.Response, count: int) -> Embeddings:
        try:
            data: list[dict[str, Any]] = response.json()["data"]
            ordered = sorted(data, key=lambda row: int(row["index"]))
            rows = np.array([row["embedding"] for row in ordered], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as exc:
            raise EmbedderUnavailable(
                f"What the embedder at {self.base_url} answers is not the OpenAI shape."
            ) from exc
        if rows.shape != (count, self.dimension):
            raise EmbedderUnavailable(
                f"The embedder at {self.base_url} gives vectors of the shape {rows.shape} for {count} "
                f"texts; ORCHESTRATOR_EMBEDDING_MODEL has {self.dimension} numbers each. Name the "
                "folder of the model that the server runs."
            )
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise EmbedderUnavailable(
                f"The embedder at {self.base_url} gives vectors that are zero or no numbers."
            )
        unit: Embeddings = rows / lengths
        return unit
