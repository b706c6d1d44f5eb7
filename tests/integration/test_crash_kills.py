"""What 500 kills prove (`make crash-kills`), with a few."""

from loadtest.crash_kills import crash
from loadtest.crash_ledger import Ledger

KILLS = 4


def test_nothing_acknowledged_is_lost_by_kill_9():
    """Uploads, replacements, deletions and snapshots, cut off anywhere: all promises hold after it."""
    kills = crash(KILLS, None, settle_every=KILLS + 1)  # all work is let finish at the end alone
    assert len(kills) == KILLS + 1
    assert [what for kill in kills for what in kill.broken] == []
    assert any(kill.at_work for kill in kills)


READY, QUEUED = {"status": "ready"}, {"status": "queued"}


def ledger(**replaces):
    """Acknowledged documents, by what each of them replaces."""
    made = Ledger()
    for name, old in replaces.items():
        made.sending(name, "source", replaces=old)
        made.taken(name, f"id of {name}")
    return made


def test_a_lost_document_is_noticed():
    """Acknowledged, and neither there nor deleted nor replaced."""
    assert ledger(a=None, b=None).broken_promises({"a": READY}) == [
        "b was acknowledged, and is lost"
    ]


def test_what_was_not_acknowledged_may_be_there_or_not():
    """It was on its way when the process died."""
    made = ledger(a=None)
    made.sending("b", "source")
    assert made.broken_promises({"a": READY}) == []
    assert made.broken_promises({"a": READY, "b": QUEUED}) == []
    assert made.broken_promises({"a": READY, "c": QUEUED}) == ["c was never sent"]


def test_a_deleted_document_stays_away():
    """While the deletion is under way both are right; after its answer only one is."""
    made = ledger(a=None)
    made.deleting("a")
    assert made.broken_promises({"a": READY}) == made.broken_promises({}) == []
    made.deleted("a")
    assert made.broken_promises({"a": READY}) == ["a was deleted, and is there again"]


def test_what_a_crash_cut_off_is_known_after_it():
    """Taken after all, not taken, deleted after all, not deleted: each holds from then on."""
    made = ledger(a=None, b=None)
    made.sending("came", "source")
    made.sending("lost", "source", replaces="a")
    made.deleting("a")
    made.deleting("b")
    made.come_through({"a": READY | {"id": "1"}, "came": QUEUED | {"id": "2"}})
    assert made.living() == ["a", "came"]
    assert made.entries["came"].document_id == "2"
    assert made.broken_promises({"a": READY, "b": READY}) == [
        "b was deleted, and is there again",
        "came was acknowledged, and is lost",
    ]
    assert "a was acknowledged, and is lost" in made.broken_promises({"came": READY})


def test_a_replacement_that_did_not_come_through_may_have_been_replaced_itself():
    """Its forebear is gone: it was ready once, so that is no loss."""
    made = ledger(old=None)
    made.sending("new", "source", replaces="old")
    made.deleting("old")
    made.come_through({})
    assert made.broken_promises({}) == []


def test_one_of_old_and_new_is_there():
    """The old one until the new one is ready, then the new one alone."""
    made = ledger(old=None, new="old")
    assert made.broken_promises({"old": READY, "new": QUEUED}) == []
    assert made.broken_promises({"new": READY}) == []
    assert made.broken_promises({"new": QUEUED}) == ["old was acknowledged, and is lost"]
    assert made.broken_promises({"old": READY, "new": READY}) == [
        "old is there beside new, which replaces it"
    ]


def test_a_successor_may_be_gone_itself():
    """Replaced in its turn, or deleted after it was ready."""
    chain = ledger(old=None, new="old", newest="new")
    assert chain.broken_promises({"newest": READY}) == []
    made = ledger(old=None, new="old")
    made.deleting("new")
    made.deleted("new")
    assert made.broken_promises({}) == []
