"""The order in which the pieces of a picture are read."""

import pytest

from orchestrator.documents.ocr import Piece, in_reading_order


def piece(left, top, text, *, width=100.0, height=10.0):
    return Piece(left, top, left + width, top + height, text)


def test_nothing_has_no_lines():
    """A picture without text."""
    assert in_reading_order([]) == []


def test_lines_follow_one_another_and_pieces_of_a_line_are_joined():
    """However the pieces come, and if they are not quite level."""
    pieces = [piece(60, 22, "two", width=40), piece(0, 0, "first"), piece(0, 20, "line", width=50)]
    assert in_reading_order(pieces) == ["first", "line two"]


def test_columns_are_read_one_after_the_other():
    """Below a title that goes across both."""
    title = piece(0, 0, "title", width=400)
    left = [piece(0, 30 + 12 * n, f"left {n}", width=190) for n in range(5)]
    right = [piece(210, 33 + 12 * n, f"right {n}", width=190) for n in range(5)]
    mixed = [title, *(p for pair in zip(right, left, strict=True) for p in pair)]
    wanted = ["title", *(f"left {n}" for n in range(5)), *(f"right {n}" for n in range(5))]
    assert in_reading_order(mixed) == wanted


def test_rows_of_a_table_stay_whole():
    """Cells are narrow: an empty strip between them is no reason to read them column by column."""
    cells = [
        piece(100 * column, 20 * row, f"{row}{column}", width=40)
        for column in range(4)
        for row in range(3)
    ]
    assert in_reading_order(cells) == ["00 01 02 03", "10 11 12 13", "20 21 22 23"]


@pytest.mark.parametrize("number", [1, 50])
def test_pieces_on_top_of_one_another_come_to_an_end(number):
    """Nothing to cut: they are lines, in some order."""
    assert len(in_reading_order([piece(0, 0, "same")] * number)) >= 1
