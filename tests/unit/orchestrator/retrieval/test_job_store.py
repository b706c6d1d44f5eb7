"""Who works on which document: leased once, lost when silent, taken up where it was."""

import threading

import numpy as np
import pytest

from orchestrator.domain import DocumentId, DocumentStatus, FlawedPage, Page, StagedChunk
from orchestrator.errors import DocumentNotFound
from orchestrator.retrieval.job_store import Job, JobStore

A, B = DocumentId("a"), DocumentId("b")


@pytest.fixture
def clock():
    """Seconds in a list of one."""
    return [1000.0]


@pytest.fixture
def jobs(store, clock):
    return JobStore(store.database, clock=lambda: clock[0])


def staged(ordinal, *, digest=b"digest"):
    vector = np.arange(4, dtype=np.float32)
    return StagedChunk(ordinal, digest, vector, prompt_tokens=7)


def test_documents_are_leased_in_their_order_and_once(jobs, library):
    """The oldest first; what somebody has nobody else gets."""
    library.queue("a")
    library.queue("b")
    assert jobs.counts() == (2, 0)
    assert jobs.claim("one", lease_s=60) == Job(A, failures=0, interruptions=0)
    assert jobs.claim("two", lease_s=60) == Job(B, failures=0, interruptions=0)
    assert jobs.claim("three", lease_s=60) is None
    assert jobs.counts() == (0, 2)


def test_racing_workers_never_get_the_same_document(jobs, library):
    """However many ask at once."""
    for number in range(20):
        library.queue(f"d{number}")
    taken, barrier = [], threading.Barrier(8)

    def work(owner):
        barrier.wait()
        while (job := jobs.claim(owner, lease_s=60)) is not None:
            taken.append(job.document_id)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 20


def test_a_silent_owner_loses_its_document(jobs, library, clock):
    """A lease that is renewed holds, one that is not runs out, which is an interruption."""
    library.queue("a")
    jobs.claim("one", lease_s=60)
    clock[0] += 50
    assert jobs.renew("one", [A], lease_s=60) == {"a"}
    clock[0] += 50
    assert jobs.claim("two", lease_s=60) is None
    clock[0] += 11
    assert jobs.claim("two", lease_s=60) == Job(A, failures=0, interruptions=1)
    assert jobs.renew("one", [A], lease_s=60) == set()


def test_only_what_is_named_is_renewed(jobs, library, clock):
    """A document whose worker is gone is not kept by the others' work."""
    library.queue("a")
    library.queue("b")
    jobs.claim("one", lease_s=60)
    jobs.claim("one", lease_s=60)
    clock[0] += 50
    assert jobs.renew("one", [B], lease_s=60) == {"b"}
    clock[0] += 20
    assert jobs.claim("two", lease_s=60).document_id == "a"


def test_nobody_gets_what_he_works_on_a_second_time(jobs, library, clock):
    """Not after a minute in which the machine stood still; the lease can be renewed then."""
    library.queue("a")
    jobs.claim("one", lease_s=60)
    clock[0] += 100
    assert jobs.claim("one", lease_s=60, but_not=[A]) is None
    assert jobs.renew("one", [A], lease_s=60) == {"a"}
    assert jobs.claim("two", lease_s=60) is None


def test_a_clock_that_was_set_back_holds_nothing_up(jobs, library, clock):
    """Neither what waited for its next attempt, nor what somebody had who is gone."""
    library.queue("a")
    library.queue("b")
    jobs.claim("gone", lease_s=60)
    jobs.put_back(A, delay_s=4)
    assert jobs.claim("gone", lease_s=60).document_id == "b"
    clock[0] -= 3600
    assert {jobs.claim("one", lease_s=60).document_id for _ in range(2)} == {"a", "b"}
    assert jobs.claim("two", lease_s=60) is None


def test_a_long_lease_is_not_taken_for_one_from_before_the_clock_was_set_back(jobs, library):
    """However long the setting makes it."""
    library.queue("a")
    jobs.claim("one", lease_s=3600)
    assert jobs.claim("two", lease_s=3600) is None


def test_a_failure_waits_before_the_next_attempt(jobs, library, clock):
    """Others are worked on meanwhile; the failure counts, and is no interruption."""
    library.queue("a")
    library.queue("b")
    jobs.claim("one", lease_s=60)
    jobs.put_back(A, delay_s=4)
    assert jobs.claim("one", lease_s=60).document_id == "b"
    assert jobs.claim("one", lease_s=60) is None
    clock[0] += 4
    assert jobs.claim("one", lease_s=60) == Job(A, failures=1, interruptions=0)


def test_who_stops_in_order_leaves_no_blame(jobs, library):
    """`release` gives back; after a crash `release_all` takes, and that counts."""
    library.queue("a")
    jobs.claim("one", lease_s=60)
    jobs.release("one")
    assert jobs.claim("two", lease_s=60) == Job(A, failures=0, interruptions=0)
    jobs.release_all()
    assert jobs.claim("three", lease_s=60) == Job(A, failures=0, interruptions=1)


def interrupted(jobs, times):
    """So many starts, each of them ended at once; by which document was worked on."""
    seen = []
    for _ in range(times):
        job = jobs.claim("dead", lease_s=60)
        seen.append(job and job.document_id)
        jobs.release_all()
    return seen


def test_deaths_in_a_row_blame_nobody_who_waits(jobs, library, clock):
    """A process that ends every second, whatever it does: each document was only there twice."""
    library.queue("a")
    library.queue("b")
    assert interrupted(jobs, 20) == [A, A, B, B] + [None] * 16
    clock[0] += 4
    assert jobs.claim("one", lease_s=60) == Job(A, failures=0, interruptions=2)


