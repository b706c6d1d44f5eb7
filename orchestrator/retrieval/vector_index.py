"""
Nearest neighbours by cosine, in memory, with snapshots on disk that survive a crash.

Exact as long as that is fast; beyond it vectors stand in lists around centroids (FAISS
`IndexIVFFlat`), and a search looks into the nearest few: as many as it takes to find `RECALL` of what
an exact search finds, measured on the very vectors.

The only module that knows FAISS. A snapshot is two files: the index, and a manifest with its
checksum and the generation of the chunks in it, which is in the index file's name, too: until the
manifest names the new one, the old one is whole. Whatever is torn, missing or out of date is not
loaded: the caller rebuilds from the document store.
"""

import hashlib
import json
import math
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
    """

    def __init__(
        self, *, dimension: int, sample: Embeddings | None = None, expected: int = 0
    ) -> None:
        self.dimension = dimension
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
        base.parent.mkdir(parents=True, exist_ok=True)
        data = _data(base, generation)
        temporary = data.with_suffix(".tmp")
        with self._lock.reading():
            try:
                faiss.write_index(self._index, str(temporary))
            except RuntimeError as exc:  # how FAISS tells of a full disk
                temporary.unlink(missing_ok=True)
                raise OSError(f"the snapshot {temporary.name} could not be written") from exc
            count = len(self)
        manifest = {
            "sha256": _sha256(temporary),
            "generation": generation,
            "dimension": self.dimension,
            "count": count,
        }
        _replace(temporary, data)
        manifest_temporary = _manifest(base).with_suffix(".json.tmp")
        manifest_temporary.write_text(json.dumps(manifest), encoding="utf-8")
        _replace(manifest_temporary, _manifest(base))
        _remove_others(base, keep={data, _manifest(base)})

    @classmethod
    def load(cls, base: Path, *, dimension: int, generation: int) -> "VectorIndex | None":
        """The snapshot, or None if it is missing, torn, damaged or of another generation."""
        manifest = _read_manifest(base)
        wanted = {"generation": generation, "dimension": dimension}
        if manifest is None or wanted.items() - manifest.items():
            return None
        data = _data(base, generation)
        try:
            if manifest.get("sha256") != _sha256(data):
                return None
            index = faiss.read_index(str(data))
        except (OSError, RuntimeError):
            return None
        loaded = cls(dimension=dimension)
        loaded._index = index
        loaded._peak = len(loaded)
        loaded._largest = int(loaded._ids().max(initial=-1))
        return loaded

    @staticmethod
    def torn(folder: Path) -> list[Path]:
        """The snapshots in a folder, by their base, whose manifest and index file do not agree."""
        found = []
        for path in sorted(folder.glob("*.json")):
            base = path.with_suffix("")
            manifest = _read_manifest(base) or {}
            try:
                whole = manifest.get("sha256") == _sha256(_data(base, manifest.get("generation")))
            except OSError:
                whole = False
            if not whole:
                found.append(base)
        return found

    @staticmethod
    def forget(base: Path) -> None:
        """Remove a snapshot, if there is one."""
        _manifest(base).unlink(missing_ok=True)
        _remove_others(base, keep=set())

    def _add(self, ids: Ids, embeddings: Embeddings) -> None:
        # Ids grow: nearly always all of them are new, and nobody has to look.
        if ids.size and ids.min() > self._largest:
            new = np.ones(len(ids), dtype=bool)
        else:
            new = ~np.isin(ids, self._ids())
        if new.any():
            self._index.add_with_ids(np.ascontiguousarray(embeddings[new]), ids[new])
            self._largest = max(self._largest, int(ids.max()))
        self._peak = max(self._peak, len(self))

    def _remove(self, ids: Ids) -> None:
        self._index.remove_ids(np.ascontiguousarray(ids, dtype=np.int64))
        # FAISS keeps the room of what was removed; a copy takes only what it needs.
        if self._peak >= _MIN_SHRINK and 2 * len(self) <= self._peak:
            self._index = faiss.clone_index(self._index)
            self._peak = len(self)

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


def _manifest(base: Path) -> Path:
    return base.with_name(f"{base.name}.json")


def _data(base: Path, generation: object) -> Path:
    return base.with_name(f"{base.name}.{generation}.faiss")


def _read_manifest(base: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads(_manifest(base).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _remove_others(base: Path, *, keep: set[Path]) -> None:
    """Remove what earlier snapshots of the same index, whole or half written, have left."""
    for path in base.parent.glob(f"{base.name}.*"):
        if path not in keep:
            path.unlink(missing_ok=True)


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
