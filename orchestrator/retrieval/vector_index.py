"""
Exact nearest neighbours by cosine, in memory, with snapshots on disk that survive a crash.

The only module that knows FAISS. A snapshot is two files: the index, and a manifest with its
checksum and the generation of the chunks in it. Whatever is torn, missing or out of date is not
loaded: the caller rebuilds from the document store.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from orchestrator.domain import Embeddings
from orchestrator.retrieval.arrays import Ids, Scores, Vector

# Below this there is nothing worth giving back.
_MIN_SHRINK = 1024


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
    The vectors of one collection, searched exactly (FAISS `IndexFlatIP` under `IndexIDMap2`).

    Safe from any thread: searches run side by side, a change waits for them and holds new ones
    back.

    Attributes:
        dimension: Length of a vector.
    """

    def __init__(self, *, dimension: int) -> None:
        self.dimension = dimension
        self._lock = _ReadWriteLock()
        # Any: FAISS's own stubs describe the C++ signatures, not those that Python callers have.
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._peak = 0

    def __len__(self) -> int:
        return int(self._index.ntotal)

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
            new = ~np.isin(ids, self._ids())
            if new.any():
                self._index.add_with_ids(np.ascontiguousarray(embeddings[new]), ids[new])
            self._peak = max(self._peak, len(self))

    def remove(self, ids: Ids) -> None:
        """Take vectors out; ids that are not there are passed over."""
        with self._lock.writing():
            self._index.remove_ids(np.ascontiguousarray(ids, dtype=np.int64))
            # FAISS keeps the room of what was removed; a copy takes only what it needs.
            if self._peak >= _MIN_SHRINK and 2 * len(self) <= self._peak:
                self._index = faiss.clone_index(self._index)
                self._peak = len(self)

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
        parameters = None if allowed is None else _only(allowed)
        with self._lock.reading():
            k = min(k, len(self))
            if k < 1 or (allowed is not None and not allowed.size):
                return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
            # Per thread, not per process: OpenMP keeps this setting for each caller. One question
            # gains nothing from more threads, and they would be taken from the embedder.
            faiss.omp_set_num_threads(1)
            rows = np.ascontiguousarray(query, dtype=np.float32)[None, :]
            scores, ids = self._index.search(rows, k, params=parameters)
        found = ids[0] >= 0
        return ids[0][found], scores[0][found]

    def save(self, path: Path, *, generation: int) -> None:
        """
        Write a snapshot, so that either the old or the new one is whole whenever power fails.

        Args:
            path: The index file; the manifest stands beside it.
            generation: Which state of the collection this is.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with self._lock.reading():
            faiss.write_index(self._index, str(temporary))
            count = len(self)
        manifest = {
            "sha256": _sha256(temporary),
            "generation": generation,
            "dimension": self.dimension,
            "count": count,
        }
        _replace(temporary, path)
        manifest_temporary = _manifest(path).with_suffix(".tmp")
        manifest_temporary.write_text(json.dumps(manifest), encoding="utf-8")
        _replace(manifest_temporary, _manifest(path))

    @classmethod
    def load(cls, path: Path, *, dimension: int, generation: int) -> "VectorIndex | None":
        """The snapshot, or None if it is missing, torn, damaged or of another generation."""
        try:
            manifest = json.loads(_manifest(path).read_text(encoding="utf-8"))
            expected = {
                "sha256": _sha256(path),
                "generation": generation,
                "dimension": dimension,
            }
        except (OSError, ValueError):
            return None
        if not isinstance(manifest, dict) or expected.items() - manifest.items():
            return None
        loaded = cls(dimension=dimension)
        try:
            loaded._index = faiss.read_index(str(path))
        except RuntimeError:
            return None
        loaded._peak = len(loaded)
        return loaded

    @staticmethod
    def forget(path: Path) -> None:
        """Remove a snapshot, if there is one."""
        _manifest(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _ids(self) -> Ids:
        ids: Ids = faiss.vector_to_array(self._index.id_map)
        return ids


def _only(ids: Ids) -> Any:
    """Search parameters that admit these ids alone."""
    marks = np.zeros(int(ids.max(initial=0)) + 1, dtype=bool)
    marks[ids] = True
    bits: Any = np.packbits(marks, bitorder="little")
    selector: Any = faiss.IDSelectorBitmap
    parameters: Any = faiss.SearchParameters
    return parameters(sel=selector(bits))


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(temporary: Path, path: Path) -> None:
    """Put a file in the place of another, for good: contents and name are on disk afterwards."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
