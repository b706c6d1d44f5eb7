"""A completion from its events, however they come together."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.domain import EngineChunk, Usage
from orchestrator.errors import EngineOverloaded, EngineProtocolError
from orchestrator.generation.completion import Completion


def delta(text=None, reason=None, **more):
    content = {} if text is None else {"content": text}
    return json.dumps({"choices": [{"delta": content | more, "finish_reason": reason}]})


USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
ANSWER = [
    delta("", role="assistant"),
    delta("The"),
    delta(" gate"),
    delta("", "stop"),
    USAGE,
    "[DONE]",
]


def test_joins_what_comes_together():
    """One read with everything is one chunk with everything."""
    completion = Completion()
    assert completion.take(ANSWER) == EngineChunk("The gate", 3, "stop", Usage(5, 3))
    assert completion.ended
    assert completion.error is None


@given(st.lists(st.integers(0, len(ANSWER)), max_size=5))
def test_how_events_come_together_does_not_matter(cuts):
    """Text, tokens, reason and usage are those of the whole."""
    edges = [0, *sorted(cuts), len(ANSWER)]
    completion = Completion()
    chunks = [completion.take(ANSWER[a:b]) for a, b in pairwise(edges)]
    assert "".join(c.text for c in chunks) == "The gate"
    assert sum(c.tokens for c in chunks) == completion.tokens == 3
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"]
    assert [c.usage for c in chunks if c.usage] == [Usage(5, 3)]
    assert completion.ended
    assert completion.error is None


@pytest.mark.parametrize(
    ("event", "steps"),
    [
        (delta("a"), 1),
        (delta("a", role="assistant"), 1),
        (delta(""), 1),
        (delta("", role="assistant"), 0),
        (delta(role="assistant"), 0),
        (delta(), 0),
        (delta(None, "stop"), 0),
        (delta(None, reasoning_content="hm"), 1),
        (delta("", role="assistant", tool_calls=[{}]), 1),
        (USAGE, 0),
    ],
)
def test_counts_steps_of_the_engine(event, steps):
    """A token without text yet counts; a role, a reason or a usage alone does not."""
    assert Completion().take([event]).tokens == steps


def test_what_comes_before_a_failure_is_given():
    """The error waits until the text was handed on."""
    completion = Completion()
    full = {"message": "busy", "type": "Service Unavailable", "code": 503}
    chunk = completion.take([delta("half"), json.dumps({"error": full}), delta("lost")])
    assert chunk.text == "half"
    assert completion.ended
    assert isinstance(completion.error, EngineOverloaded)


def test_a_null_error_is_none():
    """Some servers send the key with every chunk."""
    text = json.dumps({"error": None, **json.loads(delta("a"))})
    completion = Completion()
    assert completion.take([text]).text == "a"
    assert completion.error is None


def test_done_needs_a_reason_first():
    """Told in an earlier event or in the same read."""
    completion = Completion()
    completion.take([delta("a"), "[DONE]"])
    assert isinstance(completion.error, EngineProtocolError)
    completion = Completion()
    completion.take([delta("a", "length")])
    completion.take(["[DONE]"])
    assert completion.error is None


def test_pairs_of_half_characters_are_characters():
    """An engine that counts in UTF-16 may cut between them."""
    shape = '{"choices":[{"delta":{"content":"?"}}]}'
    halves = [shape.replace("?", half) for half in ("\\ud83c", "\\udf0a")]
    assert Completion().take(halves).text == "🌊"


@given(st.lists(st.text(max_size=30), max_size=4))
def test_no_event_is_a_surprise(events):
    """Whatever an event says, the worst is our own error; every text can be encoded."""
    completion = Completion()
    completion.take(events).text.encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from([
                "choices",
                "delta",
                "content",
                "usage",
                "error",
                "finish_reason",
                "role",
                "code",
                "prompt_tokens",
                "completion_tokens",
            ]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values)
@example({"choices": [], "usage": {"prompt_tokens": float("inf"), "completion_tokens": 1}})
def test_no_shape_is_a_surprise(payload):
    """Any JSON in the place of a chunk."""
    chunk = Completion().take([json.dumps(payload)])
    chunk.text.encode()
    assert isinstance(chunk.tokens, int)
