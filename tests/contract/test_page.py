"""The page in front of the real stack: a real PDF, the real embedder, the real vLLM, a real browser."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect

from tests import pdfs
from tests.browsers import NARROW, WIDE, browsing, serious, visiting
from tests.running import orchestrator

from .conftest import MODEL_FOLDER, until, upload
from .test_engine_wire import running

pytestmark = pytest.mark.browser

DEV = Path(__file__).parents[3] / "shared" / "data" / "dev" / "pdfs"
LONG_MS = 120_000
HUNG_UP_S = 5.0
"""A browser takes its time to hang up; the service's second begins then."""
OTHERS = 2


def a_pdf() -> Path | None:
    """The smallest of the people's PDFs, where they are beside the checkout."""
    found = sorted(DEV.glob("*.pdf"), key=lambda path: path.stat().st_size)
    return found[0] if found else None


@pytest.fixture
def visit(stack):
    with browsing() as browser, visiting(browser, stack.url, patience_ms=LONG_MS) as made:
        yield made


def test_from_a_dropped_file_to_the_marked_passage(visit):
    """Drop a PDF, follow it until it is ready, ask, and see on its page what the answer was made of."""
    page, real = visit.page, a_pdf()
    name = real.name if real else "tides.pdf"
    made = pdfs.text_pdf([
        "The tide table of the harbour hangs in the hall of the old customs house."
    ])
    data = real.read_bytes() if real else made
    row = visit.drop(name, data)
    expect(row).to_have_class("ready")
    expect(row).to_contain_text(re.compile(r"\d+ pages?"))
    row.get_by_role("checkbox").check()
    visit.ask("What is this document about?")
    expect(page.locator(".turn .answer")).to_have_text(re.compile(r"\w+"))
    expect(page.locator(".turn .sources")).to_contain_text(name)
    open_source(page, name)
    expect(page.locator("#viewer-title")).to_have_text(name)
    expect(page.locator(".mark").first).to_be_visible(timeout=LONG_MS)
    page.get_by_role("button", name="Close the document").click()
    page.on("dialog", lambda question: question.accept())
    row.get_by_role("button", name=f"Remove {name}").click()
    expect(row).to_have_count(0)


@pytest.fixture
def crowded(vllm_url, tmp_path):
    """The same engine behind a service that lets one in at a time, and everybody wait."""
    with orchestrator(
        tmp_path,
        vllm_url,
        tokenizer=str(MODEL_FOLDER),
        max_concurrent_requests="1",
        wait_target_s=str(LONG_MS / 1000),
    ) as running:
        upload(running, pdfs.handbook())
        yield running


def test_the_handbook_answers(visit):
    """
    The sample of the README: an answer that streams, and the page that it comes from.

    On a wide screen and on a phone's, light and dark: nothing serious for people with other means,
    nothing wider than the screen, and the mark stays where the passage is.
    """
    page = visit.page
    page.locator("li", has_text="handbook.pdf").get_by_role("checkbox").check()
    # After a sentence or two a model this small goes on in circles.
    page.route("**/ask", lambda route: route.continue_(post_data=of_length(route, 24)))
    visit.ask("On which VHF channel does the control room listen?")
    expect(page.locator(".turn .sources")).to_contain_text("handbook.pdf")
    expect(page.locator("#send")).to_have_text("Ask")
    open_source(page, "page 3")
    for size in (WIDE, NARROW):
        page.set_viewport_size(size)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            expect(page.locator(".mark").first).to_be_visible(timeout=LONG_MS)
            visit.pictured(f"page-{size['width']}-{scheme}")
            assert serious(page) == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Close the document").click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        visit.pictured(f"page-phone-{scheme}")
        assert serious(page) == []


def test_cancelling_frees_the_real_engine(visit, vllm_url):
    """An answer that was given up is nobody's work any more, and the next one comes."""
    page = visit.page
    page.route("**/ask", lambda route: route.continue_(post_data=of_length(route, 1000)))
    visit.ask("Tell me everything that the handbook says about the gates, at length.")
    expect(page.locator(".turn .answer")).to_have_text(re.compile(r"\w+"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".turn .how")).to_contain_text("Cancelled")
    assert until(lambda: running(vllm_url) == 0, HUNG_UP_S)
    page.unroute("**/ask")
    visit.ask("At what water level are the gates closed?")
    expect(page.locator(".turn").nth(1).locator(".sources")).to_contain_text("handbook.pdf")


def test_a_place_in_the_queue_is_shown_under_load(crowded):
    """Others have the engine: the page says which place it has and what for, and then answers."""
    with (
        httpx2.Client(base_url=crowded.url, timeout=LONG_MS / 1000, trust_env=False) as http,
        ThreadPoolExecutor(OTHERS) as others,
        browsing() as browser,
        visiting(browser, crowded.url, patience_ms=LONG_MS) as made,
    ):
        expect(made.page.locator("li.ready").first).to_be_visible()
        body = {"question": "What is the handbook about?", "max_tokens": 60, "degrade": False}
        asked = [others.submit(http.post, "/ask", json=body) for _ in range(OTHERS)]
        assert until(lambda: http.get("/status").json()["gate"]["queued"] == OTHERS - 1, 30)
        made.ask("At what water level are the gates closed?")
        expect(made.page.locator(".turn .how")).to_contain_text("place")
        made.page.locator("#status-button").click()
        expect(made.page.locator("#status dl")).to_contain_text("a place beside those")
        made.pictured("queue-real")
        expect(made.page.locator(".turn .sources")).to_contain_text("handbook.pdf")
        assert {answer.result().status_code for answer in asked} == {200}


def of_length(route, max_tokens):
    """What the page asked, for an answer of another length."""
    return json.dumps(json.loads(route.request.post_data) | {"max_tokens": max_tokens})


def open_source(page, words):
    """Click the first source with these words, cited or not: a model this small forgets its marks."""
    folded = page.locator(".turn .sources summary")
    if folded.count():
        folded.click()
    page.locator(".turn .source .name", has_text=words).first.click()
