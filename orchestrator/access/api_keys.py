"""
What an API key is: a name for people, an owner, and limits; the secret itself is kept by nobody.

A key is random, 256 bits of it, so one round of SHA-256 is all the hashing that it needs: there is no
dictionary to try. (Passwords would need a slow hash.)
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from orchestrator.access.ownership import LOCAL
from orchestrator.domain import Band

_TEXT = re.compile(r"tg_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_ID_BYTES, _SECRET_BYTES = 6, 32


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """
    What may be used up with one key; None is no limit.

    Attributes:
        requests_per_min: Requests of any kind, a minute; a whole minute's worth at once.
        tokens_per_min: Tokens of prompts and answers, likewise.
        documents: Documents that its owner may have.
        size_bytes: Bytes that their PDFs may take.
    """

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    documents: int | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """
    One key.

    Attributes:
        id: What it is called in logs and commands; no secret.
        name: What people call it.
        owner: Whose documents it opens; several keys may have one owner.
        digest: SHA-256 of the whole key, 32 bytes.
        admin: Whether it may see what the service as a whole is doing.
        band: The best priority that may be asked for with it.
        created_at: Seconds since the epoch.
        revoked_at: When it ceased to be good; None while it is.
    """

    id: str
    name: str
    owner: str
    digest: bytes
    created_at: float
    admin: bool = False
    band: Band = Band.INTERACTIVE
    limits: KeyLimits = KeyLimits()
    revoked_at: float | None = None

    def opened_by(self, text: str) -> bool:
        """Whether this is the key, found out in the same time whatever is wrong with it."""
        return hmac.compare_digest(self.digest, digest(text)) and self.revoked_at is None


@dataclass(frozen=True, slots=True)
class Identity:
    """
    On whose behalf a request is.

    Attributes:
        owner: Whose documents it may see.
        key: The key that it came with; None while there are no keys.
        admin: Whether it may see what the service as a whole is doing.
    """

    owner: str = LOCAL
    key: ApiKey | None = None
    admin: bool = True

    @property
    def limits(self) -> KeyLimits:
        """What it may use up."""
        return KeyLimits() if self.key is None else self.key.limits


NOBODY = Identity()
"""Whoever asks while there are no keys."""


def new_secret() -> tuple[str, str]:
    """(id, whole text) of a key that never was."""
    key_id = secrets.token_hex(_ID_BYTES)
    return key_id, f"tg_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def id_in(text: str) -> str | None:
    """The id that a key's text carries; None if it is no key of ours."""
    found = _TEXT.fullmatch(text)
    return found[1] if found else None


def digest(text: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(text.encode()).digest()
