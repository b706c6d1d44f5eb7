"""Marks in an answer: real ones stay, invented ones go, missing ones come."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain import ChunkId, DocumentId, Passage
from orchestrator.generation.citations import MarkFilter, missing_mark, number


def passage(text: str, n: int = 1) -> Passage:
    return Passage(ChunkId(n), DocumentId("doc-1"), "a.pdf", n, n, 0, len(text), text, 0.5, 10)


def filtered(pieces: list[str], passages: int) -> tuple[str, set[int]]:
    marks = MarkFilter(passages)
    text = "".join(marks.feed(piece) for piece in pieces) + marks.flush()
    return text, marks.cited


def test_keeps_marks_that_point_to_a_passage():
    """A mark within the range is shown and remembered."""
    assert filtered(["It closes at noon [2]."], 3) == ("It closes at noon [2].", {2})


def test_removes_marks_that_point_nowhere():
    """A number that no passage has is an invention."""
    assert filtered(["At noon [7][1] [0]."], 3) == ("At noon [1] .", {1})


def test_a_mark_may_come_in_pieces():
    """The stream cuts where it likes."""
    assert filtered(["At noon [", "1", "2", "] or [", "1]"], 3) == ("At noon  or [1]", {1})


def test_other_brackets_are_text():
    """Only numbers in brackets are marks; an unfinished one at the end is shown."""
    assert filtered(["a[i] = [x] and ["], 3)[0] == "a[i] = [x] and ["


@given(st.text(alphabet="ab[]12 ", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_cuts_do_not_matter(text, cuts):
    """However a stream is cut, the result is that of the whole."""
    edges = [0, *sorted(c for c in cuts if c < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert filtered(pieces, 2) == filtered([text], 2)


def test_names_the_passage_that_holds_the_answer():
    """An answer without marks gets that of the passage it is taken from."""
    passages = [passage("Nothing of interest here."), passage("The north gate closes at noon.", 2)]
    assert missing_mark("The north gate closes at noon", passages) == " [2]"


@pytest.mark.parametrize("answer", ["Yes.", "", "Entirely different words about dragons"])
def test_names_nothing_when_unsure(answer):
    """No passage is credited with what it does not say."""
    assert missing_mark(answer, [passage("The north gate closes at noon.")]) == ""


def test_numbers_every_passage_and_flags_the_cited():
    """Citations keep the prompt's numbers."""
    citations = number([passage("a"), passage("b", 2)], {2})
    assert [(c.n, c.cited) for c in citations] == [(1, False), (2, True)]
