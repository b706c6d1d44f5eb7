"""Whether this machine has a browser: asked on every machine, also where Playwright is not installed."""

import shutil

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The browser's program, if this machine has one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def why_no_browser() -> str | None:
    """Why no page can be opened here, and what to do; None if one can."""
    if chromium() is None:
        return "no Chromium on this machine: apt install chromium"
    return None
