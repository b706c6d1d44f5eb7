"""What is told of a document of which not every page could be read."""

from collections.abc import Sequence

from orchestrator.documents.page_recognition import RECOGNISED
from orchestrator.domain import FlawedPage, Page
from orchestrator.errors import NoTextInDocument

MAX_FLAWS_TOLD = 3


def no_text(pages: int, *, looked_at_pictures: bool) -> NoTextInDocument:
    """The error of a document without a word, and what to do."""
    if looked_at_pictures:
        return NoTextInDocument(
            f"None of the {pages} pages holds text, and OCR found none on their pictures. Scan the "
            "document with 300 dots an inch, upright, and upload the result."
        )
    return NoTextInDocument(
        f"None of the {pages} pages holds text: they look scanned. Run OCR on the PDF (for example "
        "`ocrmypdf in.pdf out.pdf`) and upload the result, or let the server do it: OCR=1 make run."
    )


def warning(pages: Sequence[Page]) -> str | None:
    """Which pages were not read whole, and why; told once the rest is searchable."""
    flawed = [page for page in pages if isinstance(page, FlawedPage)]
    pictures = [page.number for page in flawed if page.reason.endswith(RECOGNISED)]
    flaws = [page.reason for page in flawed if not page.reason.endswith(RECOGNISED)]
    empty = [p.number for p in pages if not p.text.strip() and not isinstance(p, FlawedPage)]
    told = flaws[:MAX_FLAWS_TOLD]
    if len(flaws) > len(told):
        told.append(f"{len(flaws) - len(told)} more pages were not read whole.")
    if pictures:
        told.append(
            f"Read by OCR: {_ranges(pictures)} of {len(pages)}. Names and numbers may be wrong."
        )
    if empty:
        told.append(f"No text on {_ranges(empty)} of {len(pages)} (scanned or blank).")
    return " ".join(told) or None


def _ranges(numbers: Sequence[int]) -> str:
    """1, 3, 4, 5 as "pages 1, 3-5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
    return f"{'page' if len(numbers) == 1 else 'pages'} {shown}"
