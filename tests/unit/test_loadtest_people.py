"""What people do in a load test, what is written down of it, and what has to come of it."""

import json
import random

import pytest

from loadtest import logbook, objectives, page, workload
from loadtest.logbook import Entry, Logbook, Sample, Try, refused
from loadtest.shapes import SHAPES, people, phase_at
from loadtest.streaming import read_stream
from loadtest.workload import Habits, Question, Workload, replay

QUESTIONS = [Question(f"{n % 5}.pdf", f"What is {n}?") for n in range(50)]


# -- shapes


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_fills_its_run(name):
    """The phases of every shape add up, so that none is missing and none is cut."""
    assert sum(phase.share for phase in SHAPES[name]) == pytest.approx(1.0)
    assert phase_at(SHAPES[name], 0.0, seconds=60) == (0, SHAPES[name][0])
    assert phase_at(SHAPES[name], 60.1, seconds=60) is None


def test_a_burst_is_over_when_it_is_over():
    """Each moment has its phase, and a phase its people: one at least."""
    found = [phase_at(SHAPES["burst"], at_s, seconds=100)[1].name for at_s in (10, 40, 70)]
    assert found == ["before", "burst", "after"]
    assert people(SHAPES["burst"][1], 20) == 60
    assert people(SHAPES["burst"][0], 1) == 1


# -- what people do


def acts(seed, count=400):
    rng = random.Random(seed)  # noqa: S311 - a reproducible load
    found = Workload(QUESTIONS, Habits(), seed=7)
    return [found.act(rng, "And before?") for _ in range(count)]


def test_the_same_seed_does_the_same():
    """A run can be had again."""
    assert acts(1) == acts(1)
    assert acts(1) != acts(2)


def test_people_ask_upload_and_hang_up():
    """Every kind of act comes, some documents are hot, and some questions follow others."""
    found = acts(1)
    assert {act.kind for act in found} == set(workload.KINDS)
    asked = [act.question for act in found if act.question]
    by_document = [sum(q in asked_of for q in asked) for asked_of in _texts_by_document()]
    assert max(by_document) > 2 * min(by_document)
    assert 0 < sum(bool(act.history) for act in found) < len(found) / 2


def _texts_by_document():
    documents = sorted({q.document for q in QUESTIONS})
    return [[q.text for q in QUESTIONS if q.document == document] for document in documents]


def test_nothing_to_ask_is_said():
    """An empty file of questions is a mistake, told at once."""
    with pytest.raises(ValueError, match="nothing to ask"):
        Workload([], Habits(), seed=1)


def row(at_s, session, passages, tokens=100):
    return {"at_s": at_s, "session": session, "passages": passages, "output_tokens": tokens}


def test_a_trace_keeps_what_was_hot_and_who_asked():
    """The same passage is the same question, a session has a history, and time is compressed."""
    rows = [row(0.0, "a", [5, 6]), row(10.0, "b", [5]), row(20.0, "a", [7], tokens=0)]
    first, second, third = replay(rows, QUESTIONS, speed=10)
    assert [one.at_s for one in (first, second, third)] == [0.0, 1.0, 2.0]
    assert first.act.question == second.act.question
    assert (first.person, first.act.history) == ("a", ())
    assert third.act.history[0] == ("user", first.act.question)
    assert (first.act.max_tokens, third.act.max_tokens) == (100, 1)


def test_a_row_that_is_none_is_named():
    """A trace of another kind is refused with the number of its first wrong row."""
    with pytest.raises(ValueError, match="row 2"):
        replay([row(0.0, "a", []), {"at": 1}], QUESTIONS, speed=1)


def test_questions_come_from_a_file(tmp_path):
    """A line without a question is named; the others are read."""
    path = tmp_path / "questions.jsonl"
    path.write_text('{"pdf": "a.pdf", "question": "Why?"}\n\n')
    assert workload.read_questions(path) == [Question("a.pdf", "Why?")]
    path.write_text('{"pdf": "a.pdf"}\n')
    with pytest.raises(ValueError, match="question"):
        workload.read_questions(path)


# -- streams


def stream_of(*pieces):
    ticks = iter(range(1, 100))
    return read_stream(pieces, began_s=0.0, clock=lambda: float(next(ticks)))


def test_our_own_stream_is_timed():
    """First token, gaps and the whole answer, whatever the pieces are; comments are none of it."""
    seen = stream_of(
        b": keep-alive\n\nevent: sources\ndata: {}\n\n",
        b'event: token\ndata: {"text": "At"}\n\nevent: tok',
        b'en\r\ndata: {"text": " 3"}\r\n\r\n',
        b'event: done\ndata: {"answer": "At 3"}\n\n',
    )
    assert (seen.first_token_s, seen.gaps_s) == (2.0, [1.0])
    assert (seen.ending, seen.payload) == ("done", {"answer": "At 3"})


def test_openais_stream_is_timed():
    """Chunks without text are no token, and [DONE] is the end."""
    seen = stream_of(
        b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "At"}}]}\n\n',
        b'data: {"choices": []}\n\ndata: [DONE]\n\n',
    )
    assert (seen.first_token_s, seen.ending) == (2.0, "done")


@pytest.mark.parametrize(
    ("piece", "ending"),
    [
        (b'event: error\ndata: {"error": {"code": "engine_error"}}\n\n', "error"),
        (b'data: {"error": {"code": "engine_error"}}\n\n', "error"),
        (b'event: token\ndata: {"text": "At"}\n\n', "cut"),
        (b"", "cut"),
        (b"event: done\ndata: {", "cut"),
    ],
)
def test_a_stream_that_did_not_end_well_is_no_answer(piece, ending):
    """An error event is told; bytes that stop are a cut."""
    assert stream_of(piece).ending == ending


