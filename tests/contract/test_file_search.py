"""OpenAI's file search with its own client, sync and async, against the real engine and embedder."""

import openai
import pytest

from tests import pdfs

from .conftest import MODEL

QUESTION = "How often are the hydraulic seals replaced?"
PAGE = 5
"""Of the handbook, which says it."""


def uploaded(client, name="handbook.pdf"):
    return client.files.create(file=(name, pdfs.handbook()), purpose="assistants")


@pytest.fixture(scope="module")
def store(stack):
    """(client, store): the handbook, and another paper, with attributes; put in as a batch."""
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", timeout=120) as client:
        handbook = uploaded(client)
        other = client.files.create(
            file=("ferry.pdf", pdfs.text_pdf(["The ferry Alice carries ninety passengers."])),
            purpose="user_data",
        )
        made = client.vector_stores.create(name="harbour", metadata={"station": "Merrow Sound"})
        batch = client.vector_stores.file_batches.create_and_poll(
            made.id,
            files=[
                {"file_id": handbook.id, "attributes": {"kind": "handbook", "year": 2024}},
                {"file_id": other.id, "attributes": {"kind": "ferry", "year": 1999}},
            ],
        )
        assert batch.file_counts.completed == 2
        yield client, made
        client.vector_stores.delete(made.id)


def respond(client, store, **more):
    tool = {"type": "file_search", "vector_store_ids": [store.id]}
    arguments = {"model": MODEL, "input": QUESTION, "tools": [tool], "max_output_tokens": 32}
    return client.responses.create(**arguments | more)


def pages(answer):
    """The pages that the answer's annotations lead to, each held against the sources beside it."""
    [text] = answer.output[-1].content
    by_number = {source["n"]: source for source in answer.citations}
    for annotation in text.annotations:
        assert text.text[annotation.index :].startswith(f"[{annotation.n}]")
        source = by_number[annotation.n]
        assert (annotation.filename, annotation.page) == (source["filename"], source["page"])
    return {annotation.page for annotation in text.annotations}


def test_a_search_with_filters_finds_the_page(store):
    """By meaning, in the files that were asked for."""
    client, made = store
    wanted = {"type": "eq", "key": "kind", "value": "handbook"}
    [best, *_] = client.vector_stores.search(made.id, query=QUESTION, filters=wanted).data
    assert (best.filename, best.page) == ("handbook.pdf", PAGE)
    wanted = {"type": "lt", "key": "year", "value": 2000}
    found = client.vector_stores.search(made.id, query=QUESTION, filters=wanted).data
    assert {result.filename for result in found} <= {"ferry.pdf"}


def test_an_answer_points_to_the_page(store):
    """Whole, with the results that it was made from."""
    client, made = store
    answer = respond(client, made, include=["file_search_call.results"])
    call, message = answer.output
    assert answer.output_text
    assert answer.degraded is None
    assert (call.results[0].filename, call.results[0].page) == ("handbook.pdf", PAGE)
    assert PAGE in pages(answer), message
    assert answer.usage.output_tokens > 0


def test_a_stream_points_to_the_page(store):
    """Event by event, and the last one has it all."""
    client, made = store
    events = list(respond(client, made, stream=True))
    said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    last = events[-1]
    assert last.type in {"response.completed", "response.incomplete"}
    assert said.strip() == last.response.output_text
    assert PAGE in pages(last.response)


async def test_asynchronously(stack):
    """The async client: upload, store, search, answer, stream, and all of it gone again."""
    async with openai.AsyncOpenAI(
        base_url=f"{stack.url}/v1", api_key="none", timeout=120
    ) as client:
        file = await client.files.create(
            file=("handbook.pdf", pdfs.handbook()), purpose="assistants"
        )
        made = await client.vector_stores.create(name="async")
        added = await client.vector_stores.files.create_and_poll(file.id, vector_store_id=made.id)
        assert added.status == "completed"
        found = await client.vector_stores.search(made.id, query=QUESTION)
        assert found.data[0].page == PAGE
        answer = await respond(client, made)
        assert PAGE in pages(answer)
        stream = await respond(client, made, stream=True)
        assert [event async for event in stream][-1].response.output_text
        await client.vector_stores.delete(made.id)
        await client.files.delete(file.id)
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)


def test_what_is_not_served_is_refused(store):
    """Tools in chat and in responses, by the SDK's class and in words."""
    client, made = store
    function = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], tools=[function]
        )
    with pytest.raises(openai.BadRequestError, match="web_search"):
        respond(client, made, tools=[{"type": "web_search"}])
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a.pdf", pdfs.handbook()), purpose="fine-tune")
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.create(made.id, file_id="file-unknown")


def test_embeddings_are_those_of_the_search(stack):
    """Near texts are near; of unit length."""
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        model = [m.id for m in client.models.list()][-1]
        rows = [
            d.embedding
            for d in client.embeddings.create(
                model=model, input=["The gate is shut.", "The gate is closed.", "A cat sleeps."]
            ).data
        ]
    near, far = (sum(a * b for a, b in zip(rows[0], other, strict=True)) for other in rows[1:])
    assert near > far
    assert sum(a * a for a in rows[0]) == pytest.approx(1, abs=0.02)
