"""What follows from what a worker gave, and from how it was lost."""

import math

import pytest

from orchestrator import errors
from orchestrator.documents.parser_worker import LossCause
from orchestrator.documents.sandbox import SandboxLimits, _Reading, _Window
from orchestrator.domain import FlawedPage, Page


def reading(total=10, **limits):
    """A reading at its start, in windows of four pages."""
    return _Reading(limits=SandboxLimits(**({"window_pages": 4} | limits)), total=total)


def window(pages=(), cause=None, spent_s=0.1):
    """What a worker gave."""
    found = [page if isinstance(page, Page) else Page(page, "text") for page in pages]
    return _Window(pages=found, cause=cause, spent_s=spent_s)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
@pytest.mark.parametrize("name", ["memory_bytes", "cpu_s_per_page", "max_pages", "window_pages"])
def test_a_limit_must_be_a_positive_number(name, value):
    """No limit can be switched off by accident."""
    with pytest.raises(ValueError, match=name):
        SandboxLimits(**{name: value})


def test_windows_follow_one_another_to_the_last_page():
    """Ten pages in windows of four: 1-4, 5-8, 9-10, and no more."""
    state = reading()
    asked = []
    while (wanted := state.wanted()) is not None:
        asked.append((wanted.start, wanted.stop - 1))
        assert [p.number for p in state.take(window(wanted))] == list(wanted)
    assert asked == [(1, 4), (5, 8), (9, 10)]


def test_pages_that_came_before_the_loss_are_kept():
    """A worker lost on page 3 has given pages 1 and 2; page 3 is read alone next time."""
    state = reading()
    assert not state.careful
    assert [p.number for p in state.take(window([1, 2], LossCause.CPU))] == [1, 2]
    assert state.wanted() == range(3, 4)
    assert state.careful


@pytest.mark.parametrize("cause", list(LossCause))
def test_a_page_that_costs_two_workers_is_left_out(cause):
    """Native code, or something else, may be at fault: the second time it is read without, alone."""
    state = reading()
    assert state.take(window([], cause)) == []
    assert (state.wanted(), state.careful) == (range(1, 2), True)
    (page,) = state.take(window([], cause))
    assert isinstance(page, FlawedPage)
    assert (page.number, page.text) == (1, "")
    assert page.reason.startswith("Page 1 was left out: ")
    assert (state.wanted(), state.careful) == (range(2, 6), False)


def test_a_second_try_that_succeeds_clears_the_page():
    """Nothing is left out when the page is read at last."""
    state = reading()
    state.take(window([], LossCause.CRASHED))
    assert [type(page) for page in state.take(window([1]))] == [Page]
    assert (state.wanted(), state.careful) == (range(2, 6), False)


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (LossCause.CPU, errors.ParserTimeout),
        (LossCause.STALLED, errors.ParserTimeout),
        (LossCause.MEMORY, errors.ParserOutOfMemory),
        (LossCause.CRASHED, errors.DamagedDocument),
    ],
)
def test_many_lost_pages_fail_the_document(cause, error):
    """After three pages left out, the fourth fails the document with the cause's error."""
    state = reading(max_lost_pages=3)
    left_out = []
    while len(left_out) < 3:
        left_out += state.take(window([], cause))
    assert state.take(window([], cause)) == []
    with pytest.raises(error):
        state.take(window([], cause))
    assert [page.number for page in left_out] == [1, 2, 3]


def test_the_whole_document_has_a_time():
    """Time spent on windows adds up to the limit, and then the document fails."""
    state = reading(wall_s_per_document=5)
    state.take(window([1, 2, 3, 4], spent_s=3))
    assert state.remaining_s() == 2
    with pytest.raises(errors.ParserTimeout, match="5 s"):
        state.take(window([5], LossCause.STALLED, spent_s=2))


def test_a_document_that_ends_in_time_is_whole():
    """The last page may use the last second."""
    state = reading(total=2, wall_s_per_document=5)
    assert len(state.take(window([1, 2], spent_s=6))) == 2


def test_a_document_of_too_much_text_fails():
    """The characters of all pages together are limited."""
    state = reading(max_chars_per_document=10)
    with pytest.raises(errors.DocumentTooLarge, match="10 characters"):
        state.take(window([Page(1, "x" * 6), Page(2, "x" * 5)]))
