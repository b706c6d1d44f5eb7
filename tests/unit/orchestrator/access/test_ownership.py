"""Whose a collection is, by its stored name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.access.ownership import (
    LOCAL,
    OWNER_PATTERN,
    owner_of,
    prefix,
    shown_name,
    stored_name,
)

OWNERS = st.from_regex(OWNER_PATTERN, fullmatch=True)
COLLECTIONS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)


@given(OWNERS, COLLECTIONS)
def test_a_name_is_its_owners_and_comes_back(owner, collection):
    """Whatever the two are called."""
    stored = stored_name(owner, collection)
    assert (owner_of(stored), shown_name(stored)) == (owner, collection)
    assert stored.startswith(prefix(owner))


@given(st.tuples(OWNERS, COLLECTIONS), st.tuples(OWNERS, COLLECTIONS))
def test_two_have_the_same_name_only_if_they_are_the_same(one, other):
    """No owner can give a collection a name that is another's."""
    assert (stored_name(*one) == stored_name(*other)) == (one == other)


@pytest.mark.parametrize("collection", ["default", "papers"])
def test_what_was_there_before_keys_is_local(collection):
    """Its name needs no change."""
    assert stored_name(LOCAL, collection) == collection
    assert owner_of(collection) == LOCAL
