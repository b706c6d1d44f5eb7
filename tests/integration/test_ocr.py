"""Pages that are pictures, read by the real models in the real sandbox."""

import asyncio
import os
import signal

import httpx2
import psutil
import pytest

from orchestrator.documents import ocr
from orchestrator.documents.page_recognition import RECOGNISED, OcrLimits
from orchestrator.documents.sandbox import ParserSandbox, SandboxLimits
from orchestrator.domain import FlawedPage
from tests import pdfs
from tests.running import orchestrator

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not ocr.installed(), reason="the ocr extra is not installed: OCR=1"),
]

PAGES = [
    "The zeppelin hangar stands in Friedrichshafen.",
    "Its doors weigh sixty tons each and open in nine minutes.",
]
GIB = 1 << 30


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdfs.scanned(PAGES))
    return path


async def pages_of(path, total, **limits):
    """The pages, why workers were lost, and the processes that lived afterwards."""
    losses = []
    limits = {"memory_bytes": 2 * GIB, "cpu_s_per_page": 60.0, "max_pages": 10} | limits
    sandbox = ParserSandbox(limits=SandboxLimits(), ocr=OcrLimits(**limits), on_loss=losses.append)
    await sandbox.start()
    try:
        idle = set(sandbox.pids)
        pages = [page async for page in sandbox.pages(path, total=total)]
        await asyncio.sleep(0.5)
        return pages, losses, set(sandbox.pids) - idle
    finally:
        await sandbox.aclose()


async def test_pictures_are_read_and_told_as_such(scan):
    """Word for word, with a flaw that says how; the process ends when there are no more."""
    pages, losses, left = await pages_of(scan, 2, idle_s=0.1)
    assert [page.text for page in pages] == PAGES
    assert all(isinstance(page, FlawedPage) and page.reason.endswith(RECOGNISED) for page in pages)
    assert losses == []
    assert left == set()


async def test_only_pages_without_text_are_read(tmp_path):
    """Text stays as it is in the file; a picture without text stays empty."""
    path = tmp_path / "mixed.pdf"
    path.write_bytes(pdfs.mixed(PAGES, image_pages=1))
    pages, _, left = await pages_of(path, 3)
    assert [page.text for page in pages] == [*PAGES, ""]
    assert not any(isinstance(page, FlawedPage) for page in pages)
    (worker,) = left
    assert not psutil.pid_exists(worker)


async def test_only_so_many_pictures_of_a_document_are_read(scan):
    """The rest is named."""
    pages, _, _ = await pages_of(scan, 2, max_pages=1)
    assert [page.text for page in pages] == [PAGES[0], ""]
    assert "only 1 of them" in pages[1].reason


async def test_a_picture_that_takes_too_much_costs_its_page(scan):
    """The processor time of a page is bounded by the kernel; the others go on without it."""
    pages, losses, _ = await pages_of(scan, 2, cpu_s_per_page=0.01)
    assert [page.text for page in pages] == ["", ""]
    assert all("OCR failed" in page.reason for page in pages)
    assert losses == ["cpu", "cpu"]


async def test_a_process_that_is_killed_costs_no_page(scan):
    """It may have died of anything: the page is read once more, by a new one."""
    losses = []
    limits = OcrLimits(memory_bytes=2 * GIB, cpu_s_per_page=60.0, max_pages=10)
    sandbox = ParserSandbox(limits=SandboxLimits(), ocr=limits, on_loss=losses.append)
    await sandbox.start()
    try:
        idle = set(sandbox.pids)
        reading = sandbox.pages(scan, total=2)
        texts = [(await anext(reading)).text]
        second = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0.2)
        (worker,) = set(sandbox.pids) - idle
        os.kill(worker, signal.SIGKILL)
        texts.append((await second).text)
    finally:
        await sandbox.aclose()
    assert texts == PAGES
    assert losses == ["memory"]  # the kernel sends -9 to whom it takes memory from


async def test_a_process_that_does_not_start_costs_the_pictures_alone(scan):
    """Too little memory for the models: the pages are named, the document goes on."""
    pages, _, _ = await pages_of(scan, 2, memory_bytes=1 << 20)
    assert [page.text for page in pages] == ["", ""]
    assert all("its process does not start" in page.reason for page in pages)


def upload(running, scan):
    return httpx2.post(
        f"{running.url}/upload",
        params={"wait": "true"},
        files={"file": ("scan.pdf", scan.read_bytes(), "application/pdf")},
        timeout=120,
        trust_env=False,
    )


def test_a_scan_is_found_and_its_warning_says_how_it_was_read(tmp_path, fake_engine, scan):
    """Through the service: uploaded, searched, cited with its page."""
    with orchestrator(tmp_path / "data", fake_engine.url) as running:
        (document,) = upload(running, scan).json()["documents"]
        assert document["status"] == "ready", document
        assert document["warning"].startswith("Read by OCR: pages 1-2 of 2.")
        question = {"question": "How long do the doors of the hangar take to open?"}
        found = httpx2.post(f"{running.url}/search", json=question, timeout=60, trust_env=False)
        assert found.json()["passages"][0]["page"] == 2


def test_without_it_a_scan_is_named(tmp_path, fake_engine, scan):
    """Switched off, or not installed: the error says what to do."""
    with orchestrator(tmp_path / "data", fake_engine.url, wait_for=(), ocr="false") as running:
        response = upload(running, scan)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "no_text")
    assert "OCR=1" in response.json()["error"]["message"]
