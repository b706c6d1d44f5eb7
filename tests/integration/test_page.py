"""The page in a real browser, against a real orchestrator whose engine does what it is told."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests import pdfs
from tests.browsers import NARROW, WIDE, browsing, serious, visiting
from tests.faults import bench
from tests.running import orchestrator

pytestmark = pytest.mark.browser

LONG_MS = 30_000
CLOSED_WITHIN_S = 5.0
"""A browser on a busy machine takes its time to hang up; the service's second begins only then."""
EVIL = (
    "Look [here](https://evil.example/?q=1) ![](https://evil.example/a.png)"
    "<img src=x onerror=alert(1)><script>alert(2)</script> [1]."
)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One orchestrator for the file, with a single place at the engine."""
    with bench(
        tmp_path_factory.mktemp("page"),
        max_concurrent_requests="1",
        first_token_timeout_s="30",
        stall_timeout_s="30",
    ) as made:
        yield made


@pytest.fixture(scope="module")
def browser():
    with browsing() as started:
        yield started


@pytest.fixture
def visit(running, browser):
    """A first visit, after which nothing may be left."""
    running.heal()
    with visiting(browser, running.program.url, patience_ms=LONG_MS) as made:
        expect(made.page.locator("li.ready").first).to_be_visible()
        yield made
    running.engine.play()
    running.nothing_left(CLOSED_WITHIN_S)


def test_from_a_dropped_file_to_the_marked_passage(running, visit):
    """Drop a PDF, see it become ready, ask, click a citation: the page opens with the mark."""
    running.engine.play(tokens=["The tower ", "stands at Quay 7 [1]", "."], token_s=0.1)
    page = visit.page
    tower = pdfs.text_pdf([
        "The old lighthouse tower stands at Quay 7 and is painted red.",
        "Fishing boats moor on Tuesdays; nets are dried in the yard behind the market.",
    ])
    row = visit.drop("tower.pdf", tower)
    expect(row).to_have_class("ready")
    expect(row).to_contain_text("2 pages")
    row.get_by_role("checkbox").check()
    expect(page.locator("#scope")).to_contain_text("1 document you chose")
    visit.ask("Where does the lighthouse tower stand?")
    expect(page.locator(".turn .source").first).to_be_visible(timeout=LONG_MS)
    expect(page.locator(".turn .answer")).to_contain_text("stands at Quay 7")
    visit.pictured("answer")
    page.get_by_role("button", name=re.compile("Source 1: tower.pdf")).first.click()
    expect(page.locator("#viewer-title")).to_have_text("tower.pdf")
    expect(page.locator("#page-words")).to_have_text("Page 1 of 2")
    mark = page.locator(".mark").first
    expect(mark).to_be_visible(timeout=LONG_MS)
    assert mark.bounding_box()["height"] > 3
    visit.pictured("viewer")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()


def test_a_file_that_cannot_be_read_says_why(visit):
    """In the service's words, with the chance to try again."""
    page = visit.page
    visit.drop("note.pdf", b"no PDF")
    row = page.locator("li.refused")
    expect(row).to_contain_text("PDF")
    expect(row.get_by_role("button", name="Try note.pdf again")).to_be_visible()
    row.get_by_role("button", name="Remove note.pdf").click()
    expect(row).to_have_count(0)


def test_an_answer_goes_on_from_the_one_before(running, visit):
    """The earlier turns go along; a new conversation has none."""
    visit.ask("When does the gate close?")
    expect(visit.page.locator(".turn .source").first).to_be_visible(timeout=LONG_MS)
    running.engine.play()
    visit.ask("And who decides it?")
    expect(visit.page.locator(".turn").nth(1).locator(".source").first).to_be_visible()
    sent = str(running.engine.requests[0]["messages"])
    assert "When does the gate close?" in sent
    running.engine.play()
    visit.page.get_by_role("button", name="New conversation").click()
    visit.ask("And who decides it?")
    expect(visit.page.locator(".turn .source").first).to_be_visible()
    assert "When does the gate close?" not in str(running.engine.requests[0]["messages"])


def test_cancelling_frees_the_engine(running, visit):
    """The answer that is on its way is given up at once, here and there."""
    running.engine.play(tokens=["word "] * 200, token_s=0.2)
    visit.ask("Tell me everything about the gate.")
    expect(visit.page.locator(".turn .answer")).to_contain_text("word")
    visit.page.get_by_role("button", name="Cancel").click()
    expect(visit.page.locator(".turn .how")).to_contain_text("Cancelled")
    running.nothing_left(CLOSED_WITHIN_S)
    expect(visit.page.locator("#send")).to_have_text("Ask")


def test_a_place_in_the_queue_is_shown(running, browser, visit):
    """While somebody else has the engine; then the answer comes."""
    running.engine.play(tokens=["word "] * 30, token_s=0.1)
    other = browser.new_page()
    other.goto(running.program.url)
    other.fill("#question", "Tell me everything.")
    other.press("#question", "Enter")
    expect(other.locator(".turn .answer")).to_contain_text("word")
    visit.ask("When does the gate close?")
    expect(visit.page.locator(".turn .how")).to_contain_text("place 1")
    visit.pictured("queue")
    expect(visit.page.locator(".turn .answer")).to_contain_text("word")
    other.close()


