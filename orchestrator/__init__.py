"""The async service between people and the engine."""

__version__ = "0.1.0"
