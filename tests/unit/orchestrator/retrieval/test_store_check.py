"""Damage of each kind is found and named; what can be put right is, and the rest is told."""

import hashlib
import threading

import numpy as np
import pytest

from orchestrator.domain import DocumentId
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.store_check import StoreCheck

PDF = b"%PDF-1.7 bytes"


@pytest.fixture
def folder(store, tmp_path):
    data = store.database.path.parent
    (data / "files").mkdir()
    return data


@pytest.fixture
def check(store, folder):
    return StoreCheck(folder=folder, database=store.database, dimension=8)


@pytest.fixture
def healthy(store, library, folder, vector):
    """Two documents with their files, one on its way, and a saved index."""
    library.publish("a", "the gate is green", "it opens at six")
    library.publish("b", "the harbour is closed")
    library.queue("c")
    for name in "abc":
        (folder / "files" / f"{name}.pdf").write_bytes(PDF + name.encode())
        sha256 = hashlib.sha256(PDF + name.encode()).hexdigest()
        execute(store, "UPDATE documents SET sha256 = ? WHERE id = ?", sha256, name)
    indexes = CollectionIndexes(folder=folder / "indexes", store=store, dimension=8, wait_s=10)
    indexes.search("default", vector(0), 5)
    indexes.save()
    indexes.close()
    return store


def execute(store, statement, *values):
    with store.database.write() as db:
        db.execute(statement, values)


def sentences(check):
    return [finding.what for finding in check.findings()]


def test_a_healthy_store_has_no_findings(check, healthy):
    """Nothing is reported of a store that is as it should be, even with work under way."""
    assert sentences(check) == []


DAMAGES = {
    "a chunk is lost": ("DELETE FROM chunks WHERE ordinal = 1", "1 chunks are there of 2"),
    "a vector is cut": (
        "UPDATE chunks SET embedding = x'00000000' WHERE ordinal = 1",
        "1 of its chunks have no vector of 8 numbers",
    ),
    "a vector is zero": (
        "UPDATE chunks SET embedding = zeroblob(32) WHERE ordinal = 1",
        "1 of its chunks have no vector of 8 numbers",
    ),
    "words are lost": (
        "INSERT INTO chunks_fts (chunks_fts) VALUES ('delete-all')",
        "0 entries for 3 chunks",
    ),
    "nobody works on it": ("DELETE FROM jobs", "c.pdf (c): queued, and is worked on by nobody"),
    "it is worked on for ever": (
        "INSERT INTO jobs (document_seq) SELECT seq FROM documents WHERE id = 'a'",
        "a.pdf (a): ready, and is to be worked on",
    ),
    "half of it is found": (
        "UPDATE documents SET status = 'parsing' WHERE id = 'a'",
        "2 chunks of it can be found, and it is parsing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_put_right(check, healthy, damage):
    """It is named, and after the repair nothing is left but work to do."""
    statement, told = DAMAGES[damage]
    execute(healthy, statement)
    assert any(told in what for what in sentences(check)), sentences(check)
    assert check.repair(check.findings()) == []
    assert sentences(check) == []


def test_an_orphan_chunk_is_found_and_removed(check, healthy):
    """A chunk of no document is what a lost transaction would leave."""
    healthy.database._writer.execute("PRAGMA foreign_keys = OFF")
    execute(healthy, "DELETE FROM documents WHERE id = 'b'")
    healthy.database._writer.execute("PRAGMA foreign_keys = ON")
    assert any("a row of chunks belongs to nothing" in what for what in sentences(check))
    check.repair(check.findings())
    assert [what for what in sentences(check) if "b.pdf" not in what] == []


def test_files_are_held_against_what_was_uploaded(check, healthy, folder):
    """Missing or changed: it is told, and nothing is thrown away."""
    (folder / "files" / "a.pdf").write_bytes(b"other bytes")
    (folder / "files" / "b.pdf").unlink()
    (folder / "files" / "stray.pdf").write_bytes(PDF)
    found = sentences(check)
    assert any("a.pdf (a): its PDF is not what was uploaded" in what for what in found)
    assert any("b.pdf (b): its PDF is missing" in what for what in found)
    assert any("stray.pdf belongs to no document" in what for what in found)
    assert len(check.repair(check.findings())) == 2
    assert healthy.get(DocumentId("a")).status == "ready"


def test_a_torn_snapshot_is_found_and_forgotten(check, healthy, folder, vector):
    """The index is built anew from the store."""
    (snapshot,) = (folder / "indexes").glob("*.faiss")
    snapshot.write_bytes(snapshot.read_bytes()[:50])
    assert any("snapshot" in what and "torn" in what for what in sentences(check))
    check.repair(check.findings())
    assert sentences(check) == []
    indexes = CollectionIndexes(folder=folder / "indexes", store=healthy, dimension=8, wait_s=10)
    assert len(indexes.search("default", vector(0), 9)[0]) == 3
    indexes.close()


def test_looking_may_be_done_beside_a_writer(check, healthy, library):
    """What is published meanwhile is no finding."""
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            library.publish(f"d{number}", "text")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            found = [what for what in sentences(check) if "its PDF is missing" not in what]
            assert found == []
    finally:
        stop.set()
        writer.join()


def test_a_document_read_again_loses_its_old_chunks(check, healthy):
    """No chunk of the damaged version can be found until it is whole again."""
    execute(healthy, "DELETE FROM chunks WHERE ordinal = 1")
    generation = healthy.generation("default")
    check.repair(check.findings())
    assert healthy.get(DocumentId("a")).status == "queued"
    assert healthy.chunk_ids(collection="default", document_ids=[DocumentId("a")]).size == 0
    assert healthy.generation("default") > generation
    assert np.array_equal(
        healthy.chunk_ids(collection="default"),
        healthy.chunk_ids(collection="default", document_ids=[DocumentId("b")]),
    )
