"""Files and rows of documents come and go together."""

import asyncio
import io
import threading

import pytest

from orchestrator.concurrency import Threads
from orchestrator.documents.findings import PdfInfo
from orchestrator.pipelines.library import Library, UploadLimits, clean_filename
from orchestrator.retrieval.document_store import DocumentStore

DATA = b"%PDF-1.7 the same bytes"


class FakeSandbox:
    async def inspect(self, path):
        return PdfInfo(pages=1)


class FakeIngestion:
    def submit(self, document_id):
        pass

    def cancel(self, document_id):
        pass


class SlowIndexes:
    """Removing waits until the test lets it go on, or half a second."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.removing = threading.Event()

    def remove(self, collection, ids):
        self.removing.set()
        self.go_on.wait(0.5)


@pytest.fixture
def indexes():
    return SlowIndexes()


@pytest.fixture
def library(tmp_path, indexes):
    store = DocumentStore(path=tmp_path / "test.db")
    store.open()
    made = Library(
        folder=tmp_path,
        limits=UploadLimits(max_bytes=1000, min_free_bytes=0),
        store=store,
        sandbox=FakeSandbox(),
        ingestion=FakeIngestion(),
        indexes=indexes,
        threads=Threads(8),
    )
    made.open()
    yield made
    store.close()


async def upload(library):
    return await library.accept(io.BytesIO(DATA), filename="a.pdf", collection="default")


async def test_bytes_that_come_again_while_they_are_deleted_are_kept(library, indexes):
    """An acknowledged upload has its file, whatever was being deleted beside it."""
    first = (await upload(library)).document
    deleting = asyncio.create_task(library.delete(first.id))
    await asyncio.to_thread(indexes.removing.wait)
    again = await upload(library)
    indexes.go_on.set()
    await deleting
    assert not again.duplicate
    assert (await library.get(again.document.id)).id == first.id
    assert library.file(again.document.id).read_bytes() == DATA


async def test_a_file_without_a_row_is_removed_at_the_start(library):
    """What a crash left between file and row is not kept for ever."""
    stray = library.file("doc-stray")
    stray.write_bytes(DATA)
    kept = (await upload(library)).document
    library.open()
    assert not stray.exists()
    assert library.file(kept.id).exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [("../../a.pdf", "a.pdf"), ("C:\\x\\b.pdf", "b.pdf"), ("", "document.pdf"), ("\n", "_")],
)
def test_names_are_labels(name, shown):
    """No path, nothing unprintable, never empty."""
    assert clean_filename(name) == shown
