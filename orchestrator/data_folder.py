"""One orchestrator a data folder: two would take each other's work for abandoned."""

import fcntl
import os
from pathlib import Path
from typing import IO

from orchestrator.errors import StoreUnavailable

LOCK_NAME = "orchestrator.lock"


class DataFolder:
    """
    The folder of everything that outlives the process.

    Args:
        path: Made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def claim(self) -> None:
        """
        Take the folder until `release`, or until the process ends, however it ends.

        Raises:
            StoreUnavailable: If another orchestrator has it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK_NAME).open("a+")
        except OSError as exc:
            raise StoreUnavailable(
                f"The data folder {self.path} cannot be used ({exc.strerror}). Check its owner and "
                "the disk, or set ORCHESTRATOR_DATA_DIR."
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            lock.close()
            raise StoreUnavailable(
                f"The data folder {self.path} is in use by another orchestrator (pid {pid}). Stop "
                "that one, or set ORCHESTRATOR_DATA_DIR."
            ) from exc
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
