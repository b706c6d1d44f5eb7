"""Prompts as tokens and keys, answers as words."""

import json

from hypothesis import given
from hypothesis import strategies as st

from model_server.simulator import wire
from model_server.simulator.answers import (
    PIECES,
    Prompt,
    count_tokens,
    natural_length,
    pieces,
    read_prompt,
    render,
)

TEXTS = st.text(max_size=400).map(str.encode)


@given(TEXTS, TEXTS, TEXTS)
def test_keys_agree_exactly_as_far_as_the_prompts_do(common, one, other):
    """Two prompts share the keys of the blocks in which nothing differs, and no later one."""
    left, right = (read_prompt(common + rest, block_size=4, seed=0) for rest in (one, other))
    same = 0
    for a, b in zip(common + one, common + other, strict=False):
        if a != b:
            break
        same += 1
    shared = same // 16
    assert left.keys[:shared] == right.keys[:shared]
    assert not set(left.keys[shared:]) & set(right.keys[shared:])
    assert len(left.keys) == len(common + one) // 16


def test_parts_are_texts():
    """OpenAI's list of parts counts as their texts."""
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]
    as_list = render([{"role": "user", "content": parts}])
    assert as_list == render([{"role": "user", "content": "hello there"}])
    assert count_tokens(as_list) == -(-len(as_list) // 4)


def test_the_seed_changes_lengths_and_nothing_else_does():
    """Same prompt and seed, same length; another seed, other lengths."""
    texts = [f"question {n}".encode() for n in range(20)]

    def lengths(seed):
        prompts = [read_prompt(text, block_size=16, seed=seed) for text in texts]
        return [natural_length(prompt, mean_tokens=140) for prompt in prompts]

    assert lengths(1) == lengths(1) != lengths(2)


@given(st.integers(0, 2**64 - 1), st.floats(1, 1000))
def test_every_prompt_has_a_length(digest, mean):
    """No digest is beyond the distribution's ends."""
    assert 1 <= natural_length(Prompt(1, (), digest), mean_tokens=mean) < 200 * mean + 2


@given(st.integers(0, 2**64 - 1), st.integers(0, 300), st.integers(0, 300))
def test_pieces_join_to_the_whole(digest, first, second):
    """However an answer is cut into chunks, it is the same text."""
    prompt = Prompt(1, (), digest)
    whole = pieces(prompt, 0, first + second)
    assert pieces(prompt, 0, first) + pieces(prompt, first, first + second) == whole


def test_frames_that_are_put_together_by_hand_are_json():
    """No piece holds a character that would need an escape, and some are citation marks."""
    frames = wire.Frames(request_id="r", model="m", created_s=1)
    said = [
        json.loads(frames.text(piece)[6:])["choices"][0]["delta"]["content"] for piece in PIECES
    ]
    assert tuple(said) == tuple(PIECES)
    assert " [1]" in said
    assert json.loads(frames.role()[6:])["choices"][0]["delta"]["role"] == "assistant"
