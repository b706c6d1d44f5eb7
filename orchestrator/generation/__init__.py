"""Passages and a question become an answer."""
