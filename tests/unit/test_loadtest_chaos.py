"""What `make chaos` holds against a service."""

import pytest

from loadtest.chaos import judged
from loadtest.chaos_plugs import PLUGS, Plug
from loadtest.chaos_pulls import nothing
from loadtest.chaos_stage import WITHOUT
from loadtest.client_rules import ClientRules
from loadtest.figures import Window
from loadtest.generator import Attempt, Record
from loadtest.stack import MODELLED, Stack
from tests.chaos_red import REDS

RULES = ClientRules()
OUT = Window(5.0, 15.0)


def record(at_s, code="ok", *, status=200, degraded=None, server_ms=1.0):
    whole = code == "ok"
    tried = Attempt(code, status if whole else 503, 1.0, server_ms, None)
    return Record(
        at_s, "small", "load", "normal",
        attempts=[tried], whole=whole, degraded=degraded, tokens_s=(0.5,), total_s=1.0,
    )  # fmt: skip


def broken(*records, again_s=1.0, **having):
    plug = Plug("a", "b", nothing, **having)
    return judged(records, RULES, plug, OUT, again_s)


@pytest.mark.parametrize("code", ["engine_unavailable", "overloaded", "deadline_exceeded"])
def test_whoever_is_told_was_promised_no_more(code):
    """A code of the service's own breaks no promise, nor do passages alone."""
    assert broken(record(6.0, code), record(7.0, degraded="L3")) == []


@pytest.mark.parametrize("code", ["reset", "incomplete", "gave_up", "internal_error", "502"])
def test_an_end_without_a_word_is_a_broken_promise(code):
    """Broken connections, halves of answers, hangs and bugs are seen, whenever they came."""
    assert broken(record(20.0, code)) == [f"1 ended in {code}"]


def test_connections_may_break_while_the_program_itself_is_gone():
    """But nobody may hang even then."""
    assert broken(record(6.0, "reset"), connections=True) == []
    assert broken(record(6.0, "gave_up"), connections=True) == ["1 ended in gave_up"]


@pytest.mark.parametrize(
    ("again_s", "said"), [(None, "not again by the end"), (11.0, "after 11.0 s")]
)
def test_it_has_to_serve_again(again_s, said):
    """Late is as bad as never."""
    (only,) = broken(record(1.0), again_s=again_s)
    assert said in only


def test_what_must_not_be_noticed_is_held_to_that():
    """Passages alone are no answer where answers were promised."""
    served = [record(6.0 + n / 10) for n in range(9)]
    assert broken(*served, record(14.0, degraded="L1"), served=0.9) == []
    (only,) = broken(*served[:5], *(record(8.0, degraded="L3") for _ in range(5)), served=0.9)
    assert "50% served" in only


def test_passages_alone_are_enough_where_no_more_was_promised():
    """But a refusal is not."""
    passages = [record(6.0 + n / 10, degraded="L3") for n in range(9)]
    assert broken(*passages, record(14.0, "overloaded"), answered=0.9) == []
    (only,) = broken(*passages[:5], *[record(8.0, "overloaded")] * 5, answered=0.9)
    assert "50% answered" in only


def test_a_storm_is_refused_in_milliseconds():
    """And a storm in which nobody was refused proves nothing."""
    assert broken(record(6.0, "overloaded", server_ms=3.0), storm_x=20.0) == []
    (slow,) = broken(record(6.0, "overloaded", server_ms=30.0), storm_x=20.0)
    assert "30.0 ms" in slow
    assert broken(record(6.0), storm_x=20.0)


def test_plugs_have_names_of_their_own():
    """Each can be asked for."""
    assert len({plug.name for plug in PLUGS}) == len(PLUGS)


def test_each_plug_has_a_safeguard_without_which_it_is_red():
    """One each, and such as can be taken out."""
    assert [red.plug for red in REDS] == [plug.name for plug in PLUGS]
    assert {red.without for red in REDS} <= set(WITHOUT)


def test_an_engine_that_is_gone_has_no_family(monkeypatch):
    """Without a number psutil would mean the test's own family: everything that was started here."""
    monkeypatch.setattr(Stack, "keeper", lambda _self: {"pid": None})
    assert Stack(None, None, None, None, MODELLED).engine_family() == []
