"""What the tests of this room share: a store on disk, and documents to put in it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.domain import (
    Change,
    Chunk,
    ChunkId,
    Document,
    DocumentId,
    DocumentStatus,
    Page,
    StoredChunk,
)
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.job_store import JobStore

DIMENSION = 8


def unit_vector(seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    vector = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    return vector / np.linalg.norm(vector)


def stored_chunk(ordinal: int, text: str, *, page: int = 1, heading: str = "") -> StoredChunk:
    chunk = Chunk(
        ordinal=ordinal,
        text=text,
        page=page,
        page_end=page,
        char_start=0,
        char_end=len(text),
        heading=heading,
        num_tokens=len(text.split()),
    )
    seed = sum(text.encode("utf-8", "replace"))
    return StoredChunk(chunk, embedding=unit_vector(seed), prompt_tokens=len(text))


class Library:
    """A store, and a short way to fill it."""

    def __init__(self, store: DocumentStore) -> None:
        self.store = store

    def queue(
        self,
        name: str,
        *,
        collection: str = "default",
        filename: str = "",
        replaces: DocumentId | None = None,
    ) -> DocumentId:
        document = Document(
            id=DocumentId(name),
            collection=collection,
            filename=filename or f"{name}.pdf",
            sha256=f"sha of {name}",
            size_bytes=100,
            status=DocumentStatus.QUEUED,
            created_at=0.0,
            replaces=replaces,
        )
        return self.store.add(document)[0].id

    def publish(
        self, name: str, *texts: str, collection: str = "default", filename: str = ""
    ) -> list[ChunkId]:
        return list(self.change(name, *texts, collection=collection, filename=filename).added)

    def change(
        self,
        name: str,
        *texts: str,
        collection: str = "default",
        filename: str = "",
        replaces: DocumentId | None = None,
    ) -> Change:
        document_id = self.queue(name, collection=collection, filename=filename, replaces=replaces)
        return self.store.publish(
            document_id,
            pages=[Page(number, text) for number, text in enumerate(texts, start=1)],
            chunks=[
                stored_chunk(number, text, page=number + 1) for number, text in enumerate(texts)
            ],
            warning=None,
        )


@pytest.fixture
def jobs(store: DocumentStore) -> JobStore:
    return JobStore(store.database, clock=lambda: 1000.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DocumentStore]:
    store = DocumentStore(path=tmp_path / "data" / "documents.sqlite", clock=lambda: 1000.0)
    store.open()
    yield store
    store.close()


@pytest.fixture
def library(store: DocumentStore) -> Library:
    return Library(store)


@pytest.fixture
def chunk() -> Callable[..., StoredChunk]:
    return stored_chunk


@pytest.fixture
def vector() -> Callable[[int], np.ndarray[tuple[int], np.dtype[np.float32]]]:
    return unit_vector
