"""Which lines of a document are headings, and which are only printed on every page."""

import re
from collections import Counter
from dataclasses import dataclass

from orchestrator.domain import Page

_NUMBERED = re.compile(r"(?:\d{1,2}(?:\.\d{1,2}){0,3}\.?|[IVX]{1,5}\.|[A-Z]\.)\s+[A-Z]")
_NAMED = re.compile(r"(?:chapter|section|part|item|appendix|annex|note)\s+[\dA-Z]", re.IGNORECASE)
_DIGITS = re.compile(r"\d+")
_WORD = re.compile(r"[^\W\d_]+")
_MIN_CHARS, _MAX_CHARS, _MAX_WORDS = 3, 80, 12
_MAX_NUMBERS = 1
_MIN_LETTERS_SHARE = 0.6
_MIN_TITLE_SHARE = 0.6
_SMALL_WORD_CHARS = 3
_BODY_CHARS = 40
_EDGE_LINES = 3
_NO_HEADING_ENDS_WITH = ".,;:?!-\u2013\u2014"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a page: its text without outer spaces, and where it starts on the page."""

    text: str
    start: int


def lines_of(text: str) -> list[Line]:
    """The lines of a page that hold more than space, in order."""
    found = []
    start = 0
    for raw in text.split("\n"):
        if stripped := raw.strip():
            found.append(Line(stripped, start + raw.index(stripped[0])))
        start += len(raw) + 1
    return found


class RunningLines:
    """
    Learns which lines stand at the top or the foot of most pages; numbers are taken as equal.

    Args:
        min_share: Share of the pages seen so far, in (0, 1].
        min_pages: Fewer pages tell nothing.
    """

    def __init__(self, *, min_share: float = 0.6, min_pages: int = 5) -> None:
        self._min_share = min_share
        self._min_pages = min_pages
        self._pages = 0
        self._seen: Counter[str] = Counter()

    def learn(self, page: Page) -> None:
        """Count the outer lines of one more page."""
        lines = [_folded(line.text) for line in lines_of(page.text)]
        self._pages += 1
        self._seen.update({*lines[:_EDGE_LINES], *lines[-_EDGE_LINES:]})

    def __contains__(self, line: str) -> bool:
        """Whether the line is printed on most pages."""
        if self._pages < self._min_pages:
            return False
        return self._seen[_folded(line)] >= self._min_share * self._pages


def headings_of(lines: list[Line], *, running: RunningLines) -> list[Line]:
    """
    The lines that are headings, in order; rather too few than too many.

    A heading is short, looks like a title (numbered, named, in capitals, or in title case), does
    not go on from the line above, and has text below.
    """
    content = [line for line in lines if line.text not in running]
    return [
        line
        for i, line in enumerate(content[:-1])
        if _is_title(line.text)
        and not content[i + 1].text[0].islower()
        and (i == 0 or not _goes_on(content[i - 1].text))
        and _has_body(content, i + 1)
    ]


def _is_title(line: str) -> bool:
    if not _MIN_CHARS <= len(line) <= _MAX_CHARS or line[-1] in _NO_HEADING_ENDS_WITH:
        return False
    if not (line[0].isupper() or line[0].isdigit()) or len(line.split()) > _MAX_WORDS:
        return False
    numbered = _NUMBERED.match(line)
    name = line[numbered.end() - 1 :] if numbered else line
    if len(_DIGITS.findall(name)) > _MAX_NUMBERS:
        return False  # a row of a table
    if sum(map(str.isalpha, name)) < _MIN_LETTERS_SHARE * len(name.replace(" ", "")):
        return False
    return bool(numbered or _NAMED.match(line) or line.isupper() or _in_title_case(line))


def _in_title_case(line: str) -> bool:
    words = [word for word in _WORD.findall(line) if len(word) > _SMALL_WORD_CHARS]
    capitals = sum(word[0].isupper() for word in words)
    return bool(words) and capitals >= _MIN_TITLE_SHARE * len(words)


def _goes_on(line: str) -> bool:
    # A full line without an end is a sentence in its middle: what follows is not a title.
    return len(line) >= _BODY_CHARS and line[-1] not in ".:;?!"


def _has_body(lines: list[Line], after: int) -> bool:
    below = lines[after : after + 2]
    return any(len(line.text) >= _BODY_CHARS for line in below)


def _folded(line: str) -> str:
    return _DIGITS.sub("0", line)
