"""A disk that is full, read-only or broken: told, survived, and used again when it is well."""

import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests import pdfs
from tests.disks import fill, small_disk
from tests.running import Program, orchestrator

DISK_BYTES = 64 * 1024 * 1024
WAIT_S = 60
BODY = {"question": "Where is the zeppelin hangar?"}


@pytest.fixture
def disk(tmp_path):
    """A small disk of our own."""
    with small_disk(tmp_path / "disk", DISK_BYTES) as place:
        if place is None:
            pytest.skip("only root may mount a disk of its own, and we are not")
        yield place


@pytest.fixture
def running(disk, fake_engine):
    """An orchestrator on that disk, with one document, which keeps no disk free by itself."""
    with orchestrator(
        disk, fake_engine.url, min_free_disk_bytes="0", breaker_open_s="0.2"
    ) as program:
        upload(program, ["The zeppelin hangar is in Friedrichshafen."])
        yield program


def upload(program: Program, pages: list[str], *, wait: bool = True) -> httpx2.Response:
    return httpx2.post(
        f"{program.url}/upload",
        params={"wait": str(wait).lower()},
        files={"file": ("a.pdf", pdfs.text_pdf(pages), "application/pdf")},
        timeout=WAIT_S,
        trust_env=False,
    )


def found(program: Program) -> list[str]:
    response = httpx2.post(f"{program.url}/search", json=BODY, timeout=WAIT_S, trust_env=False)
    return [passage["filename"] for passage in response.json().get("passages", [])]


def until(holds) -> None:
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s, "did not come true in time"
        time.sleep(0.1)


def status_of(program: Program, document_id: str) -> str:
    response = httpx2.get(f"{program.url}/documents/{document_id}", trust_env=False)
    return str(response.json()["status"])


def test_a_full_disk_is_507_and_nothing_is_lost(disk, running):
    """Uploads are refused with what to do; what is there is found; with space all is as before."""
    filler = fill(disk)
    refused = upload(running, ["Another page. " * 2000] * 40)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
    assert "Delete documents" in refused.json()["error"]["message"]
    assert found(running) == ["a.pdf"]
    listed = httpx2.get(f"{running.url}/documents", trust_env=False).json()["documents"]
    assert [d["status"] for d in listed] == ["ready"]
    filler.unlink()
    assert upload(running, ["Another page."]).status_code == 200


def test_a_disk_that_fills_during_the_work_holds_it_up(disk, running):
    """An acknowledged document waits for space, and is ready when there is some again."""
    pages = [f"Page {n} of the long one tells of it. " * 60 for n in range(120)]
    (document,) = upload(running, pages, wait=False).json()["documents"]
    filler = fill(disk)
    time.sleep(5)
    assert status_of(running, document["id"]) in {"queued", "parsing", "embedding"}
    assert found(running) == ["a.pdf"]
    filler.unlink()
    until(lambda: status_of(running, document["id"]) == "ready")


@contextmanager
def failing(program: Program, *arguments: str) -> Iterator[None]:
    """The kernel's answers to the program, changed by strace for the length of the block."""
    tracer = subprocess.Popen([
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-p",
        str(program.process.pid),
        *arguments,
    ])
    try:
        time.sleep(0.5)
        assert tracer.poll() is None, "strace may not look at our own child here"
        yield
    finally:
        tracer.terminate()
        tracer.wait()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the disk's errors")
def test_a_read_only_disk_still_answers(disk, running):
    """
    Questions are answered, changes refused without a trace; writable again, they are taken.

    A kernel that gave up on a disk leaves open files open and refuses every change; it does not do
    that to a disk in use when asked to, so each of those calls is refused here.
    """
    (document,) = httpx2.get(f"{running.url}/documents", trust_env=False).json()["documents"]
    changes = "pwrite64,ftruncate,fallocate,fsync,fdatasync,rename,unlink,mkdir"
    with failing(running, "-e", f"trace={changes}", "-e", f"inject={changes}:error=EROFS"):
        assert found(running) == ["a.pdf"]
        refused = upload(running, ["Another page."])
        assert refused.status_code in {503, 507}
        assert refused.json()["error"]["message"]
        gone = httpx2.delete(f"{running.url}/documents/{document['id']}", trust_env=False)
        assert gone.status_code in {503, 507}
        assert found(running) == ["a.pdf"]
    until(lambda: upload(running, ["Another page."]).status_code == 200)
    assert status_of(running, document["id"]) == "ready"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes the disk's errors")
def test_a_broken_disk_under_the_snapshots_costs_nobody_an_answer(disk, running):
    """EIO on every write of an index file: searched from memory, and built anew after a restart."""
    assert found(running) == ["a.pdf"]
    paths = ["-P", str(disk / "indexes"), *_snapshot_paths(disk)]
    with failing(running, "-e", "trace=openat", "-e", "inject=openat:error=EIO", *paths):
        assert upload(running, ["A second page of text."]).status_code == 200
        assert found(running) == ["a.pdf", "a.pdf"]
    assert running.process.poll() is None


def _snapshot_paths(disk: Path) -> list[str]:
    """`-P` for each file that a snapshot of the default collection may be written to."""
    base = disk / "indexes" / hashlib.sha256(b"default").hexdigest()[:32]
    names = [f"{base}.json", f"{base}.json.tmp"]
    names += [f"{base}.{n}.{end}" for n in range(1, 6) for end in ("faiss", "tmp")]
    return [part for name in names for part in ("-P", name)]
