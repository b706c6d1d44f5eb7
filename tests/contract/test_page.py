"""The page in front of the real stack: a real PDF, the real embedder, the real vLLM, a real browser."""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests import pdfs
from tests.browsers import WIDE, Visit, browsing, why_no_browser

pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))

DEV = Path(__file__).parents[3] / "shared" / "data" / "dev" / "pdfs"
PICTURES = os.environ.get("PICTURES")
LONG_MS = 120_000


def a_pdf() -> Path | None:
    """The smallest of the people's PDFs, where they are beside the checkout."""
    found = sorted(DEV.glob("*.pdf"), key=lambda path: path.stat().st_size)
    return found[0] if found else None


@pytest.fixture
def visit(stack):
    """A first visit, which must not have gone wrong, nor elsewhere."""
    with browsing() as browser:
        page = browser.new_context(viewport=WIDE).new_page()
        page.set_default_timeout(LONG_MS)
        made = Visit(page, stack.url)
        page.goto(stack.url)
        yield made
    assert made.wrong == []
    assert made.foreign == []


def test_from_a_dropped_file_to_the_marked_passage(visit):
    """Drop a PDF, follow it until it is ready, ask, and see on its page what the answer was made of."""
    page, real = visit.page, a_pdf()
    name = real.name if real else "tides.pdf"
    made = pdfs.text_pdf([
        "The tide table of the harbour hangs in the hall of the old customs house."
    ])
    data = real.read_bytes() if real else made
    page.set_input_files("#files", {"name": name, "mimeType": "application/pdf", "buffer": data})
    row = page.locator("li", has_text=name)
    expect(row).to_have_class("ready", timeout=LONG_MS)
    expect(row).to_contain_text(re.compile(r"\d+ pages?"))
    row.get_by_role("checkbox").check()
    visit.ask("What is this document about?")
    expect(page.locator(".turn .answer")).to_have_text(re.compile(r"\w+"), timeout=LONG_MS)
    expect(page.locator(".turn .sources")).to_contain_text(name, timeout=LONG_MS)
    folded = page.locator(".turn .sources summary")
    if folded.count():  # a model this small forgets its marks
        folded.click()
    page.locator(".turn .source .name", has_text=name).first.click()
    expect(page.locator("#viewer-title")).to_have_text(name)
    expect(page.locator(".mark").first).to_be_visible(timeout=LONG_MS)


def test_the_handbook_answers(visit):
    """The sample of the README: an answer that streams, and the page that it comes from."""
    page = visit.page
    page.locator("li", has_text="handbook.pdf").get_by_role("checkbox").check()
    visit.ask("At what water level are the gates closed?")
    expect(page.locator(".turn .sources")).to_contain_text("handbook.pdf", timeout=LONG_MS)
    folded = page.locator(".turn .sources summary")
    if folded.count():
        folded.click()
    page.locator(".turn .source .name", has_text="page 2").first.click()
    expect(page.locator(".mark").first).to_be_visible(timeout=LONG_MS)
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / "page.png")
