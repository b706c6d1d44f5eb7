"""Headings are found rather too seldom than too often."""

import pytest

from orchestrator.documents.headings import RunningLines, headings_of, lines_of
from orchestrator.domain import Page

BODY = "The gates are closed when the outer gauge is forecast to pass the mark."


def headings(text, running=None):
    """The headings of one page."""
    found = headings_of(lines_of(text), running=running or RunningLines())
    return [line.text for line in found]


@pytest.mark.parametrize(
    "title",
    ["2. Closing the Gates", "2.1.3 Seals", "Item 1A. Risk Factors", "EMERGENCIES", "The Old Lock"],
)
def test_titles_above_text_are_headings(title):
    """Numbered, named, capital and title-case lines are headings when text follows."""
    assert headings(f"{title}\n{BODY}\n{BODY}") == [title]


@pytest.mark.parametrize(
    "line",
    [
        "the gates are closed",
        "Closing the Gates takes a while.",
        "Total 104 2,204 19",
        "2150",
        "Vessels over sixty metres",
        "X" * 90,
    ],
)
def test_other_short_lines_are_not(line):
    """Sentences, rows, numbers and long lines are no headings."""
    assert headings(f"{line}\n{BODY}\n{BODY}") == []


def test_a_title_needs_text_below():
    """The last line of a page, and a line above more short lines, is no heading."""
    assert headings(f"{BODY}.\nClosing the Gates") == []
    assert headings("Closing the Gates\nAnna\nBertil\nCora") == []


def test_a_line_in_the_middle_of_a_sentence_is_not():
    """What goes on from a full line above, or goes on below, is no heading."""
    full = "Everybody who has read as far as this is kindly asked to look at"
    assert headings(f"{full}\nClosing the Gates\n{BODY}") == []
    assert headings(f"Closing the Gates\n{BODY.lower()}") == []


def test_lines_start_where_they_say():
    """A line's start is the offset of its first character that is no space."""
    text = "  one\n\n \n\ttwo \nthree"
    assert [(line.text, text.index(line.text)) for line in lines_of(text)] == [
        (line.text, line.start) for line in lines_of(text)
    ]


def test_lines_on_most_pages_are_no_headings():
    """A running header is known after five pages, whatever number it carries."""
    running = RunningLines()
    for number in range(1, 6):
        assert f"Harbour Handbook {number}" not in running
        running.learn(Page(number, f"Harbour Handbook {number}\nTitle {'x' * number}\n{BODY}"))
    assert "Harbour Handbook 99" in running
    assert "Title x" not in running
    assert headings(f"Harbour Handbook 7\n{BODY}", running) == []
