"""
Whose a collection is.

An owner's collections are stored under names that nobody else's can have: `owner/collection`. All that
is kept by collection (documents, indexes, words) is apart thereby, and the ids of documents are, too.
Collections of the time without keys have no owner before their names: they belong to `local`.
"""

import re

LOCAL = "local"
"""The owner of everything while there are no keys."""

OWNER_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_BETWEEN = "/"
"""Neither an owner nor a collection may have it in its name."""


def stored_name(owner: str, collection: str) -> str:
    """What an owner's collection is called in the store."""
    return f"{prefix(owner)}{collection}"


def shown_name(stored: str) -> str:
    """What its owner calls it."""
    return stored.rpartition(_BETWEEN)[2]


def owner_of(stored: str) -> str:
    """Whose it is."""
    return stored.rpartition(_BETWEEN)[0] or LOCAL


def prefix(owner: str) -> str:
    """What the names of all collections of an owner begin with; local ones have no `/` at all."""
    return "" if owner == LOCAL else f"{owner}{_BETWEEN}"
