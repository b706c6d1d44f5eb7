"""The page in front of the real stack: a real PDF, the real embedder, the real vLLM, a real browser."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import pdfs
from tests.browsers import browsing, visiting

pytestmark = pytest.mark.browser

DEV = Path(__file__).parents[3] / "shared" / "data" / "dev" / "pdfs"
LONG_MS = 120_000


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


def test_the_handbook_answers(visit):
    """The sample of the README: an answer that streams, and the page that it comes from."""
    page = visit.page
    page.locator("li", has_text="handbook.pdf").get_by_role("checkbox").check()
    visit.ask("At what water level are the gates closed?")
    expect(page.locator(".turn .sources")).to_contain_text("handbook.pdf")
    open_source(page, "page 2")
    expect(page.locator(".mark").first).to_be_visible(timeout=LONG_MS)
    visit.pictured("page")


def open_source(page, words):
    """Click the first source with these words, cited or not: a model this small forgets its marks."""
    folded = page.locator(".turn .sources summary")
    if folded.count():
        folded.click()
    page.locator(".turn .source .name", has_text=words).first.click()
