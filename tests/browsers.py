"""A real browser for tests: Debian's Chromium, driven by Playwright."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    FilePayload,
    Locator,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)

from tests.chromium import chromium

WIDE, NARROW = ViewportSize(width=1440, height=900), ViewportSize(width=375, height=720)
PICTURES = os.environ.get("PICTURES")
"""A folder for screenshots, for people to look at."""


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser without a window, until the block ends."""
    with sync_playwright() as playwright:
        # Without Chromium's own sandbox: as root, and in most containers, it does not start with it.
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """
    A page, and everything that went wrong in it or left its origin.

    Attributes:
        page: Playwright's.
        wrong: Errors of scripts, and what the page's policy forbade.
        foreign: Addresses that were asked for elsewhere.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.wrong: list[str] = []
        self.foreign: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", self._hear)
        page.on("request", lambda request: self._see(request.url, url))

    def _hear(self, message: object) -> None:
        text = str(getattr(message, "text", ""))
        # A status that is no success is one of these lines, too, and may be part of the test.
        if getattr(message, "type", "") == "error" and "Failed to load resource" not in text:
            self.wrong.append(text)

    def _see(self, asked: str, url: str) -> None:
        if not asked.startswith((url, "data:", "blob:")):
            self.foreign.append(asked)

    def ask(self, question: str) -> None:
        """Type a question, and press Enter."""
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")

    def drop(self, name: str, data: bytes) -> Locator:
        """Upload a file; its row."""
        file: FilePayload = {"name": name, "mimeType": "application/pdf", "buffer": data}
        self.page.set_input_files("#files", file)
        return self.page.locator("li", has_text=name)

    def pictured(self, name: str) -> None:
        """Keep a picture, if somebody wants to look at it."""
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png")


@contextmanager
def visiting(browser: Browser, url: str, *, patience_ms: float) -> Iterator[Visit]:
    """A first visit, on a wide screen, which must not have gone wrong, nor elsewhere."""
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.set_default_timeout(patience_ms)
    expect.set_options(timeout=patience_ms)
    visit = Visit(page, url)
    page.goto(url)
    yield visit
    assert visit.wrong == []
    assert visit.foreign == []
    context.close()


def serious(page: Page) -> list[tuple[str, list[str]]]:
    """What axe-core calls serious or critical: rule, and where."""
    found = Axe().run(page).response["violations"]
    return [
        (rule["id"], [node["target"] for node in rule["nodes"]])
        for rule in found
        if rule["impact"] in {"serious", "critical"}
    ]
