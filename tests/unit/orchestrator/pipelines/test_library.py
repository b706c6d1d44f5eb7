"""Files and rows of documents come and go together."""

import asyncio
import io
import threading

import pytest

from orchestrator.concurrency import Threads
from orchestrator.documents.findings import PdfInfo
from orchestrator.errors import (
    CollectionFull,
    DamagedDocument,
    DocumentNotFound,
    IngestionQueueFull,
    InvalidParameter,
)
from orchestrator.pipelines.document_files import DocumentFiles, UploadLimits
from orchestrator.pipelines.library import Library, LibraryLimits, clean_filename
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.job_store import JobStore

DATA = b"%PDF-1.7 the same bytes"


class FakeSandbox:
    """One page each; counts the looks, which take a moment."""

    def __init__(self):
        self.looks = 0

    async def inspect(self, path):
        self.looks += 1
        await asyncio.sleep(0.01)
        return PdfInfo(pages=1)


class FakeIngestion:
    """Counts how often it was told of work."""

    def __init__(self):
        self.told = 0
        self.queued = 0

    def submit(self):
        self.told += 1

    def cancel(self, document_id):
        pass


class SlowIndexes:
    """A change is made at once; returning from it takes until the test says so, or half a second."""

    def __init__(self):
        self.go_on = threading.Event()
        self.changed = threading.Event()

    def change(self, collection, write, *, embeddings=None):
        change = write()
        self.changed.set()
        self.go_on.wait(0.5)
        return change


@pytest.fixture
def indexes():
    return SlowIndexes()


@pytest.fixture
def sandbox():
    return FakeSandbox()


@pytest.fixture
def ingestion():
    return FakeIngestion()


@pytest.fixture
def store(tmp_path):
    store = DocumentStore(path=tmp_path / "test.db")
    store.open()
    yield store
    store.close()


@pytest.fixture
def make(tmp_path, indexes, store, sandbox, ingestion):
    def make(**limits):
        return _made(tmp_path, indexes, store, sandbox, ingestion, LibraryLimits(**limits))

    return make


@pytest.fixture
def library(make):
    return make()


def _made(tmp_path, indexes, store, sandbox, ingestion, limits):
    made = Library(
        limits=limits,
        files=DocumentFiles(folder=tmp_path, limits=UploadLimits(max_bytes=1000, min_free_bytes=0)),
        store=store,
        jobs=JobStore(store.database),
        sandbox=sandbox,
        ingestion=ingestion,
        indexes=indexes,
        threads=Threads(8),
    )
    made.open()
    return made


async def upload(library, data=DATA, **options):
    options = {"filename": "a.pdf", "collection": "default"} | options
    return await library.accept(io.BytesIO(data), **options)


async def test_bytes_that_come_again_while_they_are_deleted_are_kept(library, indexes):
    """An acknowledged upload has its file, whatever was being deleted beside it."""
    first = (await upload(library)).document
    deleting = asyncio.create_task(library.delete(first.id))
    await asyncio.to_thread(indexes.changed.wait)
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


async def test_the_same_bytes_many_times_at_once_are_looked_at_once(library, sandbox, ingestion):
    """Fifty racing uploads: one look, one document, one piece of work; nothing is left over."""
    accepted = await asyncio.gather(*(upload(library) for _ in range(50)))
    assert {a.document.id for a in accepted} == {accepted[0].document.id}
    assert sum(not a.duplicate for a in accepted) == 1
    assert (sandbox.looks, ingestion.told) == (1, 1)
    assert not library._arriving


async def test_an_upload_that_is_refused_lets_the_next_one_try(library, sandbox):
    """The first of two racing uploads of the same bytes fails: the second is looked at by itself."""
    looks = iter([DamagedDocument("torn"), PdfInfo(pages=1)])

    async def inspect(path):
        await asyncio.sleep(0.01)
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    sandbox.inspect = inspect
    both = await asyncio.gather(upload(library), upload(library), return_exceptions=True)
    refused, accepted = sorted(both, key=lambda outcome: not isinstance(outcome, Exception))
    assert isinstance(refused, DamagedDocument)
    assert not accepted.duplicate


async def test_two_files_of_one_name_are_both_kept(library):
    """A name is a label: the bytes are what tells documents apart."""
    one, two = await upload(library), await upload(library, DATA + b" other")
    assert one.document.id != two.document.id
    assert one.document.filename == two.document.filename
    assert library.file(one.document.id).read_bytes() != library.file(two.document.id).read_bytes()


async def test_a_failed_document_can_be_retried(library, store, ingestion):
    """Once; a document that has not failed is left alone, and that is said."""
    document = (await upload(library)).document
    with pytest.raises(InvalidParameter, match="it is queued"):
        await library.retry(document.id)
    JobStore(store.database).fail(document.id, code="no_text", message="scanned")
    assert (await library.retry(document.id)).status == "queued"
    assert ingestion.told == 2
    with pytest.raises(DocumentNotFound):
        await library.retry("doc-nobody")


async def test_the_same_bytes_again_are_another_chance_after_missing_means(library, store):
    """A full disk was not the document's fault; being scanned is."""
    document = (await upload(library)).document
    jobs = JobStore(store.database)
    jobs.fail(document.id, code="storage_full", message="full")
    assert (await upload(library)).document.status == "queued"
    jobs.fail(document.id, code="no_text", message="scanned")
    assert (await upload(library)).document.status == "failed"


async def test_a_collection_has_its_limits(make):
    """Documents and bytes; the same bytes again, and other collections, are not affected."""
    library = make(collection_documents=2)
    first = (await upload(library)).document
    await upload(library, DATA + b"2")
    with pytest.raises(CollectionFull, match=r"holds 2 documents.*MAX_COLLECTION_DOCUMENTS"):
        await upload(library, DATA + b"3")
    assert (await upload(library)).duplicate
    await upload(library, DATA + b"3", collection="other")
    await upload(library, DATA + b"3", replaces=first.id)
    assert len(await library.documents(collection=None, limit=9, after=None)) == 4
    small = make(collection_bytes=len(DATA) + 5)
    await upload(small, collection="small")
    with pytest.raises(CollectionFull, match="MAX_COLLECTION_BYTES"):
        await upload(small, DATA + b"2", collection="small")


async def test_too_many_waiting_documents_are_told_to_come_later(make, ingestion):
    """429 before a byte is written."""
    library = make(queued_documents=3)
    ingestion.queued = 3
    with pytest.raises(IngestionQueueFull) as refused:
        await upload(library)
    assert refused.value.retry_after_s
    ingestion.queued = 2
    assert not (await upload(library)).duplicate


async def test_what_is_replaced_has_to_be_there(library):
    """In the same collection; bytes that are there already replace nothing."""
    old = (await upload(library)).document
    new = await upload(library, DATA + b" new", replaces=old.id)
    assert new.document.replaces == old.id
    with pytest.raises(DocumentNotFound, match="has no document 'doc-nobody'"):
        await upload(library, DATA + b" newer", replaces="doc-nobody")
    with pytest.raises(DocumentNotFound):
        await upload(library, DATA + b" newer", replaces=old.id, collection="other")
    with pytest.raises(InvalidParameter, match="in the collection already"):
        await upload(library, DATA, replaces=new.document.id)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("../../a.pdf", "a.pdf"), ("C:\\x\\b.pdf", "b.pdf"), ("", "document.pdf"), ("\n", "_")],
)
def test_names_are_labels(name, shown):
    """No path, nothing unprintable, never empty."""
    assert clean_filename(name) == shown
