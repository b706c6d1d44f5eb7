"""Chunks that follow one another on a page become one passage: a source is read as it stands there."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from orchestrator.domain import Passage

MAX_JOINED = 3
"""Chunks of one passage at most: a mark on half a page points at nothing."""
_GAP_CHARS = 4
"""Between two chunks that follow one another there is nothing but space."""


def joined(passages: Sequence[Passage]) -> tuple[Passage, ...]:
    """
    The passages, neighbours as one, each at the place of the better of them.

    What two chunks have in common comes once. The tokens of a joined passage are those of its parts,
    which is what it takes at most.
    """
    rank = {passage.chunk_id: place for place, passage in enumerate(passages)}
    found: list[tuple[int, Passage]] = []
    for run in _runs(sorted(passages, key=lambda p: (p.document_id, p.page, p.char_start))):
        best = min(run, key=lambda p: rank[p.chunk_id])
        found.append((rank[best.chunk_id], _one(run, best) if len(run) > 1 else best))
    return tuple(passage for _, passage in sorted(found, key=lambda item: item[0]))


def _runs(passages: Sequence[Passage]) -> list[list[Passage]]:
    """Passages in reading order, those that follow one another together."""
    runs: list[list[Passage]] = []
    for passage in passages:
        if runs and len(runs[-1]) < MAX_JOINED and _follows(runs[-1][-1], passage):
            runs[-1].append(passage)
        else:
            runs.append([passage])
    return runs


def _follows(before: Passage, passage: Passage) -> bool:
    """Whether a passage begins where the other ends, or a little before."""
    return (
        (before.document_id, before.page) == (passage.document_id, passage.page)
        and before.page_end == before.page
        and before.char_start < passage.char_start <= before.char_end + _GAP_CHARS
        and passage.char_end > before.char_end
    )


def _one(run: Sequence[Passage], best: Passage) -> Passage:
    text = run[0].text
    for before, passage in pairwise(run):
        common = before.char_end - passage.char_start
        text += passage.text[common:] if common >= 0 else f"\n{passage.text}"
    return replace(
        best,
        char_start=run[0].char_start,
        char_end=run[-1].char_end,
        text=text,
        prompt_tokens=sum(passage.prompt_tokens for passage in run),
        chunks=len(run),
    )
