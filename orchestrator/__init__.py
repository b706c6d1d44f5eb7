"""The async service between people and the engine."""
