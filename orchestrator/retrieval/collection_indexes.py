"""
One vector index a collection: loaded, kept in step, saved, and let go when cold.

Nothing here is the truth. An index that is lost, late or wrong is put right from the document
store; what it finds is looked up there before anybody sees it.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.domain import Change, Embeddings
from orchestrator.errors import IndexNotReady, StoreUnavailable
from orchestrator.retrieval import index_snapshots
from orchestrator.retrieval.arrays import Ids, Scores, Vector
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.gpu_search import GpuSearch
from orchestrator.retrieval.vector_index import VectorIndex, training_size

_LOADED_SOON = 64
"""The most collections whose indexes are loaded before anybody asks."""

READ_BATCH = 10_000
"""Vectors read from the store at once: 15 MB of 384 numbers each."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    """
    A collection's place.

    Attributes:
        lock: Held while the collection changes, and while its index is put in place or saved;
            never while it is searched.
        index: None until somebody searches, while it is cold, and once the collection is empty.
        building: The index that is being loaded or rebuilt.
        progress: Vectors of that one that are there, and all of them.
        saved_generation: Generation of the snapshot on disk; -1 when unknown.
        changed_s: When it last changed.
        used_s: When it was last searched.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    index: VectorIndex | None = None
    building: "Future[VectorIndex] | None" = None
    progress: tuple[int, int] = (0, 0)
    saved_generation: int = -1
    changed_s: float = 0.0
    used_s: float = 0.0


