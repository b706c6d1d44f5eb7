"""Chunks become findable, and are found."""
