"""The official `openai` client against the whole stack, unchanged but for its base_url."""

import openai
import pytest

from .conftest import MODEL

QUESTION = [{"role": "user", "content": "What is this handbook about?"}]


def test_lists_models(client):
    """The engine's model is there under its own name, and the one that embeds."""
    assert [m.id for m in client.models.list()] == [MODEL, "all-MiniLM-L6-v2"]
    assert client.models.retrieve(MODEL).id == MODEL


def test_chats(client):
    """A whole answer, with usage and with citations beside it."""
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=40)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.total_tokens > answer.usage.completion_tokens > 0
    assert answer.citations[0]["filename"] == "handbook.pdf"


def test_streams(client):
    """The pieces make up an answer; the last ones carry reason, citations and usage."""
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    (last,) = [c for c in chunks if c.choices and c.choices[0].finish_reason]
    assert last.citations[0]["page"] >= 1
    assert chunks[-1].usage.completion_tokens > 0


async def test_streams_asynchronously(stack):
    """The async client works too."""
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=8, stream=True
        )
        assert [chunk async for chunk in stream]


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "invalid_parameter"),
        (
            {"messages": [{"role": "user", "content": ""}]},
            openai.BadRequestError,
            "invalid_parameter",
        ),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_parameter"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "invalid_parameter"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_parameter"),
        ({"n": 2}, openai.BadRequestError, "invalid_parameter"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
            openai.BadRequestError,
            "invalid_parameter",
        ),
        (
            {"extra_body": {"collection": "nobody"}},
            openai.NotFoundError,
            "collection_not_found",
        ),
        (
            {"messages": [{"role": "user", "content": "why " * 6000}]},
            openai.BadRequestError,
            "invalid_parameter",
        ),
    ],
)
def test_a_wrong_request_raises_the_clients_own_class(client, arguments, error, code):
    """Callers can handle our errors as they handle OpenAI's."""
    with pytest.raises(error) as raised:
        client.chat.completions.create(**({"model": MODEL, "messages": QUESTION} | arguments))
    assert raised.value.code == code


def test_a_question_longer_than_the_window_is_told_so(client):
    """Within our character limit, but more tokens than the model has."""
    words = "\N{SNOWMAN}" * 7000
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": words}], max_tokens=100
        )
    assert raised.value.code == "context_length_exceeded"


def test_history_and_system_messages_are_taken(client):
    """A conversation is more than its last message."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "What is this handbook about?"},
            {"role": "assistant", "content": "Harbours."},
            {"role": "user", "content": [{"type": "text", "text": "And who works there?"}]},
        ],
        max_tokens=16,
    )
    assert answer.usage.prompt_tokens > 0
