"""The engines that may answer: the first one, and those that stand in for it."""

from dataclasses import dataclass

from orchestrator.generation.engine_client import EngineClient
from orchestrator.generation.engine_monitor import EngineMonitor


@dataclass(frozen=True, slots=True)
class Engine:
    """
    One engine: how it is asked, and what is known of it.

    Attributes:
        name: How metrics, breakers and answers call it.
    """

    name: str
    client: EngineClient
    monitor: EngineMonitor
