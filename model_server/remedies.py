"""
What is changed after the engine ended, so that it does not end the same way again; kept on disk.

An engine that ran out of memory would run out of it again: it gets a notch less next time, and a
program that is started anew begins with what the one before had learnt. So does one whose engine was
seen to hold more than planned, before anything ends for that.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model_server.alternatives import MIN_CONTEXT_TOKENS
from model_server.memory import GIB, MIB, human
from model_server.planner import Goals
from model_server.start_errors import Cause, Cure, find_cause

_log = logging.getLogger(__name__)

NOTCH = 0.05
"""Share of the budget that one notch takes off."""

MAX_NOTCHES = 6
"""Beyond a third less it is not the plan's size that is wrong."""

MAX_EXTRA_BYTES = 2 * GIB
"""What is held beyond that, and grows, is a leak: no plan is large enough for one."""

_EXTRA_STEP_BYTES = 64 * MIB
"""The excess is rounded up to this, so that an engine which breathes is not learnt from for ever."""


@dataclass(frozen=True, slots=True)
class Adjustments:
    """
    What earlier lives of the engine have taught.

    Attributes:
        max_model_len: The context that the engine said would fit; None if it never did.
        notches: How often it ran out of memory.
        extra_bytes: What it was seen to hold beyond the formulas of the plan.
    """

    max_model_len: int | None = None
    notches: int = 0
    extra_bytes: int = 0

    def applied_to(self, goals: Goals) -> Goals:
        """The goals, lowered; never raised."""
        length = goals.max_model_len
        if self.max_model_len is not None:
            length = min(length or self.max_model_len, self.max_model_len)
        share = goals.memory_share * (1 - NOTCH * self.notches)
        return replace(
            goals, max_model_len=length, memory_share=share, extra_bytes=self.extra_bytes
        )


class Remedies:
    """
    Looks at how each life of the engine ended, and lowers the plan where that helps.

    Args:
        path: Where the adjustments are kept; a file that cannot be read counts as none.
        subject: What they hold for (model and device): those for anything else are not used.
        oom_kills: How many processes the kernel has killed for want of memory so far.
    """

    def __init__(self, *, path: Path, subject: str, oom_kills: Callable[[], int]) -> None:
        self._path = path
        self._subject = subject
        self._oom_kills = oom_kills
        self._kills_before = oom_kills()
        self.adjustments = self._load()
        self._planned_extra = self.adjustments.extra_bytes

    def life_begins(self) -> None:
        """An engine is about to be started, with the adjustments of now."""
        self._kills_before = self._oom_kills()
        self._planned_extra = self.adjustments.extra_bytes

    def learn(self, *, held_bytes: int, planned_bytes: int) -> None:
        """
        Plan for more from the next start on if the engine holds more than was planned for it.

        Args:
            held_bytes: What it holds of its device now.
            planned_bytes: All that its plan allows it, with the extra that was known then.
        """
        known = self.adjustments.extra_bytes
        if held_bytes <= planned_bytes or known >= MAX_EXTRA_BYTES:
            return
        steps = math.ceil((held_bytes - planned_bytes) / _EXTRA_STEP_BYTES)
        extra = min(MAX_EXTRA_BYTES, self._planned_extra + steps * _EXTRA_STEP_BYTES)
        if extra <= known:
            return
        self.adjustments = replace(self.adjustments, extra_bytes=extra)
        self._save()
        _log.warning(
            "the engine holds %s, %s were planned: the next start plans for %s more than the "
            "formulas (remembered in %s)",
            human(held_bytes),
            human(planned_bytes),
            human(extra),
            self._path,
        )

    def consider(self, tail: Sequence[str], *, was_ready: bool) -> str | None:
        """
        What was changed, in words; None if there is nothing to change.

        Args:
            tail: The last lines of the engine's log.
            was_ready: Whether it had served before it ended. What it says then is believed only of
                memory: the rest are faults of a start.

        Raises:
            ModelServerError: If another start would fail the same way; the line of the log says how.
        """
        cause = find_cause(tail)
        if self._oom_kills() > self._kills_before and (cause is None or was_ready):
            cause = Cause(Cure.LESS_MEMORY, "the kernel killed a process for want of memory")
        if cause is None or (was_ready and cause.cure is not Cure.LESS_MEMORY):
            return None
        lowered = self._lowered(cause)
        if lowered is None:
            if was_ready:
                return None
            raise cause.error(f"The engine cannot start: {cause.line}")
        self.adjustments = lowered
        self._save()
        return f"{self._words()}, because: {cause.line}"

    def _lowered(self, cause: Cause) -> Adjustments | None:
        """What is to hold from now on; None if lowering does not help or has helped too often."""
        now = self.adjustments
        if cause.cure is Cure.LESS_MEMORY and now.notches < MAX_NOTCHES:
            return replace(now, notches=now.notches + 1)
        if cause.cure is Cure.SHORTER_CONTEXT:
            known = now.max_model_len or cause.max_model_len + 1
            if MIN_CONTEXT_TOKENS <= cause.max_model_len < known:
                return replace(now, max_model_len=cause.max_model_len)
        return None

    def _words(self) -> str:
        now = self.adjustments
        parts = [f"{now.notches * NOTCH:.0%} less memory"] if now.notches else []
        if now.max_model_len is not None:
            parts.append(f"a context of {now.max_model_len} tokens")
        return f"the next start has {' and '.join(parts)} (remembered in {self._path})"

    def _load(self) -> Adjustments:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            if known.pop("subject") != self._subject:
                return Adjustments()
            found = Adjustments(**known)
            length = found.max_model_len
            if not 0 <= found.notches <= MAX_NOTCHES or not (length is None or length > 0):
                return Adjustments()
            if not 0 <= found.extra_bytes <= MAX_EXTRA_BYTES:
                return Adjustments()
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return Adjustments()
        if found != Adjustments():
            _log.warning(
                "an earlier engine here took more memory than planned: %s; delete %s to forget it",
                asdict(found),
                self._path,
            )
        return found

    def _save(self) -> None:
        """A disk that is full costs the memory of it, and nothing else."""
        text = json.dumps({"subject": self._subject, **asdict(self.adjustments)})
        temporary = self._path.with_suffix(".tmp")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self._path)
