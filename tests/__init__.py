"""Tests: unit, integration, contract."""
