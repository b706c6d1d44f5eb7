"""
Nearest neighbours by cosine, in memory, with snapshots on disk that survive a crash.

Exact as long as that is fast; beyond it vectors stand in lists around centroids (FAISS
`IndexIVFFlat`), and a search looks into the nearest few: as many as it takes to find `RECALL` of what
an exact search finds, measured on the very vectors.

With a GPU, a copy of an exact index's vectors answers there. A snapshot on disk is used if it is of
the generation that the document store is at; otherwise the caller rebuilds.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from orchestrator.domain import Embeddings
from orchestrator.retrieval import index_snapshots
from orchestrator.retrieval.arrays import Ids, Scores, Vector
from orchestrator.retrieval.gpu_search import GpuCopy, GpuSearch

RECALL = 0.97
"""Share of the ten exact neighbours that a search in lists has to find when its width is chosen."""

# Below this there is nothing worth giving back.
_MIN_SHRINK = 1024
_TRAINING_PER_LIST = 40
"""Vectors for each centroid: FAISS warns below 39."""
_TUNING_QUERIES = 256
_TUNING_NEIGHBOURS = 10
_GROWTH = 4
"""So many times more, or fewer, vectors than its lists were made for: then they are made anew."""


def lists_for(count: int) -> int:
    """How many lists so many vectors are put into: twice their square root, a few hundred in each."""
    return max(1, round(2 * math.sqrt(count)))


def training_size(count: int) -> int:
    """How many of so many vectors the centroids are learnt from."""
    return min(count, _TRAINING_PER_LIST * lists_for(count))


class _ReadWriteLock:
    """Many readers or one writer; a writer that waits holds new readers back."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._writers_waiting = 0
        self._writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not (self._writing or self._writers_waiting))
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._condition:
            self._writers_waiting += 1
            self._condition.wait_for(lambda: not (self._writing or self._readers))
            self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()


