"""The arithmetic of the retrieval figures."""

import json

import pytest

from orchestrator.domain import DocumentId
from tests.quality.evaluate import figures, rank_of, read_questions

A, B = DocumentId("a.pdf"), DocumentId("b.pdf")


def test_the_rank_is_that_of_the_first_gold_page():
    """Page and document have to match; 0 stands for not found."""
    gold = frozenset({(A, 3), (A, 4)})
    assert rank_of(gold, [(B, 3), (A, 4), (A, 3)]) == 2
    assert rank_of(gold, [(B, 3), (A, 1)]) == 0


def test_figures_are_shares_and_mean_reciprocal_rank():
    """Of ranks 1, 5, 10 and none."""
    assert figures([1, 5, 10, 0]) == pytest.approx({
        "@1": 0.25,
        "@5": 0.5,
        "@10": 0.75,
        "mrr": (1 + 0.2 + 0.1) / 4,
    })


def test_only_questions_that_text_can_answer_count(tmp_path):
    """`text_gold: false` is left out; a file without the field counts whole."""
    file = tmp_path / "questions.jsonl"
    rows = [{"id": 1, "text_gold": True}, {"id": 2, "text_gold": False}, {"id": 3}]
    rows += [{"id": 4, "text_gold": False, "answerable": False}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert [row["id"] for row in read_questions(file)] == [1, 3]
    assert [row["id"] for row in read_questions(file, without_answer=True)] == [1, 3, 4]
