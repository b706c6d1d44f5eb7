"""
Whether what was found has anything to do with the question.

Nearest neighbours always exist, so a question about rabbits gets passages from an annual report,
too. A question is called unrelated when neither its meaning nor its words come near: its best
cosine is below `MIN_COSINE`, and no passage has `MIN_SHARED_TERMS` of its words.

Chosen so that hardly anything answerable is refused; measured with the bundled model, chunks of
120 tokens, best cosine (1 % / 5 % / 50 % / 95 % of the questions):

    questions with an answer, asked of all documents      n     cosine                refused
        20 PDFs, 808 pages, English reports             113   .30 / .34 / .60 / .77    0.9 %
        encyclopaedia, English                          376   .25 / .31 / .51 / .67    0.5 %
        encyclopaedia, German                           376   .31 / .36 / .51 / .73    0.3 %
        medical abstracts                               300   .46 / .63 / .79 / .89    0.3 %
    questions of another domain than the documents
        encyclopaedia asked of the 20 reports           376   .18 / .20 / .31 / .43     44 %
        medicine asked of the 20 reports                300   .18 / .21 / .29 / .44     64 %
        medicine asked of the encyclopaedia             300   .05 / .08 / .17 / .31     95 %
        reports asked of the encyclopaedia              113   .12 / .16 / .24 / .32     92 %
        encyclopaedia asked of medicine                 376   .13 / .15 / .21 / .38     75 %
        German encyclopaedia asked of the 20 reports    376   .17 / .19 / .25 / .36     91 %

Of the cosine alone, .24 would be the most that refuses under 1 % everywhere, and it would let half
of the unrelated questions through.
Other models mostly give higher cosines: with those the rule errs towards answering.

Without a vector of the question only its words are left. They miss more, so less is asked of them:
`MIN_SHARED_TERMS_ALONE` refused 0.9 % of the 113 questions that the 20 reports answer (.4 would
refuse 14 %), and 96 % of the same questions when a handbook was asked instead.
"""

import re
from collections.abc import Iterable

from orchestrator.domain import Passage
from orchestrator.retrieval.lexical_index import terms

MIN_COSINE = 0.34
MIN_SHARED_TERMS = 0.4
MIN_SHARED_TERMS_ALONE = 0.25

_WORD = re.compile(r"\w+")
_STEM_CHARS = 5

# Words that ask about a document as a whole: "What is this report about?" is near to no passage in
# particular, and every passage helps to answer it.
_WHOLE_DOCUMENT = frozenset(
    """
    author authors book chapter content contents describe document documents explain file handbook
    main manual overview page pages paper pdf purpose report say says section sections study subject
    summarise summarize summary tell text title topic topics
    """.split()  # noqa: SIM905 - a list of them would take a page
)


def is_relevant(question: str, passages: Iterable[Passage], *, best_cosine: float | None) -> bool:
    """
    Whether the question is near the passages, by meaning or by words.

    Args:
        question: As it was asked.
        passages: What was found for it.
        best_cosine: The highest cosine that any chunk reached; None if the question has no vector.
    """
    if best_cosine is not None and best_cosine >= MIN_COSINE:
        return True
    share = MIN_SHARED_TERMS_ALONE if best_cosine is None else MIN_SHARED_TERMS
    words = terms(question)
    if _WHOLE_DOCUMENT.issuperset(words):
        return True
    wanted = {_stem(word) for word in words}
    return any(len(wanted & _stems(passage)) >= share * len(wanted) for passage in passages)


def _stems(passage: Passage) -> set[str]:
    text = f"{passage.filename} {passage.text}".replace("_", " ").lower()
    return {_stem(word) for word in _WORD.findall(text)}


def _stem(word: str) -> str:
    """The start of a word: "invested" and "investing" count as one."""
    return word[:_STEM_CHARS]
