"""Which questions the engine's options are compared on, and what the table says."""

from loadtest.engine_options import Question, Round, Told, choose, table


def test_the_smallest_documents_that_hold_enough_questions(tmp_path):
    """Small PDFs first, only such as are there, only questions whose answer is in the text."""
    (tmp_path / "large.pdf").write_bytes(b"x" * 100)
    (tmp_path / "small.pdf").write_bytes(b"x")
    asked = [
        {"pdf": "large.pdf", "question": "L1"},
        {"pdf": "small.pdf", "question": "S1"},
        {"pdf": "small.pdf", "question": "a figure", "text_gold": False},
        {"pdf": "absent.pdf", "question": "A1"},
        {"pdf": "large.pdf", "question": "L2", "text_gold": True},
    ]
    assert choose(asked, tmp_path, 2) == [Question("small.pdf", "S1"), Question("large.pdf", "L1")]
    assert len(choose(asked, tmp_path, 10)) == 3


def told(text: str, *, first_s: float = 0.2) -> Told:
    return Told(text, tokens=11, first_s=first_s, rest_s=0.5)


def test_the_table_compares_with_the_defaults():
    """Medians over rounds with their spread; an answer is the same only word for word."""
    reference = Round(
        "as planned", (told("a"), told("b")), (told("a"), told("b")), (told("a"),), 1.0
    )
    slow = (told("a", first_s=0.4), told("other", first_s=0.4))
    rows = table([reference, Round("ngram", slow, slow, slow, 2.0)]).splitlines()
    assert rows[2] == (
        "| as planned | 200 (200 to 200) | 200 (200 to 200) | 20 (20 to 20) | 11 (11 to 11) | 2 of 2 |"
    )
    assert rows[3] == (
        "| ngram | 400 (400 to 400) | 400 (400 to 400) | 20 (20 to 20) | 11 (11 to 11) | 1 of 2 |"
    )


def test_an_answer_of_one_token_has_no_pace():
    """Nothing followed the first token: neither fast nor slow."""
    assert Told("a", tokens=1, first_s=0.1, rest_s=0.0).pace is None
