"""
The file that API keys are kept in: SQLite, beside the documents.

`tidegate keys` writes it while the orchestrator runs and reads it: each call is one short transaction
on a connection of its own.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from orchestrator.access.api_keys import ApiKey, KeyLimits, digest, new_secret
from orchestrator.access.ownership import OWNER_PATTERN
from orchestrator.domain import Band
from orchestrator.errors import InvalidParameter, StoreUnavailable

FILENAME = "keys.db"
_BUSY_TIMEOUT_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id                TEXT PRIMARY KEY,
    name              TEXT NOT NULL,
    owner             TEXT NOT NULL,
    digest            BLOB NOT NULL,
    created_at        REAL NOT NULL,
    admin             INTEGER NOT NULL,
    band              INTEGER NOT NULL,
    requests_per_min  INTEGER,
    tokens_per_min    INTEGER,
    documents         INTEGER,
    size_bytes        INTEGER,
    revoked_at        REAL
)
"""


class KeyFile:
    """
    The keys of one data folder, revoked ones too.

    Args:
        folder: The data folder.
        clock: Seconds since the epoch.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / FILENAME
        self._clock = clock

    def create(
        self,
        name: str,
        *,
        owner: str,
        admin: bool = False,
        band: Band = Band.INTERACTIVE,
        limits: KeyLimits = KeyLimits(),
    ) -> tuple[ApiKey, str]:
        """
        A new key and its text, which cannot be had a second time.

        Raises:
            InvalidParameter: If the owner's name cannot be one.
            StoreUnavailable: If the file cannot be written.
        """
        if not OWNER_PATTERN.fullmatch(owner):
            raise InvalidParameter(
                f"{owner!r} cannot be an owner: letters, digits, '.', '_' and '-', at most 64.",
                param="owner",
            )
        key_id, text = new_secret()
        key = ApiKey(
            id=key_id,
            name=name,
            owner=owner,
            digest=digest(text),
            created_at=self._clock(),
            admin=admin,
            band=band,
            limits=limits,
        )
        with self._opened(create=True) as db, db:
            db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _row(key))
        return key, text

    def all(self) -> list[ApiKey]:
        """
        Every key, the oldest first; none where the file was never made.

        Raises:
            StoreUnavailable: If the file is there and cannot be read.
        """
        if not self.path.exists():
            return []
        with self._opened() as db:
            return [_key(row) for row in db.execute("SELECT * FROM keys ORDER BY created_at, id")]

    def revoke(self, key_id: str) -> bool:
        """
        Whether there was such a good key; it is none any longer.

        Raises:
            StoreUnavailable: If the file cannot be written.
        """
        if not self.path.exists():
            return False
        with self._opened() as db, db:
            changed = db.execute(
                "UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL",
                (self._clock(), key_id),
            )
            return changed.rowcount > 0

    @contextmanager
    def _opened(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch(mode=0o600)  # nobody else's business, though it holds no secret
            with closing(sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)) as db:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA synchronous = FULL")
                if create:
                    db.execute(_SCHEMA)
                yield db
        except (sqlite3.Error, OSError) as exc:
            raise StoreUnavailable(
                f"The keys in {self.path} cannot be used: {exc}. Check the disk and the file's owner."
            ) from exc


def _row(key: ApiKey) -> tuple[object, ...]:
    limits = key.limits
    return (
        key.id,
        key.name,
        key.owner,
        key.digest,
        key.created_at,
        key.admin,
        key.band,
        limits.requests_per_min,
        limits.tokens_per_min,
        limits.documents,
        limits.size_bytes,
        key.revoked_at,
    )


def _key(row: sqlite3.Row) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        owner=row["owner"],
        digest=row["digest"],
        created_at=row["created_at"],
        admin=bool(row["admin"]),
        band=Band(row["band"]),
        limits=KeyLimits(
            requests_per_min=row["requests_per_min"],
            tokens_per_min=row["tokens_per_min"],
            documents=row["documents"],
            size_bytes=row["size_bytes"],
        ),
        revoked_at=row["revoked_at"],
    )