def test_a_lesser_answer_says_so_and_the_next_is_whole_again(running, visit):
    """No engine: the passages themselves, with a banner; once it is back, an answer without one."""
    page = visit.page
    running.proxy.play(refuse=True)
    visit.ask("When does the gate close?")
    expect(page.locator(".turn .banner")).to_contain_text("No model answers now")
    expect(page.locator("#state-words")).to_contain_text("No model")
    expect(page.locator(".turn > .sources > .source").first).to_contain_text("page")
    visit.pictured("degraded")
    running.heal()
    visit.ask("When does the gate close?")
    expect(page.locator(".turn").nth(1).locator(".source").first).to_be_visible(timeout=LONG_MS)
    expect(page.locator(".turn").nth(1).locator(".banner")).to_be_hidden()
    expect(page.locator("#state-words")).to_have_text("Ready")
    sent = str(running.engine.requests[-1]["messages"])
    assert "passages that fit" not in sent, "a lesser answer is nothing to go on from"


def test_a_refusal_says_when_to_come_back(running, visit):
    """In words, with a button that waits as long as the service asked for."""
    page = visit.page
    page.route(
        "**/ask",
        lambda route: route.fulfill(
            status=429,
            headers={"Retry-After": "3"},
            json={"error": {"message": "Everything is taken.", "code": "queue_full"}},
        ),
    )
    visit.ask("When does the gate close?")
    again = page.get_by_role("button", name=re.compile("Try again"))
    expect(again).to_be_disabled()
    expect(page.locator(".turn .how")).to_contain_text("Everything is taken.")
    page.unroute("**/ask")
    expect(again).to_be_enabled(timeout=LONG_MS)
    again.click()
    expect(page.locator(".turn .source").first).to_be_visible(timeout=LONG_MS)
    del running


def test_a_stream_that_gives_up_says_when_to_come_back(running, visit):
    """As a refusal does, though its headers said that all was well."""
    error = {"message": "The wait was too long.", "code": "queue_timeout", "retry_after_s": 3.0}
    visit.page.route(
        "**/ask",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body=f"event: error\ndata: {json.dumps({'error': error})}\n\n",
        ),
    )
    visit.ask("When does the gate close?")
    again = visit.page.get_by_role("button", name=re.compile("Try again"))
    expect(visit.page.locator(".turn .how")).to_contain_text("The wait was too long.")
    expect(again).to_be_disabled()
    expect(again).to_be_enabled(timeout=LONG_MS)
    visit.page.unroute("**/ask")
    del running


def test_a_connection_that_breaks_is_told_in_words(running, browser, tmp_path):
    """The orchestrator is killed in the middle of an answer: what happened, and a button."""
    with (
        orchestrator(
            tmp_path / "data", running.engine.url, embedder_url=running.engine.url
        ) as program,
        visiting(browser, program.url, patience_ms=LONG_MS) as visit,
    ):
        row = visit.drop("handbook.pdf", pdfs.handbook())
        expect(row).to_have_class("ready")
        running.engine.play(tokens=["word "] * 200, token_s=0.2)
        visit.ask("When does the gate close?")
        expect(visit.page.locator(".turn .answer")).to_contain_text("word")
        program.process.kill()
        told = visit.page.locator(".turn .how")
        expect(told).to_contain_text("The connection broke off.")
        expect(told.get_by_role("button", name="Try again")).to_be_enabled()
        expect(visit.page.locator("#send")).to_have_text("Ask")
    running.engine.play()


def test_what_an_answer_says_is_never_executed(running, visit):
    """Scripts, pictures and links of an answer are gone; its words and marks are there."""
    running.engine.play(tokens=[EVIL])
    visit.ask("When does the gate close?")
    expect(visit.page.locator(".turn .source").first).to_be_visible(timeout=LONG_MS)
    answer = visit.page.locator(".turn .answer")
    assert "here" in answer.inner_text()
    assert answer.locator("img, script, a").count() == 0
    assert answer.locator(".chip").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_nothing_serious_for_people_with_other_means(visit, scheme, size):
    """axe-core finds nothing serious, with an answer, the status and a document open."""
    page = visit.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(size)
    visit.ask("When does the gate close?")
    expect(page.locator(".turn .source").first).to_be_visible(timeout=LONG_MS)
    page.locator("#status-button").click()
    expect(page.locator("#status dl")).to_be_visible()
    visit.pictured(f"status-{scheme}-{size['width']}")
    assert serious(page) == []
    page.locator("#status-button").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator(".answer .chip").first.click()
    expect(page.locator(".mark").first).to_be_visible(timeout=LONG_MS)
    visit.pictured(f"reading-{scheme}-{size['width']}")
    assert serious(page) == []
