"""Fixtures of the model server's tests."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """The supervisor is an asyncio program."""
    return "asyncio"
