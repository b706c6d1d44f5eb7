"""What the orchestrator has acknowledged, and whether it still knows all of it after a crash."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TERMINAL = {"ready", "failed"}


@dataclass(slots=True)
class Entry:
    """
    A document that was sent, under a name of its own.

    Attributes:
        acknowledged: Whether its upload was answered with 2xx.
        document_id: From that answer.
        replaces: Name of the document that it takes the place of.
        doomed: Whether its deletion was asked for; `gone` once that was answered with 2xx.
        source: Which bytes it was made from; documents of one source have the same chunks.
    """

    source: str
    acknowledged: bool = False
    document_id: str = ""
    replaces: str | None = None
    doomed: bool = False
    gone: bool = False


@dataclass(slots=True)
class Ledger:
    """Every document by its name; used by the threads that send, and held against what is there."""

    entries: dict[str, Entry] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sending(self, name: str, source: str, *, replaces: str | None = None) -> None:
        """Note an upload before it is sent."""
        with self.lock:
            self.entries[name] = Entry(source, replaces=replaces)

    def taken(self, name: str, document_id: str) -> None:
        """Note that it was acknowledged."""
        with self.lock:
            self.entries[name].acknowledged = True
            self.entries[name].document_id = document_id

    def refused(self, name: str) -> None:
        """Note that it was not taken, which the orchestrator has said."""
        with self.lock:
            del self.entries[name]

    def deleting(self, name: str) -> None:
        """Note a deletion before it is sent: from here on both outcomes are right."""
        with self.lock:
            self.entries[name].doomed = True

    def deleted(self, name: str) -> None:
        """Note that the deletion was acknowledged."""
        with self.lock:
            self.entries[name].gone = True

    def come_through(self, stored: Mapping[str, Mapping[str, Any]]) -> None:
        """
        Note what became of acts that a crash cut off: nothing is under way any more.

        What is there is there to stay, and what is not does not come back. And clients can delete what
        nobody acknowledged: otherwise the library would grow with every crash.

        Args:
            stored: The documents that the orchestrator lists, by their file's name.
        """
        with self.lock:
            for name, entry in list(self.entries.items()):
                if name in stored and not entry.gone:
                    entry.acknowledged, entry.document_id = True, str(stored[name]["id"])
                    entry.doomed = False
                elif entry.doomed:
                    entry.gone = True
                elif not entry.acknowledged and (not entry.replaces or entry.replaces in stored):
                    del self.entries[name]

    def living(self) -> list[str]:
        """Names of documents that are acknowledged, and neither doomed nor to be replaced."""
        with self.lock:
            replaced = {entry.replaces for entry in self.entries.values()}
            return [
                name
                for name, entry in self.entries.items()
                if entry.acknowledged and not entry.doomed and name not in replaced
            ]

    def broken_promises(self, stored: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """
        What does not hold of the documents that are there, in words.

        Args:
            stored: The documents that the orchestrator lists, by their file's name.
        """
        with self.lock:
            found = [f"{name} was never sent" for name in stored if name not in self.entries]
            for name, entry in self.entries.items():
                ready = [n for n in self._successors(name) if _is_ready(stored.get(n))]
                if name in stored and entry.gone:
                    found.append(f"{name} was deleted, and is there again")
                if name in stored and ready:
                    found.append(f"{name} is there beside {ready[0]}, which replaces it")
                may_be_gone = entry.doomed or ready or self._was_replaced(name, stored)
                if name not in stored and entry.acknowledged and not may_be_gone:
                    found.append(f"{name} was acknowledged, and is lost")
            return found

    def _successors(self, name: str) -> list[str]:
        return [other for other, entry in self.entries.items() if entry.replaces == name]

    def _was_replaced(self, name: str, stored: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a successor may have been ready once, and be gone itself since."""
        return any(
            successor not in stored
            and (self.entries[successor].doomed or self._successors(successor))
            for successor in self._successors(name)
        )


def _is_ready(document: Mapping[str, Any] | None) -> bool:
    return document is not None and document["status"] == "ready"
