"""Chunks that follow one another on a page are one passage."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain import ChunkId, DocumentId, Passage
from orchestrator.generation.neighbours import MAX_JOINED, joined

PAGE = "".join(f"Sentence {n:02} of the page. " for n in range(40))


def passage(chunk_id, start, end, *, page=1, document="a"):
    text = PAGE[start:end]
    return Passage(
        ChunkId(chunk_id), DocumentId(document), "a.pdf", page, page, start, end, text, 0.5, 10
    )


def spans(passages):
    return [(p.char_start, p.char_end) for p in passages]


def test_two_that_overlap_are_one_at_the_better_place():
    """The common text once, the tokens of both, the better one's score and id."""
    other = passage(9, 400, 500)
    better = passage(2, 90, 200)
    (first, second) = joined([better, other, passage(1, 0, 110)])
    assert (first.char_start, first.char_end, first.text) == (0, 200, PAGE[:200])
    assert (first.chunk_id, first.prompt_tokens) == (2, 20)
    assert second == other


def test_two_with_space_between_are_one():
    """Chunks are cut without their outer space."""
    (one,) = joined([passage(1, 0, 25), passage(2, 26, 60)])
    assert one.text == f"{PAGE[:25]}\n{PAGE[26:60]}"


def test_others_stay_as_they_are():
    """Far apart, on two pages, of two documents; the order is kept."""
    apart = [
        passage(1, 0, 100),
        passage(2, 200, 300),
        passage(3, 90, 200, page=2),
        passage(4, 90, 200, document="b"),
    ]
    assert joined(apart) == tuple(apart)
    assert joined([]) == ()


def test_no_more_than_a_few_are_joined():
    """A whole page is no passage."""
    chunks = [passage(n, 100 * n, 100 * n + 110) for n in range(7)]
    assert spans(joined(chunks)) == [(0, 310), (300, 610), (600, 710)]
    assert MAX_JOINED == 3


@given(st.permutations(range(8)), st.integers(0, 30))
def test_nothing_is_lost_and_nothing_comes_twice(order, overlap):
    """Whatever their order: the joined passages cover what the chunks did, each once."""
    chunks = [passage(n, 100 * n, 100 * n + 100 + overlap) for n in order]
    found = joined(chunks)
    assert sum(p.prompt_tokens for p in found) == 10 * len(chunks)
    assert all(p.text == PAGE[p.char_start : p.char_end] for p in found)
    assert {p.chunk_id for p in found} <= {c.chunk_id for c in chunks}
    assert found[0].chunk_id == chunks[0].chunk_id
