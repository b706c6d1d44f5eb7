"""Pages become chunks that the embedder takes whole: cut where the text pauses, never too long."""

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from orchestrator.documents.headings import Line, RunningLines, headings_of, lines_of
from orchestrator.domain import Chunk, Page

LOOKAHEAD_PAGES = 16
"""Pages seen before the first is cut, so that running headers are known from the start."""

_LINE_END = re.compile(r"\n")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_SENTENCE_END = re.compile(r"[.!?:;][\"'”’)\]]*\s+|[。！？；]\s*")  # noqa: RUF001 - CJK sentence ends
_SPACE = re.compile(r"\s+")
_MIN_FILL = 0.6
"""A pause in the text is worth a chunk that is only this full."""


class OffsetTokenizer(Protocol):
    """The embedder's tokenizer, as far as cutting text goes."""

    def offsets(self, text: str) -> Sequence[tuple[int, int]]:
        """Start and end of each token in `text`, in characters; special tokens left out."""
        ...


class Chunker:
    """
    Cuts pages into chunks of at most `max_tokens` of the embedder's own tokens.

    Args:
        tokenizer: The embedder's; it counts every chunk once more as it will be embedded.
        max_tokens: Most tokens of a chunk, special tokens left out.
        overlap_tokens: Tokens at most that a chunk repeats of the one before it.
        min_tokens: A rest of a page below this goes together with text before it.
        keep_running: Whether lines that most pages repeat at their top or foot are cut with the rest
            on every page, and not only on the first.

    Raises:
        ValueError: If the numbers leave no room for new text.
    """

    def __init__(
        self,
        *,
        tokenizer: OffsetTokenizer,
        max_tokens: int,
        overlap_tokens: int,
        min_tokens: int,
        keep_running: bool = False,
    ) -> None:
        if not 0 <= overlap_tokens <= max_tokens // 2:
            raise ValueError(
                f"overlap_tokens must be from 0 to half of max_tokens ({max_tokens}), "
                f"not {overlap_tokens}"
            )
        if not 0 <= min_tokens <= max_tokens // 2:
            raise ValueError(
                f"min_tokens must be from 0 to half of max_tokens ({max_tokens}), not {min_tokens}"
            )
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._overlap_tokens = overlap_tokens
        self._min_tokens = min_tokens
        self._keep_running = keep_running

    def chunk(self, pages: Iterable[Page]) -> Iterator[Chunk]:
        """
        The chunks of a document, in reading order, a few pages behind the pages taken.

        `pages[i].text[chunk.char_start:chunk.char_end] == chunk.text`, a chunk never crosses pages,
        and every character of a page with tokens, space apart, is in at least one chunk: but for the
        lines at the top and the foot of a page that most pages repeat, which only the first one keeps.
        """
        running = RunningLines()
        waiting: deque[Page] = deque()
        state = _Progress()
        for page in pages:
            running.learn(page)
            waiting.append(page)
            if len(waiting) > LOOKAHEAD_PAGES:
                yield from self._page(waiting.popleft(), running=running, state=state)
        for page in waiting:
            yield from self._page(page, running=running, state=state)

    def _page(self, page: Page, *, running: RunningLines, state: "_Progress") -> Iterator[Chunk]:
        lines = lines_of(page.text)
        headings = headings_of(lines, running=running)
        starts = [heading.start for heading in headings]
        first, last = 0, len(page.text)
        if page.number > 1 and not self._keep_running:
            first, last = _body(lines, running) or (first, last)
        cutter = _PageCutter(
            text=page.text[first:last],
            tokenizer=self._tokenizer,
            heading_starts=[start - first for start in starts if start >= first],
            max_tokens=self._max_tokens,
            overlap_tokens=self._overlap_tokens,
            min_tokens=self._min_tokens,
        )
        for from_first, to_first, num_tokens in cutter.spans():
            start, end = first + from_first, first + to_first
            above = bisect_right(starts, start) - 1
            yield Chunk(
                ordinal=state.ordinal,
                text=page.text[start:end],
                page=page.number,
                page_end=page.number,
                char_start=start,
                char_end=end,
                heading=headings[above].text if above >= 0 else state.heading,
                num_tokens=num_tokens,
            )
            state.ordinal += 1
        if headings:
            state.heading = headings[-1].text


def _body(lines: Sequence[Line], running: RunningLines) -> tuple[int, int] | None:
    """Where the page's own text begins and ends; None if it has none."""
    own = [n for n, line in enumerate(lines) if line.text not in running]
    if not own:
        return None
    # Only the outer ones are left out: what stands between the page's own lines is part of them.
    last = lines[own[-1]]
    return lines[own[0]].start, last.start + len(last.text)


class _Progress:
    """What one page hands on to the next."""

    __slots__ = ("heading", "ordinal")

    def __init__(self) -> None:
        self.heading = ""
        self.ordinal = 0


