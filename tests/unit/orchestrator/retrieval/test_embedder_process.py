"""The embedder's own process: its wire, and which arithmetic it chooses."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.retrieval.embedder_process import (
    Model,
    cap_gpu_memory,
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

    def embed(self, texts, *, threads=None):
        self.used.append(threads)
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


def make_torch(*, cards):
    """A torch with so many cards of 8 GiB, which notes the caps that it is given."""
    caps = []
    cuda = SimpleNamespace(
        device_count=lambda: cards,
        get_device_properties=lambda _index: SimpleNamespace(total_memory=8 << 30),
        set_per_process_memory_fraction=lambda share, index: caps.append((share, index)),
        empty_cache=lambda: None,
    )
    return SimpleNamespace(__version__="2.0", cuda=cuda, OutOfMemoryError=MemoryError), caps


@pytest.mark.parametrize(
    ("device", "num_bytes", "cap"),
    [("cuda", 1 << 30, (0.125, 0)), ("cuda:1", 2 << 30, (0.25, 1)), ("cuda", 9 << 30, (1.0, 0))],
)
def test_a_gpu_is_taken_up_to_the_cap(device, num_bytes, cap):
    """Bytes become the share of the card that torch knows; never more than all of it."""
    torch, caps = make_torch(cards=2)
    cap_gpu_memory(torch, device, num_bytes)
    assert caps == [cap]


@pytest.mark.parametrize(("device", "cards"), [("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_that_is_not_there_is_said_with_what_to_do(device, cards):
    """One line, and nothing is capped."""
    torch, caps = make_torch(cards=cards)
    with pytest.raises(SystemExit, match=f"EMBEDDER_DEVICE={device}, but .* set it to cpu"):
        cap_gpu_memory(torch, device, 1 << 30)
    assert caps == []


class SmallModel(Model):
    """One on a card that holds two texts at a time; a long text does not fit at all."""

    def __init__(self):
        self._torch, _ = make_torch(cards=1)
        self._parallel = 1
        self.batches = []

    def _embed(self, texts):
        if len(texts) > 2 or "long" in texts:
            raise self._torch.OutOfMemoryError
        self.batches.append(list(texts))
        return np.array([[float(len(text))] for text in texts], dtype=np.float32)


def test_a_batch_that_does_not_fit_the_card_is_halved():
    """Until it fits, in order; what does not fit alone is told."""
    model = SmallModel()
    texts = ["a", "bc", "def", "ghij", "klmno"]
    assert model.embed(texts)[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert model.batches == [["a", "bc"], ["def"], ["ghij", "klmno"]]
    with pytest.raises(MemoryError):
        model.embed(["a", "long"])


class TwoAtATime(Model):
    """One whose batches are computed in two parts, which wait for each other."""

    dimension = 1

    def __init__(self):
        self._torch, _ = make_torch(cards=0)
        self._parallel = 2
        self._parts = ThreadPoolExecutor(2)
        self._both = threading.Barrier(2)
        self.batches = []

    def _embed(self, texts):
        self._both.wait(5)
        self.batches.append(list(texts))
        return np.array([[float(len(text))] for text in texts], dtype=np.float32)


def test_a_batch_is_computed_in_parts_side_by_side():
    """Dealt out, so that all take as long, and put together in order."""
    model = TwoAtATime()
    texts = ["vwxyz", "ghij", "def", "bc", "a"]
    assert model.embed(texts)[:, 0].tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert sorted(model.batches) == [["ghij", "bc"], ["vwxyz", "def", "a"]]


def test_a_question_is_not_divided():
    """It takes one thread, though there were two."""
    model = TwoAtATime()
    model._both = threading.Barrier(1)
    assert model.embed(["a", "bc"], threads=1)[:, 0].tolist() == [1.0, 2.0]
    assert model.batches == [["a", "bc"]]
