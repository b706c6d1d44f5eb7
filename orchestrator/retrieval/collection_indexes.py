"""
One vector index a collection: loaded when first searched, kept in step, saved in between.

Nothing here is the truth. An index that is lost, late or wrong is put right from the document
store; what it finds is looked up there before anybody sees it.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orchestrator.domain import Embeddings
from orchestrator.errors import StoreUnavailable
from orchestrator.retrieval.arrays import Ids, Scores, Vector
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.vector_index import VectorIndex


@dataclass(slots=True)
class _Slot:
    """
    A collection's place.

    Attributes:
        lock: Held while the index is loaded, changed or saved, never while it is searched.
        index: None until somebody searches, and again once the collection is empty.
        saved_generation: Generation of the snapshot on disk; -1 when unknown.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    index: VectorIndex | None = None
    saved_generation: int = -1


class CollectionIndexes:
    """
    The vector indexes of all collections. All methods block and may be called from any thread.

    Call `add` after a publish and `remove` after a deletion; each does nothing while the index is
    not in memory, because loading it reads the store anyway.

    Args:
        folder: Where the snapshots are.
        store: What an index is rebuilt from.
        dimension: Length of a vector.
    """

    def __init__(self, *, folder: Path, store: DocumentStore, dimension: int) -> None:
        self._folder = folder
        self._store = store
        self._dimension = dimension
        self._slots: dict[str, _Slot] = {}
        self._slots_lock = threading.Lock()

    def search(
        self, collection: str, query: Vector, k: int, *, allowed: Ids | None = None
    ) -> tuple[Ids, Scores]:
        """
        The k nearest chunks of the collection, best first; see `VectorIndex.search`.

        Raises:
            StoreUnavailable: If the index had to be rebuilt and could not be.
        """
        slot = self._slot(collection)
        index = slot.index
        if index is None:
            with slot.lock:
                index = self._loaded(collection, slot)
        return index.search(query, k, allowed=allowed)

    def add(self, collection: str, ids: Ids, embeddings: Embeddings) -> None:
        """Make just published chunks findable, unless they were deleted meanwhile."""
        slot = self._slot(collection)
        with slot.lock:
            if slot.index is None:
                return
            slot.index.add(ids, embeddings)
            # A deletion that overtook this call has called `remove` already, in vain.
            gone = np.setdiff1d(ids, self._store.existing(ids))
            if gone.size:
                slot.index.remove(gone)

    def remove(self, collection: str, ids: Ids) -> None:
        """Forget deleted chunks; memory and snapshot of an emptied collection are given back."""
        slot = self._slot(collection)
        with slot.lock:
            if slot.index is not None:
                slot.index.remove(ids)
                if len(slot.index):
                    return
                slot.index = None
            if not self._store.chunk_ids(collection=collection).size:
                VectorIndex.forget(self._path(collection))
                slot.saved_generation = -1

    def save(self) -> int:
        """
        Write a snapshot of each index that has changed since its last one.

        Returns:
            How many were written.
        """
        with self._slots_lock:
            slots = list(self._slots.items())
        return sum(self._save(collection, slot) for collection, slot in slots)

    def sizes(self) -> dict[str, int]:
        """Vectors in memory, by collection."""
        with self._slots_lock:
            slots = list(self._slots.items())
        return {name: len(slot.index) for name, slot in slots if slot.index is not None}

    def _slot(self, collection: str) -> _Slot:
        with self._slots_lock:
            return self._slots.setdefault(collection, _Slot())

    def _path(self, collection: str) -> Path:
        # A collection's name may hold anything that a file name may not.
        return self._folder / f"{hashlib.sha256(collection.encode()).hexdigest()[:32]}.faiss"

    def _loaded(self, collection: str, slot: _Slot) -> VectorIndex:
        if slot.index is not None:
            return slot.index
        generation = self._store.generation(collection)
        index = VectorIndex.load(
            self._path(collection), dimension=self._dimension, generation=generation
        )
        if index is None:
            index = VectorIndex(dimension=self._dimension)
            ids, embeddings = self._store.embeddings(collection)
            if ids.size:
                self._check(embeddings)
                index.add(ids, embeddings)
        else:
            slot.saved_generation = generation
        if len(index):
            slot.index = index
        return index

    def _check(self, embeddings: Embeddings) -> None:
        if embeddings.shape[1] != self._dimension:
            raise StoreUnavailable(
                f"The stored vectors have {embeddings.shape[1]} numbers each, this embedding model "
                f"gives {self._dimension}. Start with the model that the documents were added with, "
                "or add them again to another data folder."
            )

    def _save(self, collection: str, slot: _Slot) -> bool:
        with slot.lock:
            index = slot.index
            if index is None:
                return False
            generation = self._store.generation(collection)
            if generation == slot.saved_generation:
                return False
            stored = self._store.chunk_ids(collection=collection)
            if generation != self._store.generation(collection):
                return False  # it changes right now; the next round will find it at rest
            if not np.array_equal(np.sort(index.ids()), stored):
                slot.index = None  # out of step, whatever the reason: the next search rebuilds it
                return False
            index.save(self._path(collection), generation=generation)
            slot.saved_generation = generation
            return True
