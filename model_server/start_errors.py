"""
What a vLLM that ended said of the reason, as something that can be acted on. Pure.

Lines are those of vLLM 0.32; where a later release words one anew, the cause is unknown here, and the
supervisor does what it does about any failure.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from model_server.errors import (
    CheckpointError,
    ConfigurationError,
    DoesNotFit,
    EngineEnvironmentError,
    ModelServerError,
    PortInUse,
    UnsupportedModel,
)


class Cure(Enum):
    """What may help."""

    SHORTER_CONTEXT = "shorter context"
    LESS_MEMORY = "less memory"
    NONE = "none"
    """It fails the same way again until somebody changes something."""


@dataclass(frozen=True, slots=True)
class Cause:
    """
    Why an engine ended.

    Attributes:
        line: The line of its log that says so.
        max_model_len: Longest context that the engine says would fit; 0 if it does not say.
        error: What the program ends with where there is no cure.
    """

    cure: Cure
    line: str
    max_model_len: int = 0
    error: type[ModelServerError] = ModelServerError


_MAX_LINE_CHARS = 400
_ESTIMATE = re.compile(r"estimated maximum model length is (\d+)")

_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|Cannot allocate memory|MemoryError"
    # vLLM looks before it takes: somebody else was faster than the plan.
    r"|is less than desired (?:GPU|CPU) memory utilization|is less than the engine's budget",
    re.IGNORECASE,
)

# First match wins.
_HOPELESS: tuple[tuple[re.Pattern[str], type[ModelServerError]], ...] = (
    (re.compile(r"SafetensorError|Error while deserializing header|HeaderTooL"), CheckpointError),
    (re.compile(r"size mismatch for|Following weights were not initialized"), CheckpointError),
    (re.compile(r"Model architectures .* are not supported"), UnsupportedModel),
    (re.compile(r"To serve at least one request|No available memory for the cache"), DoesNotFit),
    (re.compile(r"[Aa]ddress already in use"), PortInUse),
    (re.compile(r"error: (?:unrecognized arguments|argument )"), ConfigurationError),
    # A warning may say the second half of it, about a module that is not needed.
    (re.compile(r"ModuleNotFoundError: No module named"), EngineEnvironmentError),
)


def find_cause(lines: Iterable[str]) -> Cause | None:
    """
    The cause that these last lines of an engine's log name; None if they name none.

    A context that is too long comes first: vLLM says the length that would do. Then what cannot be
    cured, for it names the fault itself; want of memory comes last, since a process that dies of
    anything may complain of memory on its way.
    """
    tail = [line.strip()[-_MAX_LINE_CHARS:] for line in lines]
    for line in tail:
        if found := _ESTIMATE.search(line):
            return Cause(Cure.SHORTER_CONTEXT, line, int(found[1]), DoesNotFit)
    for line in tail:
        for pattern, error in _HOPELESS:
            if pattern.search(line):
                return Cause(Cure.NONE, line, error=error)
    for line in tail:
        if _OUT_OF_MEMORY.search(line):
            return Cause(Cure.LESS_MEMORY, line, error=DoesNotFit)
    return None
