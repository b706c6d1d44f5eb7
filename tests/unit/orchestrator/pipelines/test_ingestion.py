"""A document's way: kept as it goes, taken up where it was, tried again, given up, published once."""

import asyncio
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from orchestrator import concurrency
from orchestrator.concurrency import Threads
from orchestrator.domain import Chunk, Document, DocumentId, DocumentStatus, Page
from orchestrator.errors import DamagedDocument, EmbedderUnavailable, StorageFull
from orchestrator.generation.tokenizer import EstimatedTokens
from orchestrator.pipelines import ingestion
from orchestrator.pipelines.document_files import DocumentFiles, UploadLimits
from orchestrator.pipelines.ingestion import IngestionPipeline
from orchestrator.retrieval.collection_indexes import CollectionIndexes
from orchestrator.retrieval.document_store import DocumentStore
from orchestrator.retrieval.job_store import JobStore

A, B = DocumentId("a"), DocumentId("b")
WAIT_S = 10


class FakeSandbox:
    """Pages of one line each; notes where each reading began, and hangs or fails when told to."""

    def __init__(self):
        self.began_at = []
        self.hangs_at = None
        self.error = None
        self.reads_pictures = False
        self.more = lambda _: 0

    async def pages(self, path, *, total, first=1):
        self.began_at.append(first)
        for number in range(first, total + 1):
            if number == self.hangs_at:
                await asyncio.sleep(3600)
            if self.error is not None:
                raise self.error
            yield Page(number, f"Line of page {number} in {path.stem}.{'x' * self.more(number)}")


class FakeChunker:
    """A chunk a page."""

    def chunk(self, pages):
        for ordinal, page in enumerate(page for page in pages if page.text):
            yield Chunk(ordinal, page.text, page.number, page.number, 0, len(page.text), "", 5)


class FakeEmbedder:
    """Counts the texts; hangs after so many, or fails so many times."""

    def __init__(self):
        self.texts = []
        self.hangs_after = None
        self.failures = 0

    async def embed_passages(self, texts):
        if self.failures:
            self.failures -= 1
            raise EmbedderUnavailable("gone")
        if self.hangs_after is not None and len(self.texts) >= self.hangs_after:
            await asyncio.sleep(3600)
        self.texts += texts
        angles = np.array([len(text) for text in texts], dtype=np.float32) / 100
        rows = [np.cos(angles), np.sin(angles), 0 * angles, 0 * angles]
        return np.stack(rows, axis=1).astype(np.float32)


class Setting:
    """A data folder, and pipelines over it that are started and stopped as often as a test wants."""

    def __init__(self, folder):
        self.store = DocumentStore(path=folder / "test.db")
        self.store.open()
        self.ahead_s = 0.0
        self.jobs = JobStore(self.store.database, clock=lambda: time.time() + self.ahead_s)
        self.files = DocumentFiles(folder=folder, limits=UploadLimits(10**6, 0))
        self.files.open(exists=lambda _: True)
        self.indexes = CollectionIndexes(folder=folder / "indexes", store=self.store, dimension=4)
        self.sandbox, self.embedder = FakeSandbox(), FakeEmbedder()
        self.threads = Threads(4)
        self.outcomes = []

    def queue(self, name, *, pages=3, replaces=None):
        document = Document(
            id=DocumentId(name),
            collection="default",
            filename=f"{name}.pdf",
            sha256=name,
            size_bytes=1,
            status=DocumentStatus.QUEUED,
            created_at=1.0,
            pages=pages,
            replaces=replaces,
        )
        self.files.path(document.id).write_bytes(b"%PDF")
        self.store.add(document)

    @asynccontextmanager
    async def running(self, **options):
        pipeline = IngestionPipeline(
            files=self.files,
            sandbox=self.sandbox,
            chunker=FakeChunker(),
            embedder=self.embedder,
            store=self.store,
            jobs=self.jobs,
            indexes=self.indexes,
            counter=EstimatedTokens(),
            threads=self.threads,
            on_done=lambda code, pages, _: self.outcomes.append((code, pages)),
            look_s=0.05,
            **({"workers": 1} | options),
        )
        await pipeline.start()
        try:
            yield pipeline
        finally:
            await pipeline.aclose()

    def pauses_end(self):
        self.ahead_s += 64

    async def until(self, condition):
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.01)

    async def finished(self, name):
        """The document once it is READY or FAILED."""
        done = {DocumentStatus.READY, DocumentStatus.FAILED}
        await self.until(lambda: self.store.get(DocumentId(name)).status in done)
        return self.store.get(DocumentId(name))

    def close(self):
        self.indexes.close()
        self.threads.close()
        self.store.close()


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setattr(ingestion, "STAGE_S", 0.0)
    monkeypatch.setattr(ingestion, "EMBED_WINDOW", 2)
    monkeypatch.setattr(ingestion, "FIRST_RETRY_S", 0.0)
    made = Setting(tmp_path)
    yield made
    made.close()


