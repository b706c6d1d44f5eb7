"""What a reader sees stays; what nobody sees goes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.documents.text_cleaning import clean


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("a\x00b\x07c\x1b", "abc"),
        ("a\r\nb\rc\u2028d\x0ce", "a\nb\nc\nd\ne"),
        ("\ufb01rst \ufb02ood \ufb03 \ufb04", "first flood ffi ffl"),
        ("lone \ud800 half", "lone half"),
        ("\ud83c\udf0a", "\N{WATER WAVE}"),
        ("infor-\nmation", "information"),
        ("infor\u00ad\nmation and co\u00adop", "information and coop"),
        ("Anna-\nBertil, 3-\n4", "Anna-\nBertil, 3-\n4"),
        ("a  \t b\u00a0c   \n   d", "a b c\nd"),
        ("a\n\n \n\n\nb", "a\n\nb"),
        ("\ufeffzero\u200bwidth", "zerowidth"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("  \n x \n ", "x"),
        ("½ ² Å № ﷺ", "½ ² Å № ﷺ"),
    ],
)
def test_known_oddities(raw, seen):
    """Each oddity of extracted text becomes what a reader sees."""
    assert clean(raw) == seen


def test_glyph_names_of_a_font_without_a_character_map_go():
    """A page of glyph names is noise; a path in a sentence is not."""
    assert clean("Theory" + "/g18/g152/g3" * 30 + "of reasoned action") == (
        "Theory of reasoned action"
    )
    assert clean("see /g1 and /g2") == "see /g1 and /g2"


@settings(max_examples=150, database=None)
@given(st.text(st.characters(), max_size=60))
def test_clean_text_can_be_stored_and_is_clean_already(raw):
    """Whatever comes in, what comes out is UTF-8 without control characters, and stays as it is."""
    text = clean(raw)
    text.encode()
    assert not any(ord(c) < 32 and c != "\n" for c in text)
    assert clean(text) == text
