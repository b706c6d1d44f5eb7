"""A file that goes while it is asked for."""

import pytest

from orchestrator.api.documents import DocumentFile
from orchestrator.errors import DocumentNotFound

SCOPE = {"type": "http", "method": "GET", "headers": []}


async def answer(response):
    """What is sent."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("nothing is read")  # pragma: no cover

    await response({**SCOPE, "asgi": {"spec_version": "2.4"}}, receive, send)
    return sent


async def test_a_file_deleted_since_it_was_found_is_told(tmp_path):
    """It is what it would have been a moment later, and no failure of the service."""
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.7")
    gone = DocumentNotFound("deleted just now")
    response = DocumentFile(path, filename="a.pdf", shown=True, gone=gone)
    start, *_ = await answer(response)
    headers = dict(start["headers"])
    assert headers[b"content-length"] == b"8"
    assert headers[b"content-disposition"] == b'inline; filename="a.pdf"'
    path.unlink()
    with pytest.raises(DocumentNotFound, match="just now"):
        await answer(DocumentFile(path, filename="a.pdf", shown=False, gone=gone))