class _PageCutter:
    """Finds where one page is cut; all positions are characters of its text."""

    def __init__(
        self,
        *,
        text: str,
        tokenizer: OffsetTokenizer,
        heading_starts: list[int],
        max_tokens: int,
        overlap_tokens: int,
        min_tokens: int,
    ) -> None:
        self._text = text
        self._tokenizer = tokenizer
        self._max = max_tokens
        self._overlap = overlap_tokens
        self._min = min_tokens
        self._tokens = [start for start, end in tokenizer.offsets(text) if end > start]
        self._lines = [match.end() for match in _LINE_END.finditer(text)]
        self._paragraphs = sorted(
            {match.end() for match in _BLANK_LINE.finditer(text)}.union(heading_starts)
        )

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Start, end and number of tokens of each chunk, outer space left out."""
        cut = 0
        last = len(self._text.rstrip()) if self._tokens else 0
        while cut < last:
            start, end, num_tokens = self._fit(self._start(cut), cut)
            if num_tokens:
                yield *self._trimmed(start, end), num_tokens
            cut = end

    def _fit(self, start: int, cut: int) -> tuple[int, int, int]:
        """The longest good chunk from `start` that ends after `cut` and is short enough."""
        limit = self._max
        end = self._end(start, cut, limit)
        while True:
            left, right = self._trimmed(start, end)
            own = [a for a, b in self._tokenizer.offsets(self._text[left:right]) if b > a]
            # Cut inside a word, or by a tokenizer that looks around, a piece may count for more.
            if len(own) <= self._max:
                return start, end, len(own)
            if start < cut:
                start = cut
            elif limit > 1:
                limit = max(1, limit - (len(own) - self._max))
            elif own[self._max] > 0:
                end = left + own[self._max]
                continue
            else:  # one character that takes more than a whole chunk
                return start, end, len(own)
            end = self._end(start, cut, limit)

    def _start(self, cut: int) -> int:
        """Where the chunk after `cut` starts: up to the overlap before it, at a line or a word."""
        first = bisect_left(self._tokens, cut) - self._overlap
        if cut == 0 or self._overlap == 0 or first < 0:
            return cut
        earliest = self._tokens[first]
        at = _first_in(self._lines, earliest, cut)
        if at is None:
            at = next(
                (m.end() for m in _SPACE.finditer(self._text, earliest, cut) if m.end() < cut), None
            )
        if at is None or not self._leaves_room(at, cut):
            return cut
        return at

    def _leaves_room(self, start: int, cut: int) -> bool:
        # The line after the cut is not to be broken for the sake of an overlap.
        line_end = _first_in(self._lines, cut + 1, len(self._text) + 1) or len(self._text)
        fits_alone = self._count(cut, line_end) <= self._max
        return not fits_alone or self._count(start, line_end) <= self._max

    def _end(self, start: int, cut: int, limit: int) -> int:
        """Where a chunk from `start` ends, after `cut`, with at most `limit` tokens of the page."""
        first = bisect_left(self._tokens, start)
        left = len(self._tokens) - first
        if left <= limit:
            return len(self._text)
        # The last chunk of a page is not to be a scrap: leave it some of what would fit here.
        room = min(limit, max(left - self._min, limit // 2, 1))
        furthest = self._token_after(first + room, cut)
        least = self._tokens[min(first + int(room * _MIN_FILL), len(self._tokens) - 1)]
        least = min(max(least, cut + 1), furthest)
        end = (
            _last_in(self._paragraphs, least, furthest)
            or self._last_line(cut, least, furthest)
            or self._last_match(_SENTENCE_END, least, furthest)
            or self._last_match(_SPACE, cut + 1, furthest)
            or furthest
        )
        return end if bisect_left(self._tokens, end) < len(self._tokens) else len(self._text)

    def _last_line(self, cut: int, least: int, furthest: int) -> int | None:
        """The last line's end; one far too early only if the line below is then kept whole."""
        end = _last_in(self._lines, cut + 1, furthest)
        if end is None or end >= least:
            return end
        below = _first_in(self._lines, end + 1, len(self._text)) or len(self._text)
        return end if self._count(end, below) <= self._max else None

    def _token_after(self, index: int, cut: int) -> int:
        """Start of the token at `index`, but at least one token after `cut`."""
        index = max(index, bisect_left(self._tokens, cut) + 1)
        while 0 < index < len(self._tokens) and self._tokens[index] == self._tokens[index - 1]:
            index += 1  # several tokens of one character stay together
        return self._tokens[index] if index < len(self._tokens) else len(self._text)

    def _last_match(self, pattern: re.Pattern[str], low: int, high: int) -> int | None:
        best = None
        for match in pattern.finditer(self._text, low - 1, high):
            if low <= match.end() <= high:
                best = match.end()
        return best

    def _count(self, start: int, end: int) -> int:
        return bisect_left(self._tokens, end) - bisect_left(self._tokens, start)

    def _trimmed(self, start: int, end: int) -> tuple[int, int]:
        piece = self._text[start:end]
        left = start + len(piece) - len(piece.lstrip())
        return left, max(left, start + len(piece.rstrip()))


def _first_in(positions: list[int], low: int, high: int) -> int | None:
    """The first position in [low, high)."""
    index = bisect_left(positions, low)
    return positions[index] if index < len(positions) and positions[index] < high else None


def _last_in(positions: list[int], low: int, high: int) -> int | None:
    """The last position in [low, high]."""
    index = bisect_right(positions, high) - 1
    return positions[index] if index >= 0 and positions[index] >= low else None
