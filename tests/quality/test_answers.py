"""What is counted of an answer, and what is not."""

import pytest

from orchestrator.generation.prompt import NOTHING_RELEVANT
from tests.quality.answers import Checked, check, figures, refused

ROW = {"id": 1, "question": "When?", "answer": "3.40 m", "evidence_pages": [2], "alt_pages": [5]}
PAGES = {1: "Nothing.", 2: "The gates are closed at 3.40 m.", 5: "Again at 3.40\nm."}


def answer(text, *cited, pages=(1, 2), degraded=None):
    sources = [{"n": n, "page": p, "cited": n in cited} for n, p in enumerate(pages, start=1)]
    return {"answer": text, "citations": sources, "degraded": degraded}


def test_an_answer_from_the_right_page():
    """Given, cited, and standing there, however it is written."""
    found = check(ROW, answer("At 3.40m [2].", 2), PAGES)
    assert found == Checked(
        id="1",
        answerable=True,
        degraded=False,
        refused=False,
        cited=True,
        marks_hold=True,
        gold_found=True,
        gold_cited=True,
        literal=True,
        literal_cited=True,
    )


def test_the_right_answer_from_the_wrong_page():
    """It was found and not cited: that is seen."""
    found = check(ROW, answer("At 3.40 m [1].", 1), PAGES)
    assert (found.gold_found, found.gold_cited, found.literal_cited) == (True, False, False)


@pytest.mark.parametrize("text", ["At noon [3].", "At noon [1]."])
def test_a_mark_without_its_source_is_seen(text):
    """No such source, or one that is not said to be cited."""
    assert not check(ROW, answer(text), PAGES).marks_hold


def test_a_question_without_an_answer_has_no_gold():
    """Only whether it was refused counts."""
    row = ROW | {"answerable": False, "answer": "Not answerable"}
    found = check(row, answer("At noon [1].", 1), PAGES)
    assert (found.gold_found, found.gold_cited, found.literal) == (None, None, None)
    assert figures([found])["refused, and has none"] == (0, 1)
    assert figures([found])["page with the answer cited"] == (0, 0)


@pytest.mark.parametrize(
    ("text", "says_so"),
    [
        (NOTHING_RELEVANT, True),
        ("The documents do not mention a harbour.", True),
        ("I couldn't find that in the sources.", True),
        ("There is no information about it.", True),
        ("The gates do not close before noon [1].", False),
        ("It was opened in 1974 [2].", False),
    ],
)
def test_what_counts_as_a_refusal(text, says_so):
    """That there is no answer, and not any sentence with a not."""
    assert refused(text) is says_so