async def test_a_queued_document_becomes_ready(setting):
    """Read, cut, embedded, published; nothing of the work is left behind."""
    setting.queue("a")
    async with setting.running():
        document = await setting.finished("a")
        await setting.until(lambda: setting.outcomes)  # told after it is visible
    assert (document.status, document.pages_done, document.chunks) == ("ready", 3, 3)
    assert setting.outcomes == [("ok", 3)]
    assert setting.jobs.counts() == (0, 0)
    assert setting.jobs.staged_chunks(A) == {}


async def test_reading_goes_on_at_the_page_where_it_was(setting):
    """The process ends in the middle: pages that were kept are not read again."""
    setting.queue("a", pages=10)
    setting.sandbox.hangs_at = 7
    async with setting.running():
        await setting.until(lambda: len(setting.jobs.staged_pages(A)) == 6)
    setting.sandbox.hangs_at = None
    async with setting.running():
        document = await setting.finished("a")
    assert setting.sandbox.began_at == [1, 7]
    assert (document.status, document.pages, document.chunks) == ("ready", 10, 10)
    texts = [p.text for p in setting.store.passages(range(1, 11), None).values()]
    assert texts == [f"Line of page {n} in a." for n in range(1, 11)]


async def test_embedding_goes_on_at_the_chunk_where_it_was(setting):
    """What was embedded and kept is not embedded again, and every chunk has its vector."""
    setting.queue("a", pages=9)
    setting.embedder.hangs_after = 6
    async with setting.running():
        await setting.until(lambda: len(setting.jobs.staged_chunks(A)) == 6)
    setting.embedder.hangs_after = None
    async with setting.running():
        document = await setting.finished("a")
    assert (document.status, document.chunks) == ("ready", 9)
    assert len(setting.embedder.texts) == len(set(setting.embedder.texts)) == 9
    assert setting.store.embeddings("default")[1].shape == (9, 4)


async def test_texts_of_like_length_are_embedded_together(setting):
    """Over the whole document, not only within a window; each chunk gets its own vector."""
    setting.queue("a", pages=9)
    setting.sandbox.more = lambda number: 10 * ((7 * number) % 9)
    async with setting.running():
        await setting.finished("a")
    lengths = [len(text) for text in setting.embedder.texts]
    assert lengths == sorted(lengths, reverse=True)
    _, vectors = setting.store.embeddings("default")
    angles = [10 * ((7 * number) % 9) / 100 for number in range(1, 10)]
    turned = np.arctan2(vectors[:, 1], vectors[:, 0])
    assert np.diff(turned).tolist() == pytest.approx(np.diff(angles).tolist(), abs=1e-5)


async def test_vectors_of_other_texts_are_not_used(setting):
    """Another chunk length since the crash: what was kept no longer fits, and is made anew."""
    setting.queue("a", pages=9)
    setting.embedder.hangs_after = 6
    async with setting.running():
        await setting.until(lambda: len(setting.jobs.staged_chunks(A)) == 6)
    setting.embedder.hangs_after, setting.embedder.texts = None, []
    for page in (pages := setting.jobs.staged_pages(A)):
        setting.jobs.stage_pages(A, [Page(page.number, "other " + page.text)])
    assert len(pages) >= 8
    async with setting.running():
        await setting.finished("a")
    assert sum("other" in text for text in setting.embedder.texts) >= 8


async def test_missing_means_are_waited_for(setting):
    """The embedder is gone twice: the document waits, and is ready in the end."""
    setting.queue("a")
    setting.embedder.failures = 2
    async with setting.running():
        assert (await setting.finished("a")).status == "ready"
        await setting.until(lambda: setting.outcomes)  # told after it is visible
    assert setting.outcomes == [("ok", 3)]


async def test_means_that_stay_away_are_given_up(setting):
    """After so many failures without coming further the document fails, and can be retried."""
    setting.queue("a")
    setting.embedder.failures = 100
    async with setting.running(max_failures=2) as pipeline:
        failed = await setting.finished("a")
        assert (failed.status, failed.error_code) == ("failed", "embedder_unavailable")
        assert setting.embedder.failures == 97
        setting.embedder.failures = 0
        setting.jobs.requeue(A)
        pipeline.submit()
        assert (await setting.finished("a")).status == "ready"


