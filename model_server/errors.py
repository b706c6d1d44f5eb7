"""
The one error tree of the model server.

    ModelServerError
    ├─ ConfigurationError       2  a setting is missing, wrong or unknown
    ├─ NoDevice                 3
    ├─ UnsupportedModel         4
    ├─ CheckpointError          5
    ├─ DoesNotFit               6
    ├─ PortInUse                7
    ├─ EngineEnvironmentError   8
    └─ EngineDidNotStart        1

The number is the program's exit code: 2 to 8 will fail the same way again until somebody changes
something, 1 may go away by itself. Every message says what happened, the limit, and what to do.
"""

from typing import ClassVar


class ModelServerError(Exception):
    """
    Base of everything that the model server raises on purpose.

    Attributes:
        code: Stable snake_case word, for logs and the control API.
        exit_code: What the program ends with.
    """

    code: ClassVar[str] = "internal_error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(ModelServerError):
    """A setting is missing, out of range, or not a setting at all."""

    code = "configuration_error"
    exit_code = 2


class NoDevice(ModelServerError):
    """The device that the settings ask for is not in this machine."""

    code = "no_device"
    exit_code = 3


class UnsupportedModel(ModelServerError):
    """The model is whole, but not of a kind whose memory this program can plan."""

    code = "unsupported_model"
    exit_code = 4


class CheckpointError(ModelServerError):
    """The model's folder is missing, incomplete, or not readable as a model."""

    code = "checkpoint_error"
    exit_code = 5


class DoesNotFit(ModelServerError):
    """The model and its goals take more memory than there is; the message carries the sums."""

    code = "does_not_fit"
    exit_code = 6


class PortInUse(ModelServerError):
    """Another program listens where the engine or the control API should."""

    code = "port_in_use"
    exit_code = 7


class EngineEnvironmentError(ModelServerError):
    """The engine cannot be started at all: its interpreter or its package is missing."""

    code = "engine_environment_error"
    exit_code = 8


class EngineDidNotStart(ModelServerError):
    """The engine was started again and again and never became ready."""

    code = "engine_did_not_start"