# -- what is written down


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (Try(429, "queue_full", told_s=3.0), "told"),
        (Try(429, "queue_full"), "failed"),
        (Try(503, "not_ready", told_s=5.0), "told"),
        (Try(504, "deadline_exceeded"), "told"),
        (Try(200, "engine_unavailable"), "told"),
        (Try(200, "internal_error"), "failed"),
        (Try(500, "internal_error"), "failed"),
        (Try(502, "engine_error"), "failed"),
        (Try(0, "ConnectionError"), "failed"),
    ],
)
def test_told_is_who_knows_what_to_do(last, outcome):
    """A refusal that says when to come back, a deadline, an error in the stream; never a bug."""
    assert refused(last) == outcome


def entry(at_s, outcome="whole", **having):
    given = {"kind": "stream", "phase": "constant", "first_token_s": 1.0, "tries": [Try(200)]}
    return Entry(at_s, outcome=outcome, **{**given, **having})


def book(*entries, lost=()):
    samples = [Sample(float(n), people=3, open=1, running=1, rss_bytes=10**9) for n in range(60)]
    about = {"shape": "constant", "seconds": 60.0}
    return Logbook(about, list(entries), samples, list(lost))


def test_a_logbook_comes_back_from_its_file(tmp_path):
    """A run can be looked at again without being run again."""
    kept = book(entry(1.0), entry(2.0, "told", tries=[Try(429, "queue_full", 2.0)]), lost=["doc-1"])
    logbook.write(kept, tmp_path / "log" / "book.jsonl")
    assert logbook.read(tmp_path / "log" / "book.jsonl") == kept


# -- what has to come of it


def missed(found):
    return {v.objective.name for v in objectives.verdicts(found) if not v.held}


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({}, set()),
        ({"outcome": "hung"}, {"hung", "untold", "served"}),
        ({"outcome": "failed"}, {"untold", "served"}),
        ({"outcome": "cut"}, {"untold", "cut", "served"}),
        ({"outcome": "told"}, {"served"}),
        ({"outcome": "told", "phase": "tenfold"}, set()),
        ({"outcome": "degraded", "degraded": "L3"}, {"served"}),
        ({"outcome": "degraded", "degraded": "L1"}, set()),
        ({"first_token_s": 11.0}, {"first_token_s"}),
        ({"late_s": 1.0}, {"late_ms"}),
        ({"kind": "leave", "outcome": "left"}, set()),
    ],
)
def test_each_objective_sees_its_own(bad, names):
    """One bad act among five misses what it should, and nothing else."""
    assert missed(book(*(entry(float(n)) for n in range(4)), entry(5.0, **bad))) == names


def test_a_lost_document_is_seen():
    """What was said to be ready has to be there at the end."""
    assert missed(book(entry(1.0), lost=["doc-1"])) == {"lost"}


@pytest.mark.parametrize(("phase", "held"), [("soak", False), ("constant", True)])
def test_a_soak_in_which_something_grows_is_seen(phase, held):
    """The last quarter against the second: what is taken at the beginning is no growth."""
    book = Logbook()
    book.entries = [Entry(at_s, "ask", phase, outcome="whole") for at_s in (0.0, 400.0)]
    book.samples = [
        Sample(float(n), 1, 0, rss_bytes=100 + 100 * (n > 50) + 60 * (n > 300), threads=9 + n % 2)
        for n in range(400)
    ]
    grew = next(v for v in objectives.verdicts(book) if v.objective.name == "grew")
    assert grew.held == held
    assert objectives.growth(book.samples) == {"memory": 1.3, "threads": pytest.approx(1, abs=0.1)}


def test_limits_can_be_set_and_names_are_checked():
    """Another limit counts, and a name that is none is refused with those that there are."""
    (first,) = (
        v
        for v in objectives.verdicts(book(entry(1.0)), {"first_token_s": 0.5})
        if v.objective.name == "first_token_s"
    )
    assert not first.held
    with pytest.raises(ValueError, match="first_token_s"):
        objectives.verdicts(book(entry(1.0)), {"ttft": 1.0})


def test_a_limit_that_is_none_is_told():
    """NAME=VALUE is read, and anything else is refused with how to write it."""
    assert objectives.limits(["first_token_s=5", "served=0.8"]) == {
        "first_token_s": 5.0,
        "served": 0.8,
    }
    for text in ("first_token_s", "first_token_s=soon"):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            objectives.limits([text])


def test_an_empty_run_has_nothing_to_hold():
    """Without acts there is no share and no percentile, and no division by zero."""
    assert missed(book()) == set()


# -- the page


def test_the_page_shows_what_was_seen(tmp_path, capsys):
    """Table, JSON and pictures of one logbook; what it says is escaped."""
    path = tmp_path / "logbook.jsonl"
    told = entry(30.0, "told", tries=[Try(429, "<b>", 2.0)], first_token_s=None)
    kept = book(*(entry(float(n)) for n in range(0, 60, 2)), told)
    kept.about["target"] = "<script>"
    logbook.write(kept, path)
    found = page.written(path, {})
    assert all(verdict.held for verdict in found)
    shown = (tmp_path / "index.html").read_text()
    assert shown.count("<svg") >= 6
    assert "<script>" not in shown
    assert "<b>" not in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["phases"][0]["whole"] == 30
    assert report["phases"][0]["told"] == 1
    assert "held" in capsys.readouterr().out
