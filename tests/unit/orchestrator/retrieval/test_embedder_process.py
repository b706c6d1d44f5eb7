"""The embedder's own process: its wire, and which arithmetic it chooses."""

import io

import numpy as np
import pytest

from orchestrator.retrieval.embedder_process import (
    cpu_has_bfloat16,
    read_header,
    serve,
    write_frame,
)


class FakeModel:
    """Two numbers a text, or an error."""

    dimension = 2
    max_tokens = 16
    dtype = "float32"

    def __init__(self):
        self.used = []

    def use_threads(self, wanted):
        self.used.append(wanted)

    def embed(self, texts):
        if "bad" in texts:
            raise RuntimeError("something about the text")
        return np.array([[1.0, len(text)] for text in texts], dtype=np.float32)


def test_a_request_says_with_how_many_threads():
    """A question takes one, so that it waits for nobody's turn but its own; documents take all."""
    requests, model = io.BytesIO(), FakeModel()
    write_frame(requests, {"texts": ["a"], "threads": 1})
    write_frame(requests, {"texts": ["b"]})
    requests.seek(0)
    serve(model, requests, io.BytesIO())
    assert model.used == [1, None]


def test_requests_are_answered_in_order_until_the_end():
    """Hello, vectors, an error that costs nothing, vectors; then the stream ends."""
    requests = io.BytesIO()
    for texts in (["a", "bcd"], ["bad"], ["é"]):
        write_frame(requests, {"texts": texts})
    requests.seek(0)
    replies = io.BytesIO()
    serve(FakeModel(), requests, replies)
    replies.seek(0)
    assert read_header(replies) == {"dimension": 2, "max_tokens": 16, "dtype": "float32"}
    assert read_header(replies) == {"rows": 2, "dimension": 2}
    assert np.frombuffer(replies.read(16), dtype="<f4").tolist() == [1.0, 1.0, 1.0, 3.0]
    assert read_header(replies) == {"error": "RuntimeError"}
    assert read_header(replies) == {"rows": 1, "dimension": 2}
    assert np.frombuffer(replies.read(8), dtype="<f4").tolist() == [1.0, 1.0]
    assert read_header(replies) is None


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x02\x00\x00\x00[]"])
def test_what_is_no_header_is_refused(data):
    """Neither four gigabytes nor a list is taken for a request."""
    with pytest.raises(ValueError, match="header"):
        read_header(io.BytesIO(data))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16 avx512_vnni", True),
        ("fpu amx_tile amx_bf16", True),
        ("fpu avx2 avx512f", False),
    ],
)
def test_bfloat16_is_used_where_the_cpu_has_it(flags, expected):
    """By the flags of the first core; none means float32."""
    cpuinfo = f"processor : 0\nmodel name : a\nflags\t\t: {flags}\nbugs : avx512_bf16\n"
    assert cpu_has_bfloat16(cpuinfo) is expected
    assert cpu_has_bfloat16("") is False
