"""The keys as they are now: followed while the service runs, and closed when they cannot be read."""

import asyncio
import logging
from contextlib import suppress

from orchestrator.access.api_keys import NOBODY, ApiKey, Identity, id_in
from orchestrator.access.key_file import KeyFile
from orchestrator.concurrency import Threads, forever
from orchestrator.errors import InvalidApiKey, StoreUnavailable

logger = logging.getLogger(__name__)

HOW = "Send one as `Authorization: Bearer tg_…`; `tidegate keys create` makes it."
_NO_KEY = ApiKey(id="", name="", owner="", digest=bytes(32), created_at=0, revoked_at=0)
"""Compared with where no key has the id, so that this takes as long as a wrong secret does."""


class Keyring:
    """
    Who a request is from.

    Keys are asked for from the moment in which the first one is made, also if all are revoked later:
    what was closed once is not opened by what goes missing.

    Args:
        file: Where they are kept.
        threads: Where it is read.
        refresh_s: Seconds between two looks at it.
    """

    def __init__(self, file: KeyFile, *, threads: Threads, refresh_s: float = 1.0) -> None:
        self._file = file
        self._threads = threads
        self._refresh_s = refresh_s
        self._keys: dict[str, ApiKey] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def required(self) -> bool:
        """Whether a request has to bring a key."""
        return bool(self._keys)

    def read(self) -> None:
        """
        Look at the file.

        Raises:
            StoreUnavailable: If it is there and cannot be read.
        """
        # A file that is gone takes no key with it: it would open every door.
        if found := self._file.all():
            self._keys = {key.id: key for key in found}

    def identify(self, authorization: str) -> Identity:
        """
        Whose request this is.

        Args:
            authorization: The header of that name, or "".

        Raises:
            InvalidApiKey: If a key is needed and this is none, or none that is good.
        """
        if not self._keys:
            return NOBODY
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise InvalidApiKey(f"A key is needed here. {HOW}")
        text = text.strip()
        key = self._keys.get(id_in(text) or "", _NO_KEY)
        if not key.opened_by(text):
            raise InvalidApiKey(f"This key is not known here, or was revoked. {HOW}")
        return Identity(owner=key.owner, key=key, admin=key.admin)

    async def start(self) -> None:
        """Follow the file from now on."""
        self._task = asyncio.create_task(forever(self._follow, what="the look at the keys"))

    async def aclose(self) -> None:
        """Follow it no longer."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        await asyncio.sleep(self._refresh_s)
        try:
            await self._threads.run(self.read)
        except StoreUnavailable as exc:
            logger.warning("%s The keys stay as they were.", exc.message)