class CollectionIndexes:
    """
    The vector indexes of all collections. All methods block and may be called from any thread.

    Args:
        folder: Where the snapshots are.
        store: What an index is rebuilt from.
        dimension: Length of a vector.
        wait_s: Longest that a search waits for an index that is not in memory, in seconds.
        idle_s: Seconds without a search after which an index is let go.
        exact_up_to: Vectors beyond which an index is not exact any more.
        gpu: Where exact indexes are searched, as far as they fit there.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        folder: Path,
        store: DocumentStore,
        dimension: int,
        wait_s: float = 0.5,
        idle_s: float = 3600.0,
        exact_up_to: int = 100_000,
        gpu: GpuSearch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._store = store
        self._dimension = dimension
        self._wait_s = wait_s
        self._idle_s = idle_s
        self.exact_up_to = exact_up_to
        self._gpu = gpu
        self._clock = clock
        self._slots: dict[str, _Slot] = {}
        self._slots_lock = threading.Lock()
        # One at a time: an index that is being built takes a processor, and the store's disk.
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._closed = False

    def close(self) -> None:
        """Build no more; a build that is going on ends at its next batch."""
        self._closed = True
        self._builder.shutdown(wait=False, cancel_futures=True)

    def load_soon(self) -> list[str]:
        """
        Begin to load indexes, so that the first questions after a start find them in memory.

        Those of the collections with the most documents, as many vectors in all as an exact index may
        have; others are loaded when they are searched.

        Returns:
            The collections.
        """
        documents = self._store.collections()
        room, loading = self.exact_up_to, []
        for collection in sorted(documents, key=lambda name: -documents[name])[:_LOADED_SOON]:
            vectors = self._store.count_chunks(collection)
            if not 0 < vectors <= room:
                continue
            room -= vectors
            loading.append(collection)
            slot = self._slot(collection)
            slot.used_s = self._clock()
            with self._slots_lock:
                self._begin(collection, slot)
        return loading

    def search(
        self, collection: str, query: Vector, k: int, *, allowed: Ids | None = None
    ) -> tuple[Ids, Scores]:
        """
        The k nearest chunks of the collection, best first; see `VectorIndex.search`.

        Raises:
            IndexNotReady: If the index is still being loaded or rebuilt.
            StoreUnavailable: If it had to be rebuilt and could not be.
        """
        slot = self._slot(collection)
        slot.used_s = self._clock()
        index = slot.index
        if index is None:
            index = self._built(collection, slot)
        return index.search(query, k, allowed=allowed)

    def change(
        self,
        collection: str,
        write: Callable[[], Change | None],
        *,
        embeddings: Embeddings | None = None,
    ) -> Change | None:
        """
        Change the collection's chunks in the store, and in its index.

        Whoever searches in between finds chunks that are gone, or too few: `settle`, and search
        again.

        Args:
            collection: Which one.
            write: The transaction; None from it means that nothing changed.
            embeddings: One row for each chunk that it adds.

        Returns:
            What `write` returned; what it raises is raised.
        """
        slot = self._slot(collection)
        with slot.lock:
            change = write()
            if change is not None:
                slot.changed_s = self._clock()
                self._follow(collection, slot, change, embeddings)
        return change

    def settle(self, collection: str) -> None:
        """Return when no change is half way between the store and the index."""
        with self._slot(collection).lock:
            return

    def save(self, *, quiet_s: float = 0.0) -> int:
        """
        Write a snapshot of each index that has changed since its last one.

        Args:
            quiet_s: Pass over those that have changed within so many seconds.

        Returns:
            How many were written.

        Raises:
            OSError: If the disk does not take it; the snapshot before it stays.
        """
        return sum(
            self._save(collection, slot)
            for collection, slot in self._all_slots()
            if self._clock() - slot.changed_s >= quiet_s
        )

    def unload_idle(self) -> int:
        """
        Let go of indexes that nobody has searched for long; the next search loads its own again.

        Returns:
            How many there were.
        """
        unloaded = 0
        for collection, slot in self._all_slots():
            if slot.index is None or self._clock() - slot.used_s < self._idle_s:
                continue
            self._save(collection, slot)
            with slot.lock:
                if self._clock() - slot.used_s >= self._idle_s:
                    slot.index = None
                    unloaded += 1
        return unloaded

    def renew_outgrown(self) -> int:
        """
        Begin to build anew what has grown, or shrunk, out of its kind; it is searched meanwhile.

        Returns:
            How many there were.
        """
        outgrown = 0
        for collection, slot in self._all_slots():
            index = slot.index
            if index is None or index.fits(exact_up_to=self.exact_up_to):
                continue
            with self._slots_lock:
                if slot.building is None and not self._closed:
                    self._begin(collection, slot, anew=True)
                    outgrown += 1
        return outgrown

    def sizes(self) -> dict[str, int]:
        """Vectors in memory, by collection."""
        return {
            name: len(index)
            for name, slot in self._all_slots()
            if (index := slot.index) is not None
        }

    def on_gpu(self) -> dict[str, Any] | None:
        """What `/status` shows of the GPU that searches; None without one."""
        return None if self._gpu is None else self._gpu.state()

    def building(self) -> dict[str, tuple[int, int]]:
        """Of each index that is being loaded or rebuilt: vectors that are there, and all of them."""
        return {
            name: slot.progress for name, slot in self._all_slots() if slot.building is not None
        }

    def _all_slots(self) -> list[tuple[str, _Slot]]:
        with self._slots_lock:
            return list(self._slots.items())

    def _slot(self, collection: str) -> _Slot:
        with self._slots_lock:
            return self._slots.setdefault(collection, _Slot())

    def _path(self, collection: str) -> Path:
        # A collection's name may hold anything that a file name may not.
        return self._folder / f"{hashlib.sha256(collection.encode()).hexdigest()[:32]}"

    def _built(self, collection: str, slot: _Slot) -> VectorIndex:
        """The index, if it can be had soon; it is built in a thread of its own, and only once."""
        with self._slots_lock:
            if slot.index is not None:
                return slot.index
            if self._closed:
                raise IndexNotReady("The vector indexes are closed: shutting down.")
            building = self._begin(collection, slot)
        try:
            return building.result(self._wait_s)
        except (TimeoutError, CancelledError):
            done, total = slot.progress
            raise IndexNotReady(
                f"The index of {collection!r} is being built: {done:,} of {total:,} vectors are "
                "there. Until then it is searched by words only.",
                retry_after_s=2.0,
            ) from None

    def _begin(self, collection: str, slot: _Slot, *, anew: bool = False) -> "Future[VectorIndex]":
        """Have it loaded or rebuilt, unless that is so already; under the lock of the slots."""
        if slot.building is None:
            slot.progress = (0, 0)
            slot.building = self._builder.submit(self._build, collection, slot, anew=anew)
        return slot.building

    def _build(self, collection: str, slot: _Slot, *, anew: bool = False) -> VectorIndex:
        try:
            generation = self._store.generation(collection)
            index = None if anew else self._loaded(collection, generation)
            loaded = index is not None
            if index is None:
                index = self._read(collection, slot)
            with slot.lock:
                # One of another kind has to be saved, whatever was saved before.
                slot.saved_generation = generation if loaded else -1
                # What has changed since; nothing changes any more now.
                if self._store.generation(collection) != generation:
                    self._read_on(collection, slot, index)
                    gone = np.setdiff1d(index.ids(), self._store.chunk_ids(collection=collection))
                    index.remove(gone)
                slot.index = index if len(index) else None
            return index
        except Exception as exc:
            if not self._closed:
                logger.warning("the index of a collection could not be built: %s", exc)
            raise
        finally:
            with self._slots_lock:
                slot.building = None

    def _loaded(self, collection: str, generation: int) -> VectorIndex | None:
        index = VectorIndex.load(
            self._path(collection),
            dimension=self._dimension,
            generation=generation,
            gpu=self._gpu,
        )
        right = index is not None and index.fits(exact_up_to=self.exact_up_to)
        return index if right else None

    def _read(self, collection: str, slot: _Slot) -> VectorIndex:
        """An index of all vectors in the store, of the kind that their number asks for."""
        ids = self._store.chunk_ids(collection=collection)
        if len(ids) <= self.exact_up_to:
            index = VectorIndex(dimension=self._dimension, gpu=self._gpu)
            self._read_on(collection, slot, index)
            return index
        step = max(1, len(ids) // training_size(len(ids)))
        slot.progress = (0, len(ids))
        sample = self._store.embeddings_of(ids[::step])
        self._check(sample)
        index = VectorIndex(dimension=self._dimension, sample=sample, expected=len(ids))
        self._read_on(collection, slot, index)
        index.tune(np.random.default_rng(0).permutation(sample))
        return index

    def _read_on(self, collection: str, slot: _Slot, index: VectorIndex) -> None:
        """Add what the store has beyond the largest id of the index."""
        last = int(index.ids().max(initial=0))
        total = self._store.count_chunks(collection)
        while not self._closed:
            slot.progress = (len(index), total)
            ids, embeddings = self._store.embeddings(collection, after=last, limit=READ_BATCH)
            if not ids.size:
                return
            self._check(embeddings)
            index.add(ids, embeddings)
            last = int(ids[-1])
        raise IndexNotReady("The vector indexes are closed: shutting down.")

    def _check(self, embeddings: Embeddings) -> None:
        if embeddings.shape[1] != self._dimension:
            raise StoreUnavailable(
                f"The stored vectors have {embeddings.shape[1]} numbers each, this embedding model "
                f"gives {self._dimension}. Start with the model that the documents were added with, "
                "or add them again to another data folder."
            )

    def _follow(
        self, collection: str, slot: _Slot, change: Change, embeddings: Embeddings | None
    ) -> None:
        """Do to the index what was done to the store; under the slot's lock."""
        if slot.index is not None:
            try:
                slot.index.swap(
                    removed=np.array(change.removed, dtype=np.int64),
                    added=np.array(change.added, dtype=np.int64),
                    embeddings=np.empty((0, self._dimension), dtype=np.float32)
                    if embeddings is None
                    else embeddings,
                )
            except Exception:
                # The store has the change already: the index is what has to go.
                logger.exception("the index of a collection could not follow: it is built anew")
                slot.index = None
                return
            if len(slot.index):
                return
            slot.index = None
        if change.removed and not self._store.count_chunks(collection):
            index_snapshots.forget(self._path(collection))
            slot.saved_generation = -1

    def _save(self, collection: str, slot: _Slot) -> bool:
        with slot.lock:
            index = slot.index
            if index is None:
                return False
            generation = self._store.generation(collection)
            if generation == slot.saved_generation:
                return False
            stored = self._store.chunk_ids(collection=collection)
            if not np.array_equal(np.sort(index.ids()), stored):
                slot.index = None  # out of step, whatever the reason: the next search rebuilds it
                return False
            index.save(self._path(collection), generation=generation)
            slot.saved_generation = generation
            return True
