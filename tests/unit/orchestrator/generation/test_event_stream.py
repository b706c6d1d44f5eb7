"""Events out of bytes: the same ones however they are cut, and never a surprise."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.errors import EngineProtocolError
from orchestrator.generation.event_stream import EventStreamParser

SMALL_BYTES = 24

stream_bytes = st.lists(
    st.sampled_from([
        *(b"data: a", b"data:b", b"data", b"data: ", b":", b": hi", b"event: x", b"id", b"dat"),
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\xef\xbb\xbf", b"\xc3\xa9", b"\xf0\x9f"),
        b"data: " + b"x" * SMALL_BYTES,
        b"data: 0123456789\n" * 3,
    ])
    | st.binary(max_size=8),
    max_size=16,
).map(b"".join)


def parsed(parts: list[bytes], max_event_bytes: int = 1000) -> list[str]:
    """Every event, and "too long" if the stream was broken off."""
    parser = EventStreamParser(max_event_bytes)
    events: list[str] = []
    try:
        for part in (*parts, b""):
            events += parser.feed(part)
    except EngineProtocolError:
        events.append("too long")
    return events


def by_the_book(stream: bytes) -> list[str]:
    """The standard's algorithm, on the whole text at once."""
    text = stream.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    events, data = [], []
    for line in lines[:-1]:
        field, _, value = line.partition(":")
        if not line:
            events += ["\n".join(data)] if data else []
            data = []
        elif field == "data":
            data.append(value.removeprefix(" "))
    return events


@given(stream_bytes)
@example(b"data: a\n\n\ndata: b\r\n\r\ndata:c\rdata: d\r\r")
def test_reads_as_the_standard_says(stream):
    """Line ends, joined lines, comments, the byte order mark: all by the book."""
    assert parsed([stream]) == by_the_book(stream)


@given(stream_bytes, st.lists(st.integers(0, 120), max_size=12))
@example(b"\xef\xbb\xbf" + b"data: " + b"x" * (SMALL_BYTES - 6) + b"\n\n", [26])
@example(b"data: a\r\ndata: b\r\n\r\n", [8])
@example(b"data: a\ndata: b\n\n", [8])
@example(b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [9])
@example(b": begins\n\ndata: 1\n\ndata: 2\n\n", [11, 20])
def test_cuts_do_not_matter(stream, cuts):
    """However a stream is cut, its events are those of the whole, the breach of a limit too."""
    edges = [0, *sorted(c for c in cuts if c < len(stream)), len(stream)]
    parts = [stream[a:b] for a, b in pairwise(edges)]
    bytewise = [stream[i : i + 1] for i in range(len(stream))]
    whole = parsed([stream], SMALL_BYTES)
    assert parsed(parts, SMALL_BYTES) == whole
    assert parsed(bytewise, SMALL_BYTES) == whole


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_garbage_raises_nothing_else(parts):
    """No bytes give another error than the protocol's."""
    parsed(parts, SMALL_BYTES)


def test_a_character_may_be_cut():
    """The two bytes of one character can come in two reads."""
    assert parsed([b"data: caf\xc3", b"\xa9\n\n"]) == ["café"]


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: " + b"x" * 2_000_000, id="line without an end"),
        pytest.param(b"data: " + b"x" * 2_000_000 + b"\n\n", id="line"),
        pytest.param(b"data: x\n" * 600_000, id="many lines of one event"),
        pytest.param(b":" + b"x" * 2_000_000, id="comment"),
    ],
)
def test_what_is_held_is_bounded(stream):
    """More than a mebibyte for one event breaks the stream off, and little more is ever kept."""
    parser = EventStreamParser()

    def feed() -> None:
        for start in range(0, len(stream), 65536):
            assert parser.feed(stream[start : start + 65536]) == []
            held = len(parser._line) + sum(map(len, parser._data))
            assert held <= 1024 * 1024 + 65536

    with pytest.raises(EngineProtocolError, match="1048576 bytes"):
        feed()
    with pytest.raises(EngineProtocolError):
        parser.feed(b"data: 1\n\n")


def test_a_long_stream_of_short_events_is_no_breach():
    """The limit is an event's, not the stream's."""
    assert len(parsed([b"data: 12345\n\n: note\n\n" * 50] * 50, SMALL_BYTES)) == 2500