def test_each_further_death_makes_a_longer_pause(jobs, library, clock):
    """From the start of the process: 4 seconds, then 16, then 64, and no longer."""
    library.queue("a")
    interrupted(jobs, 2)
    for pause_s, before in ((4, 2), (16, 3), (64, 4), (64, 5)):
        clock[0] += pause_s - 0.1
        assert jobs.claim("early", lease_s=60) is None
        clock[0] += 0.1
        assert jobs.claim("one", lease_s=60) == Job(A, failures=0, interruptions=before)
        jobs.release_all()


def test_a_suspect_is_worked_on_alone(jobs, library, clock):
    """None is given out beside it until it comes further, nor it beside another."""
    library.queue("a")
    interrupted(jobs, 2)
    library.queue("b")
    library.queue("c")
    assert jobs.claim("one", lease_s=60).document_id == B
    clock[0] += 4
    # Nor is it overtaken: younger ones would keep it waiting for ever.
    assert jobs.claim("two", lease_s=60) is None
    jobs.release("one")
    assert jobs.claim("one", lease_s=60).document_id == A
    assert jobs.claim("two", lease_s=60) is None
    jobs.stage_pages(A, [Page(1, "read")])
    assert jobs.claim("two", lease_s=60).document_id == B


def test_a_suspect_whose_worker_is_silent_holds_up_nobody(jobs, library, clock):
    """Its lease runs out as any other."""
    library.queue("a")
    interrupted(jobs, 2)
    clock[0] += 4
    jobs.claim("one", lease_s=60)
    clock[0] += 61
    library.queue("b")
    assert jobs.claim("two", lease_s=60) == Job(A, failures=0, interruptions=3)


def test_coming_further_is_what_counts(jobs, library):
    """Failures and interruptions are forgotten as soon as something new is kept."""
    library.queue("a")
    for _ in range(2):
        jobs.claim("one", lease_s=60)
        jobs.put_back(A, delay_s=0)
    jobs.claim("one", lease_s=60)
    jobs.stage_pages(A, [Page(1, "read")])
    jobs.release_all()
    assert jobs.claim("two", lease_s=60) == Job(A, failures=0, interruptions=1)


def test_pages_that_were_kept_come_back(jobs, store, library):
    """With their flaws, in order, up to the first gap."""
    library.queue("a")
    jobs.stage_pages(A, [Page(1, "one"), FlawedPage(2, "", "Page 2 could not be read.")])
    jobs.stage_pages(A, [Page(3, "three"), Page(5, "five")])
    assert jobs.staged_pages(A) == [
        Page(1, "one"),
        FlawedPage(2, "", "Page 2 could not be read."),
        Page(3, "three"),
    ]
    assert store.get(A).pages_done == 5


def test_chunks_that_were_kept_come_back(jobs, library):
    """By their ordinal; the last one kept holds."""
    library.queue("a")
    jobs.stage_chunks(A, [staged(0), staged(1)])
    jobs.stage_chunks(A, [staged(1, digest=b"newer")])
    found = jobs.staged_chunks(A)
    assert [found[n].text_sha256 for n in (0, 1)] == [b"digest", b"newer"]
    assert found[0].embedding.tolist() == [0, 1, 2, 3]
    assert found[0].prompt_tokens == 7
    jobs.forget_chunks()
    assert jobs.staged_chunks(A) == {}


@pytest.mark.parametrize("end", ["publish", "fail", "delete"])
def test_what_was_kept_goes_with_the_work(jobs, store, library, end):
    """A finished document leaves no half of itself, and nobody can work on it any longer."""
    library.queue("a")
    jobs.claim("one", lease_s=60)
    jobs.stage_pages(A, [Page(1, "one"), Page(2, "two")])
    jobs.stage_chunks(A, [staged(0)])
    if end == "publish":
        store.publish(A, pages=[Page(1, "one")], chunks=[], warning=None)
    elif end == "fail":
        jobs.fail(A, code="no_text", message="none")
    else:
        store.delete(A)
    with store.database.read() as db:
        for table, rows in (("pages", end == "publish"), ("staged_chunks", 0), ("jobs", 0)):
            count = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - ours
            assert count == rows, table
    for late in (
        lambda: jobs.stage_pages(A, [Page(1, "late")]),
        lambda: jobs.stage_chunks(A, [staged(0)]),
        lambda: jobs.show(A, status=DocumentStatus.EMBEDDING),
        lambda: jobs.fail(A, code="late", message="late"),
    ):
        with pytest.raises(DocumentNotFound):
            late()


def test_a_failed_document_can_be_started_over(jobs, store, library):
    """`requeue` clears error and progress, and leaves every other document alone."""
    library.queue("a")
    jobs.stage_pages(A, [Page(1, "one")])
    jobs.fail(A, code="parser_timeout", message="too slow")
    failed = store.get(A)
    assert (failed.status, failed.error_code) == (DocumentStatus.FAILED, "parser_timeout")
    assert jobs.claim("one", lease_s=60) is None
    assert jobs.requeue(A)
    queued = store.get(A)
    assert (queued.status, queued.error_code, queued.pages_done) == ("queued", None, 0)
    assert jobs.claim("one", lease_s=60) == Job(A, failures=0, interruptions=0)
    assert not jobs.requeue(A)
    library.publish("b", "text")
    assert not jobs.requeue(B)
    assert store.get(B).status is DocumentStatus.READY


def test_text_that_is_no_unicode_can_be_kept(jobs, store, library):
    """Half surrogates and NULs never reach SQLite."""
    library.queue("a")
    jobs.stage_pages(A, [Page(1, "a\ud800b\0c")])
    assert jobs.staged_pages(A)[0].text == "a?b\ufffdc"
    jobs.fail(A, code="x", message="\ud800")
    assert store.get(A).error_message == "?"