class VectorIndex:
    """
    The vectors of one collection, searched exactly (FAISS `IndexFlatIP` under `IndexIDMap2`) or in lists.

    Safe from any thread: searches run side by side, a change waits for them and holds new ones
    back.

    Args:
        dimension: Length of a vector.
        sample: (m, d) float32; given, vectors stand in lists whose centroids are learnt from these.
        expected: How many vectors there will be; with `sample` only.
        gpu: Where an exact index is searched if it fits there and no ids are selected.
    """

    def __init__(
        self,
        *,
        dimension: int,
        sample: Embeddings | None = None,
        expected: int = 0,
        gpu: GpuSearch | None = None,
    ) -> None:
        self.dimension = dimension
        self._gpu = gpu
        self._copy: GpuCopy | None = None
        self._copying = threading.Lock()
        self._lock = _ReadWriteLock()
        # Any: FAISS's own stubs describe the C++ signatures, not those that Python callers have.
        self._index: Any
        if sample is None:
            self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        else:
            faiss.omp_set_num_threads(1)
            self._index = faiss.IndexIVFFlat(
                faiss.IndexFlatIP(dimension),
                dimension,
                lists_for(expected),
                faiss.METRIC_INNER_PRODUCT,
            )
            self._index.train(np.ascontiguousarray(sample))
        self._peak = 0
        self._largest = -1

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def exact(self) -> bool:
        """Whether every search compares every vector."""
        return isinstance(self._index, faiss.IndexIDMap2)

    def fits(self, *, exact_up_to: int) -> bool:
        """Whether it is still of the right kind, and its lists of the right number."""
        if self.exact:
            return len(self) <= 2 * exact_up_to
        made_for = (self._index.nlist / 2) ** 2
        return len(self) > exact_up_to / 2 and made_for / _GROWTH < len(self) < made_for * _GROWTH

    def tune(self, sample: Embeddings) -> None:
        """
        Choose how many lists a search looks into; call it when all vectors are in.

        Args:
            sample: (m, d) float32 unit rows. What is searched for is each of them and as much noise:
                a question is no passage, and lies between the lists more often than passages do.
        """
        if self.exact:
            return
        noise = np.random.default_rng(0).standard_normal(sample[:_TUNING_QUERIES].shape)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        queries = (sample[:_TUNING_QUERIES] + noise).astype(np.float32)
        faiss.omp_set_num_threads(1)
        with self._lock.reading():
            lists = int(self._index.nlist)
            _, wanted = self._index.search(queries, _TUNING_NEIGHBOURS, params=_within(lists))
            width = 1
            while width < lists:
                _, found = self._index.search(queries, _TUNING_NEIGHBOURS, params=_within(width))
                hits = [np.isin(w, f).sum() for w, f in zip(wanted, found, strict=True)]
                if sum(hits) >= RECALL * wanted.size:
                    break
                width = min(lists, math.ceil(width * 1.5))
            self._index.nprobe = width

    def ids(self) -> Ids:
        """The ids in the index, in no order."""
        with self._lock.reading():
            return self._ids()

    def add(self, ids: Ids, embeddings: Embeddings) -> None:
        """
        Put vectors in; an id that is there already keeps the vector it has.

        Args:
            ids: (n,) int64.
            embeddings: (n, d) float32 unit rows.
        """
        with self._lock.writing():
            self._add(ids, embeddings)

    def remove(self, ids: Ids) -> None:
        """Take vectors out; ids that are not there are passed over."""
        with self._lock.writing():
            self._remove(ids)

    def swap(self, *, removed: Ids, added: Ids, embeddings: Embeddings) -> None:
        """`remove` and `add` between two searches: no search sees one without the other."""
        with self._lock.writing():
            if added.size:
                self._add(added, embeddings)
            if removed.size:
                self._remove(removed)

    def search(self, query: Vector, k: int, *, allowed: Ids | None = None) -> tuple[Ids, Scores]:
        """
        The k nearest chunks, best first; fewer if the index, or what is allowed, has fewer.

        Args:
            query: (d,) float32 of unit length.
            k: At least 1.
            allowed: Ids to search among; None means all.

        Returns:
            ids (m,) int64 and scores (m,) float32, cosine in [-1, 1], with m <= k.
        """
        with self._lock.reading():
            k = min(k, len(self))
            if k < 1 or (allowed is not None and not allowed.size):
                return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
            if allowed is None and (copied := self._copied()) is not None:
                found_there = copied.search(query, k)
                if found_there is not None:
                    return found_there
            # Per thread, not per process: OpenMP keeps this setting for each caller. One question
            # gains nothing from more threads, and they would be taken from the embedder.
            faiss.omp_set_num_threads(1)
            rows = np.ascontiguousarray(query, dtype=np.float32)[None, :]
            parameters = None if allowed is None else self._only(allowed)
            scores, ids = self._index.search(rows, k, params=parameters)
        found = ids[0] >= 0
        return ids[0][found], scores[0][found]

    def save(self, base: Path, *, generation: int) -> None:
        """
        Write a snapshot, so that either the old or the new one is whole whenever power fails.

        Args:
            base: The manifest is `<base>.json`; it names the index file, `<base>.<generation>.faiss`.
            generation: Which state of the collection this is.

        Raises:
            OSError: If the disk does not take it; the snapshot before it stays.
        """

        def write(path: Path) -> None:
            try:
                with self._lock.reading():
                    faiss.write_index(self._index, str(path))
            except RuntimeError as exc:  # how FAISS tells of a full disk
                raise OSError(f"the snapshot {path.name} could not be written") from exc

        facts = {"dimension": self.dimension, "count": len(self)}
        index_snapshots.write(base, generation=generation, facts=facts, write_data=write)

    @classmethod
    def load(
        cls, base: Path, *, dimension: int, generation: int, gpu: GpuSearch | None = None
    ) -> "VectorIndex | None":
        """The snapshot, or None if it is missing, torn, damaged or of another generation."""
        facts = {"dimension": dimension}
        data = index_snapshots.find(base, generation=generation, facts=facts)
        if data is None:
            return None
        try:
            index = faiss.read_index(str(data))
        except (OSError, RuntimeError):
            return None
        loaded = cls(dimension=dimension, gpu=gpu)
        loaded._index = index
        loaded._peak = len(loaded)
        loaded._largest = int(loaded._ids().max(initial=-1))
        return loaded

    def _add(self, ids: Ids, embeddings: Embeddings) -> None:
        # Ids grow: nearly always all of them are new, and nobody has to look.
        if ids.size and ids.min() > self._largest:
            new = np.ones(len(ids), dtype=bool)
        else:
            new = ~np.isin(ids, self._ids())
        if new.any():
            self._index.add_with_ids(np.ascontiguousarray(embeddings[new]), ids[new])
            if self._copy is not None and not self._copy.add(ids[new], embeddings[new]):
                self._copy = None
            self._largest = max(self._largest, int(ids.max()))
        self._peak = max(self._peak, len(self))

    def _remove(self, ids: Ids) -> None:
        self._index.remove_ids(np.ascontiguousarray(ids, dtype=np.int64))
        if self._copy is not None and not self._copy.remove(ids):
            self._copy = None
        # FAISS keeps the room of what was removed; a copy takes only what it needs.
        if self._peak >= _MIN_SHRINK and 2 * len(self) <= self._peak:
            self._index = faiss.clone_index(self._index)
            self._peak = len(self)

    def _copied(self) -> GpuCopy | None:
        """The copy on the GPU; made by the first search that could use it. Under the lock."""
        if self._gpu is None or self._copy is not None or not self.exact:
            return self._copy
        with self._copying:
            if self._copy is None:
                self._copy = self._gpu.copy(len(self), self.dimension, self._vectors)
            return self._copy

    def _vectors(self) -> tuple[Ids, Embeddings]:
        """All ids and vectors of an exact index."""
        flat: Any = faiss.downcast_index(self._index.index)
        rows = faiss.vector_to_array(flat.codes).view(np.float32)
        return self._ids(), rows.reshape(-1, self.dimension)

    def _ids(self) -> Ids:
        if self.exact:
            ids: Ids = faiss.vector_to_array(self._index.id_map)
            return ids
        lists = self._index.invlists
        found = [
            faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number)).copy()
            for number in range(self._index.nlist)
            if lists.list_size(number)
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _only(self, ids: Ids) -> Any:
        """Search parameters that admit these ids alone."""
        marks = np.zeros(int(ids.max(initial=0)) + 1, dtype=bool)
        marks[ids] = True
        bits: Any = np.packbits(marks, bitorder="little")
        bitmap: Any = faiss.IDSelectorBitmap
        selector = bitmap(bits)
        if self.exact:
            plain: Any = faiss.SearchParameters
            return plain(sel=selector)
        # Few may stand in any list: then all lists are looked through, which costs a look at each id.
        few = 2 * len(ids) < len(self)
        return _within(self._index.nlist if few else self._index.nprobe, sel=selector)


def _within(lists: int, **options: Any) -> Any:
    """Search parameters for the nearest so many lists."""
    parameters: Any = faiss.SearchParametersIVF
    return parameters(nprobe=lists, **options)
