"""What the embedder's process does with memory that it needs no longer."""

import ctypes
import os
import sys
import time

import psutil
import pytest

from orchestrator.retrieval import embedder_process

BLOCK_BYTES = 64 * 1024
TAKEN_BYTES = 100_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
def test_memory_goes_back_when_nothing_is_asked(monkeypatch):
    """After a moment without a request, freed memory is the system's again."""
    monkeypatch.setattr(embedder_process, "IDLE_S", 0.0)
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    blocks = []
    for _ in range(TAKEN_BYTES // BLOCK_BYTES):
        blocks.append(libc.malloc(BLOCK_BYTES))
        ctypes.memset(blocks[-1], 1, BLOCK_BYTES)
    process = psutil.Process()
    full_bytes = process.memory_info().rss
    for block in blocks[:-1]:  # the last one holds the heap up, as a live object would
        libc.free(block)
    reader, writer = os.pipe()
    try:
        embedder_process.give_back_when_idle(reader)
    finally:
        os.close(reader)
        os.close(writer)
        given_back_bytes = full_bytes - process.memory_info().rss
        libc.free(blocks[-1])
    assert given_back_bytes > 0.8 * TAKEN_BYTES, "what is idle keeps what it took"


def test_a_request_is_not_kept_waiting(monkeypatch):
    """Who asks again at once is served at once."""
    monkeypatch.setattr(embedder_process, "IDLE_S", 60.0)
    reader, writer = os.pipe()
    os.write(writer, b"x")
    began_s = time.monotonic()
    embedder_process.give_back_when_idle(reader)
    assert time.monotonic() - began_s < 1
    os.close(reader)
    os.close(writer)