async def test_a_full_disk_is_no_interruption(setting, monkeypatch):
    """Not even the failure can be written down for a while: the document goes on when it can."""
    setting.queue("a")
    setting.embedder.failures = 1
    put_back, refusals = setting.jobs.put_back, iter(range(4))

    def full(*args, **options):
        if next(refusals, None) is not None:
            raise StorageFull("no room")
        put_back(*args, **options)

    monkeypatch.setattr(setting.jobs, "put_back", full)
    async with setting.running(max_interruptions=1):
        assert (await setting.finished("a")).status == "ready"


async def test_a_damaged_document_is_not_tried_twice(setting):
    """It is the document's fault: others follow at once."""
    setting.queue("a")
    setting.sandbox.error = DamagedDocument("torn")
    async with setting.running():
        assert (await setting.finished("a")).error_code == "damaged_document"
        setting.sandbox.error = None
        setting.queue("b")
        assert (await setting.finished("b")).status == "ready"
    assert setting.sandbox.began_at == [1, 1]


async def test_a_document_that_ends_the_process_again_and_again_is_given_up(setting):
    """Five deaths in its work: the sixth start leaves it alone, and goes on with others."""
    setting.queue("a")
    setting.queue("b")
    for _ in range(5):
        assert setting.jobs.claim("dead", lease_s=60).document_id == "a"
        setting.jobs.release_all()
        setting.pauses_end()
    async with setting.running():
        failed = await setting.finished("a")
        assert (await setting.finished("b")).status == "ready"
    assert (failed.status, failed.error_code) == ("failed", "ingestion_interrupted")
    assert "POST /documents/a/retry" in failed.error_message
    assert setting.sandbox.began_at == [1]


async def test_a_restart_in_order_blames_nobody(setting):
    """However often the service is stopped while it works on a document."""
    setting.queue("a", pages=10)
    setting.sandbox.hangs_at = 1
    for _ in range(5):
        async with setting.running() as pipeline:
            await setting.until(lambda pipeline=pipeline: pipeline.running == 1)
    setting.sandbox.hangs_at = None
    async with setting.running():
        assert (await setting.finished("a")).status == "ready"


async def test_a_document_that_somebody_else_took_is_let_go(setting):
    """A worker whose lease ran out stops, and does not spoil what the other one made of it."""
    setting.queue("a", pages=10)
    setting.sandbox.hangs_at = 5
    async with setting.running(lease_s=0.3) as pipeline:
        await setting.until(lambda: pipeline.running == 1)
        with setting.store.database.write() as db:
            db.execute("UPDATE jobs SET owner = 'other', leased_until = leased_until + 100")
        await setting.until(lambda: pipeline.running == 0)
    assert setting.store.get(A).status is not DocumentStatus.FAILED


async def test_a_machine_that_stood_still_works_on_nothing_twice(setting):
    """Its leases have run out meanwhile; it goes on with what it has, and takes up only the rest."""
    setting.queue("a", pages=10)
    setting.sandbox.hangs_at = 5
    async with setting.running(workers=2) as pipeline:
        await setting.until(lambda: pipeline.running == 1)
        setting.ahead_s += 100
        for name in ("b", "c"):
            setting.queue(name)
            pipeline.submit()
            assert (await setting.finished(name)).status == "ready"
    assert len(setting.sandbox.began_at) == 3


async def test_a_bug_ends_no_worker(setting, monkeypatch):
    """It is logged, and the next look finds the work."""
    monkeypatch.setattr(concurrency, "AFTER_BUG_S", 0.0)
    setting.queue("a")
    claim, bugs = setting.jobs.claim, iter([RuntimeError("a bug")])

    def broken(*args, **options):
        if bug := next(bugs, None):
            raise bug
        return claim(*args, **options)

    monkeypatch.setattr(setting.jobs, "claim", broken)
    async with setting.running():
        assert (await setting.finished("a")).status == "ready"


async def test_a_replaced_documents_file_goes_with_it(setting):
    """Rows, chunks, vectors and file of the old one, in the moment the new one is ready."""
    setting.queue("a")
    async with setting.running() as pipeline:
        await setting.finished("a")
        setting.indexes.search("default", np.ones(4, dtype=np.float32) / 2, 5)
        setting.queue("b", pages=2, replaces=A)
        pipeline.submit()
        await setting.finished("b")
        await setting.until(lambda: not setting.files.path(A).exists())
    assert setting.store.get(A) is None
    assert setting.files.path(B).exists()
    assert setting.indexes.sizes() == {"default": 2}


async def test_a_failed_successor_replaces_nothing(setting):
    """The old document stays until the new one can be searched."""
    setting.queue("a")
    async with setting.running() as pipeline:
        await setting.finished("a")
        setting.sandbox.error = DamagedDocument("torn")
        setting.queue("b", replaces=A)
        pipeline.submit()
        assert (await setting.finished("b")).status == "failed"
    assert setting.store.get(A).status == "ready"
