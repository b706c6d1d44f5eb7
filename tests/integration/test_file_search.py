"""OpenAI's files, vector stores, responses and embeddings, asked by OpenAI's own client."""

import concurrent.futures
import os
import signal
import time
from contextlib import contextmanager

import httpx2
import numpy as np
import openai
import pytest

from tests import pdfs
from tests.fake_engine import MODEL, FakeEngine, serving
from tests.faults import PATIENCE_S, SMALL, wait_until
from tests.running import orchestrator

GATES = pdfs.text_pdf([
    "This is the first page of the harbour's rules, about nothing much.",
    "The northern gate closes at a water level of four metres.",
])
SHIPS = pdfs.text_pdf(["The ferry Alice carries ninety passengers to the northern islands."])
QUESTION = "At what water level does the northern gate close?"
NEVER = "0" * 24


@contextmanager
def service(data_dir, **settings):
    """(orchestrator, its engine, OpenAI's client of it)."""
    with (
        serving(FakeEngine()) as engine,
        orchestrator(
            data_dir, engine.url, **SMALL, embedder_url=engine.url, ocr="false", **settings
        ) as running,
        openai.OpenAI(
            base_url=f"{running.url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0
        ) as client,
    ):
        yield running, engine, client


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with service(tmp_path_factory.mktemp("file-search")) as made:
        yield made


@pytest.fixture
def client(served):
    _, engine, found = served
    engine.play()
    return found


@pytest.fixture
def url(served):
    return served[0].url


def put(client, data=GATES, name="rules.pdf"):
    """An uploaded file."""
    return client.files.create(file=(name, data, "application/pdf"), purpose="assistants")


@pytest.fixture
def store(client):
    """A store with two files, which say of themselves what they are about."""
    made = client.vector_stores.create(name="harbour", metadata={"owner": "port"})
    for data, name, attributes in (
        (GATES, "rules.pdf", {"kind": "rules", "year": 2021, "public": True}),
        (SHIPS, "ships.pdf", {"kind": "ships", "year": 1999}),
    ):
        file = client.vector_stores.files.create_and_poll(
            put(client, data, name).id, vector_store_id=made.id, attributes=attributes
        )
        assert file.status == "completed", file.last_error
    yield made
    client.vector_stores.delete(made.id)


class TestFiles:
    """What is uploaded, and not read yet."""

    def test_come_and_go(self, client, url):
        """The bytes come back as they went; after the deletion nothing of them does."""
        file = put(client)
        assert (file.filename, file.bytes, file.purpose) == ("rules.pdf", len(GATES), "assistants")
        assert client.files.retrieve(file.id).id == file.id
        assert client.files.content(file.id).read() == GATES
        assert file.id in [f.id for f in client.files.list()]
        assert file.id in [f.id for f in client.files.list(purpose="assistants")]
        assert file.id not in [f.id for f in client.files.list(purpose="user_data")]
        assert client.files.delete(file.id).deleted
        for gone in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError) as told:
                gone(file.id)
            assert told.value.code == "file_not_found"

    def test_the_list_has_pages(self, client):
        """The client turns them by itself."""
        ids = [put(client).id for _ in range(5)]
        found = [f.id for f in client.files.list(limit=2)]
        assert [i for i in found if i in ids] == ids[::-1]
        found = [f.id for f in client.files.list(limit=2, order="asc")]
        assert [i for i in found if i in ids] == ids
        assert len(set(found)) == len(found)

    @pytest.mark.parametrize("purpose", ["batch", "fine-tune", "vision", ""])
    def test_other_purposes_are_refused(self, client, purpose):
        """They would be kept for nothing."""
        with pytest.raises(openai.BadRequestError) as told:
            client.files.create(file=("a.pdf", GATES), purpose=purpose)
        assert told.value.param == "purpose"

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"plain text", "not_a_pdf"),
            (b"", "empty_file"),
            (pdfs.encrypted("secret"), "encrypted_document"),
            (pdfs.no_pages(), "no_pages"),
        ],
    )
    def test_what_cannot_be_read_is_refused_at_once(self, client, data, code):
        """Not only once it is in a store."""
        with pytest.raises(openai.BadRequestError) as told:
            put(client, data)
        assert told.value.code == code

    def test_a_form_is_needed(self, url):
        """And a file in it."""
        with httpx2.Client(base_url=url, trust_env=False) as http:
            answer = http.post("/v1/files", json={"purpose": "assistants"})
            assert answer.json()["error"]["code"] == "unsupported_media_type"
            answer = http.post("/v1/files", data={"purpose": "assistants"}, files={"other": b"x"})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "file"


class TestStores:
    """Files that are searched together."""

    def test_come_change_and_go(self, client, url):
        """And the files that were in one stay."""
        file = put(client)
        store = client.vector_stores.create(name="one", file_ids=[file.id])
        assert wait_until(lambda: client.vector_stores.retrieve(store.id).status == "completed")
        store = client.vector_stores.retrieve(store.id)
        assert (store.file_counts.completed, store.file_counts.total) == (1, 1)
        assert store.usage_bytes == len(GATES)
        store = client.vector_stores.update(store.id, name="two", metadata={"a": "b"})
        assert (store.name, store.metadata) == ("two", {"a": "b"})
        assert store.id in [s.id for s in client.vector_stores.list()]
        with httpx2.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as http:
            listed = http.get("/documents", params={"collection": store.id}).json()["documents"]
            assert [d["filename"] for d in listed] == ["rules.pdf"]
            assert client.vector_stores.delete(store.id).deleted
            assert http.get("/documents", params={"collection": store.id}).json()["documents"] == []
        with pytest.raises(openai.NotFoundError) as told:
            client.vector_stores.retrieve(store.id)
        assert told.value.code == "vector_store_not_found"
        assert client.files.retrieve(file.id).id == file.id

    def test_a_search_gives_pages(self, client, store):
        """Best first, each with its page."""
        found = client.vector_stores.search(store.id, query=QUESTION).data
        assert found[0].filename == "rules.pdf"
        assert found[0].page == 2
        assert "four metres" in found[0].content[0].text
        assert found[0].attributes["kind"] == "rules"
        assert 0 <= found[-1].score <= found[0].score <= 1

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            ({"type": "eq", "key": "kind", "value": "ships"}, {"ships.pdf"}),
            ({"type": "ne", "key": "kind", "value": "ships"}, {"rules.pdf"}),
            ({"type": "gte", "key": "year", "value": 2000}, {"rules.pdf"}),
            ({"type": "lt", "key": "year", "value": 2000}, {"ships.pdf"}),
            (
                {"type": "in", "key": "kind", "value": ["ships", "rules"]},
                {"ships.pdf", "rules.pdf"},
            ),
            ({"type": "eq", "key": "public", "value": True}, {"rules.pdf"}),
            ({"type": "eq", "key": "public", "value": 1}, set()),
            ({"type": "eq", "key": "unknown", "value": "x"}, set()),
            (
                {
                    "type": "or",
                    "filters": [
                        {"type": "eq", "key": "year", "value": 1999},
                        {"type": "eq", "key": "year", "value": 2021},
                    ],
                },
                {"ships.pdf", "rules.pdf"},
            ),
            (
                {
                    "type": "and",
                    "filters": [
                        {"type": "eq", "key": "kind", "value": "rules"},
                        {"type": "eq", "key": "year", "value": 1999},
                    ],
                },
                set(),
            ),
        ],
    )
    def test_filters_choose_files(self, client, store, filters, expected):
        """By what was written on them."""
        question = "northern gate or ferry?"
        found = client.vector_stores.search(store.id, query=question, filters=filters).data
        assert {result.filename for result in found} == expected

    @pytest.mark.parametrize(
        "filters",
        [
            {"type": "gt", "key": "year", "value": "many"},
            {"type": "in", "key": "year", "value": 1},
            {"type": "eq", "key": "year", "value": [1]},
            {"type": "like", "key": "year", "value": 1},
            {"type": "and", "filters": []},
            {"type": "and", "filters": [{"type": "lt", "key": "a", "value": True}]},
        ],
    )
    def test_wrong_filters_are_refused(self, client, store, filters):
        """With the SDK's class, and a word on where it is."""
        with pytest.raises(openai.BadRequestError) as told:
            client.vector_stores.search(store.id, query="x", filters=filters)
        assert "filters" in told.value.param

    def test_attributes_can_be_changed(self, client, store):
        """And the next filter sees them."""
        [ships] = [
            f for f in client.vector_stores.files.list(store.id) if f.attributes["kind"] == "ships"
        ]
        client.vector_stores.files.update(
            ships.id, vector_store_id=store.id, attributes={"kind": "boats"}
        )
        wanted = {"type": "eq", "key": "kind", "value": "boats"}
        found = client.vector_stores.search(store.id, query="ferry", filters=wanted).data
        assert {result.file_id for result in found} == {ships.id}

    def test_a_file_can_leave(self, client, store):
        """It is found no more, and is still a file."""
        [rules] = [
            f for f in client.vector_stores.files.list(store.id) if f.attributes["kind"] == "rules"
        ]
        text = client.vector_stores.files.content(rules.id, vector_store_id=store.id)
        assert ["four metres" in page.text for page in text] == [False, True]
        assert client.vector_stores.files.delete(rules.id, vector_store_id=store.id).deleted
        found = client.vector_stores.search(store.id, query=QUESTION).data
        assert {result.filename for result in found} <= {"ships.pdf"}
        assert client.files.retrieve(rules.id).id == rules.id
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.files.retrieve(rules.id, vector_store_id=store.id)

    def test_a_deleted_file_leaves_its_stores(self, client, store):
        """And cannot be put into another."""
        [rules] = [
            f for f in client.vector_stores.files.list(store.id) if f.attributes["kind"] == "rules"
        ]
        client.files.delete(rules.id)
        assert rules.id not in [f.id for f in client.vector_stores.files.list(store.id)]
        found = client.vector_stores.search(store.id, query=QUESTION).data
        assert {result.filename for result in found} <= {"ships.pdf"}
        with pytest.raises(openai.NotFoundError) as told:
            client.vector_stores.files.create(store.id, file_id=rules.id)
        assert told.value.code == "file_not_found"

    def test_the_same_bytes_twice(self, client):
        """Two files of one store: one may leave, and the other is still found."""
        first, second = put(client), put(client, name="again.pdf")
        store = client.vector_stores.create(file_ids=[first.id, second.id])
        assert wait_until(
            lambda: client.vector_stores.retrieve(store.id).file_counts.completed == 2
        )
        client.vector_stores.files.delete(first.id, vector_store_id=store.id)
        [found, *_] = client.vector_stores.search(store.id, query=QUESTION).data
        assert found.file_id == second.id

    def test_a_file_that_cannot_be_used_says_why(self, client):
        """The others are not held up."""
        pictures, rules = put(client, pdfs.image_only(), "scan.pdf"), put(client)
        store = client.vector_stores.create(file_ids=[pictures.id, rules.id])
        assert wait_until(
            lambda: client.vector_stores.retrieve(store.id).file_counts.in_progress == 0
        )
        counts = client.vector_stores.retrieve(store.id).file_counts
        assert (counts.failed, counts.completed) == (1, 1)
        failed = client.vector_stores.files.retrieve(pictures.id, vector_store_id=store.id)
        assert failed.status == "failed"
        assert failed.last_error.code == "unsupported_file"
        assert failed.last_error.message

    def test_an_empty_store_finds_nothing(self, client):
        """That is no error; and an answer says so."""
        store = client.vector_stores.create()
        assert client.vector_stores.search(store.id, query="x").data == []
        answer = respond(client, store.id)
        assert answer.output[1].content[0].annotations == []
        assert answer.usage.total_tokens == 0

    @pytest.mark.parametrize(
        ("arguments", "param"),
        [
            ({"expires_after": {"anchor": "last_active_at", "days": 1}}, "expires_after"),
            (
                {
                    "chunking_strategy": {
                        "type": "static",
                        "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0},
                    }
                },
                "chunking_strategy",
            ),
            ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
            ({"name": "x" * 257}, "name"),
        ],
    )
    def test_what_is_not_possible_is_refused(self, client, arguments, param):
        """In words, instead of being left out in silence."""
        with pytest.raises(openai.BadRequestError) as told:
            client.vector_stores.create(**arguments)
        assert told.value.param == param

    def test_ids_that_never_were(self, client, store):
        """The SDK's NotFoundError each, with the code that says which."""
        stores, files = client.vector_stores, client.vector_stores.files
        calls = [
            (lambda: stores.retrieve(f"vs_{NEVER}"), "vector_store_not_found"),
            (lambda: stores.search(f"vs_{NEVER}", query="x"), "vector_store_not_found"),
            (lambda: stores.create(file_ids=[f"file-{NEVER}"]), "file_not_found"),
            (lambda: files.create(store.id, file_id=f"file-{NEVER}"), "file_not_found"),
            (lambda: files.retrieve("x", vector_store_id=store.id), "file_not_found"),
            (
                lambda: stores.file_batches.retrieve("x", vector_store_id=store.id),
                "file_batch_not_found",
            ),
            (lambda: respond(client, f"vs_{NEVER}"), "vector_store_not_found"),
        ]
        for call, code in calls:
            with pytest.raises(openai.NotFoundError) as told:
                call()
            assert told.value.code == code


class TestBatches:
    """Many files at once."""

    def test_are_followed_as_one(self, client):
        """With attributes of their own, or the same for all."""
        store = client.vector_stores.create()
        rules, ships = put(client), put(client, SHIPS, "ships.pdf")
        batch = client.vector_stores.file_batches.create_and_poll(
            store.id,
            files=[
                {"file_id": rules.id, "attributes": {"n": 1}},
                {"file_id": ships.id, "attributes": {"n": 2}},
            ],
        )
        assert batch.status == "completed"
        assert (batch.file_counts.completed, batch.file_counts.total) == (2, 2)
        listed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
        assert {f.id: f.attributes for f in listed} == {rules.id: {"n": 1}, ships.id: {"n": 2}}
        again = client.vector_stores.file_batches.create_and_poll(
            store.id, file_ids=[rules.id], attributes={"n": 3}
        )
        assert again.file_counts.completed == 1
        found = client.vector_stores.files.retrieve(rules.id, vector_store_id=store.id)
        assert found.attributes == {"n": 3}

    def test_can_be_cancelled(self, client):
        """What is done stays, what is not is taken back, and the store is usable."""
        store = client.vector_stores.create()
        long = [
            put(client, pdfs.text_pdf([f"Page {n} of paper {p}. " * 60 for n in range(40)])).id
            for p in range(4)
        ]
        batch = client.vector_stores.file_batches.create(store.id, file_ids=long)
        batch = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
        assert batch.status == "cancelled"
        counts = batch.file_counts
        assert counts.in_progress == 0
        assert counts.cancelled + counts.completed == len(long)
        one = client.vector_stores.files.create_and_poll(long[0], vector_store_id=store.id)
        assert one.status == "completed"

    @pytest.mark.parametrize(
        "arguments",
        [
            {"file_ids": []},
            {},
            {"file_ids": ["a"], "files": [{"file_id": "b"}]},
            {"file_ids": [str(n) for n in range(2001)]},
        ],
    )
    def test_wrong_ones_are_refused(self, client, store, arguments):
        """Empty, too large, or named twice."""
        with pytest.raises(openai.BadRequestError):
            client.vector_stores.file_batches.create(store.id, **arguments)


def respond(client, store_id, **more):
    """An answer from one store."""
    tool = {"type": "file_search", "vector_store_ids": [store_id]}
    arguments = {"model": MODEL, "input": QUESTION, "tools": [tool]} | more
    return client.responses.create(**arguments)


class TestResponses:
    """Answers with `file_search`."""

    def test_point_to_the_page(self, client, store):
        """The annotation names the file, the place of its mark, and the page."""
        answer = respond(client, store.id, include=["file_search_call.results"])
        assert answer.status == "completed"
        call, message = answer.output
        assert (call.type, call.status, call.queries) == (
            "file_search_call",
            "completed",
            [QUESTION],
        )
        assert call.results[0].filename == "rules.pdf"
        [text] = message.content
        assert text.text == answer.output_text == "The gate closes [1]."
        [citation] = text.annotations
        assert (citation.type, citation.filename, citation.page) == (
            "file_citation",
            "rules.pdf",
            2,
        )
        assert text.text[citation.index :].startswith("[1]")
        assert client.files.content(citation.file_id).read() == GATES
        assert answer.usage.total_tokens > 0

    def test_results_only_if_asked_for(self, client, store):
        """As OpenAI has it."""
        assert respond(client, store.id).output[0].results is None

    def test_filters_and_limits(self, client, store):
        """A filter that lets nothing through finds nothing, and asks no engine."""
        tool = {
            "type": "file_search",
            "vector_store_ids": [store.id],
            "max_num_results": 1,
            "filters": {"type": "eq", "key": "kind", "value": "ships"},
        }
        include = ["file_search_call.results"]
        answer = respond(client, store.id, tools=[tool], include=include, input="The ferry?")
        assert {r.filename for r in answer.output[0].results} == {"ships.pdf"}
        tool["filters"]["value"] = "planes"
        answer = respond(client, store.id, tools=[tool], include=include)
        assert answer.output[0].results == []
        assert answer.usage.total_tokens == 0

    def test_stream(self, client, store):
        """Every event in its place, and the last one is what the whole would have been."""
        events = list(respond(client, store.id, stream=True))
        assert [e.sequence_number for e in events] == list(range(len(events)))
        kinds = [e.type for e in events]
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        for kind in (
            "response.in_progress",
            "response.file_search_call.completed",
            "response.output_text.annotation.added",
            "response.output_text.done",
        ):
            assert kind in kinds, kinds
        said = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        last = events[-1].response
        assert said == last.output_text
        assert last.output[1].content[0].annotations[0].page == 2

    def test_the_sdks_own_stream_helper(self, client, store):
        """It puts the answer together by itself, and is strict about the order."""
        tool = {"type": "file_search", "vector_store_ids": [store.id]}
        with client.responses.stream(model=MODEL, input=QUESTION, tools=[tool]) as stream:
            for _ in stream:
                pass
            assert stream.get_final_response().output_text == "The gate closes [1]."

    async def test_asynchronously(self, url, store):
        """The async client's upload, search and answers."""
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            found = await client.vector_stores.search(store.id, query=QUESTION)
            assert found.data[0].page == 2
            stream = await respond(client, store.id, stream=True)
            assert [e.type async for e in stream][-1] == "response.completed"

    def test_a_conversation_goes_on(self, client, store, served):
        """With the earlier answer sent back as it came."""
        first = respond(client, store.id)
        turns = [
            {"role": "user", "content": QUESTION},
            *first.output,
            {"role": "user", "content": [{"type": "input_text", "text": "And who says so?"}]},
        ]
        assert respond(client, store.id, input=turns, instructions="Be brief.").output_text
        asked = served[1].requests[-1]["messages"]
        said = " ".join(m["content"] for m in asked)
        assert "Be brief." in said
        assert "The gate closes" in said

    def test_a_collection_instead_of_a_store(self, client, url):
        """Without a tool the answer is from the collection that was named."""
        with httpx2.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as http:
            added = http.post(
                "/upload?wait=true",
                files={"file": ("rules.pdf", GATES)},
                data={"collection": "plain"},
            )
            assert added.status_code == 200
        answer = client.responses.create(
            model=MODEL, input=QUESTION, extra_body={"collection": "plain"}
        )
        [message] = answer.output
        assert message.content[0].annotations[0].page == 2

    def test_what_ends_at_its_limit_says_so(self, client, store, served):
        """`incomplete`, with the reason, whole and as a stream."""
        served[1].play(tokens=["The gate"], ending="length")
        answer = respond(client, store.id, max_output_tokens=2)
        assert answer.status == "incomplete"
        assert answer.incomplete_details.reason == "max_output_tokens"
        served[1].play(tokens=["The gate"], ending="length")
        assert list(respond(client, store.id, stream=True))[-1].type == "response.incomplete"

    def test_a_stream_that_breaks_tells_why(self, client, store, served):
        """`error` and `response.failed`, with what there was."""
        served[1].play(tokens=["The gate", " closes"], ending="cut")
        events = list(respond(client, store.id, stream=True))
        assert [e.type for e in events[-2:]] == ["error", "response.failed"]
        assert events[-2].code == events[-1].response.error.code
        assert events[-2].retry_after_s is None, "of a broken stream nobody knows"
        assert "The gate" in events[-1].response.output_text

    @pytest.mark.parametrize(
        ("arguments", "param"),
        [
            ({"tools": [{"type": "web_search"}]}, "tools[0]"),
            ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools[0]"),
            ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, None),
            ({"tools": [{"type": "file_search", "vector_store_ids": ["a", "b"]}]}, "tools"),
            ({"tool_choice": "none"}, "tool_choice"),
            ({"previous_response_id": "resp_1"}, "previous_response_id"),
            ({"background": True}, "background"),
            ({"text": {"format": {"type": "json_object"}}}, "text.format"),
            ({"input": []}, "input"),
            ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
            (
                {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
                "input[0].content",
            ),
            ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0]"),
            ({"max_output_tokens": 0}, "max_output_tokens"),
            ({"temperature": 3}, "temperature"),
        ],
    )
    def test_what_is_not_possible_is_refused(self, client, store, arguments, param):
        """With OpenAI's class, and what to do."""
        with pytest.raises(openai.BadRequestError) as told:
            respond(client, store.id, **arguments)
        assert told.value.code == "invalid_parameter"
        if param:
            assert told.value.param == param

    def test_another_model_is_not_found(self, client, store):
        """As with chat."""
        with pytest.raises(openai.NotFoundError) as told:
            respond(client, store.id, model="gpt-5")
        assert told.value.code == "model_not_found"


class TestEmbeddings:
    """Vectors of the model that searches."""

    @pytest.fixture
    def model(self, client):
        return [m.id for m in client.models.list()][-1]

    def test_come_as_asked(self, client, model):
        """As numbers or packed, they are the same; and the same text twice is the same."""
        texts = ["The gate", "The ferry", "The gate"]
        plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
        packed = client.embeddings.create(model=model, input=texts)
        rows = np.array([d.embedding for d in plain.data])
        assert rows.shape == (3, 384)
        assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
        assert np.allclose(rows, [d.embedding for d in packed.data], atol=1e-6)
        assert np.allclose(rows[0], rows[2])
        assert plain.usage.total_tokens > 0
        one = client.embeddings.create(
            model=model, input="The gate", extra_body={"input_type": "query"}
        )
        assert len(one.data) == 1

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"model": "text-embedding-3-small"}, openai.NotFoundError),
            ({"input": []}, openai.BadRequestError),
            ({"input": ""}, openai.BadRequestError),
            ({"input": [1, 2, 3]}, openai.BadRequestError),
            ({"input": ["word " * 2000]}, openai.BadRequestError),
            ({"input": ["x"] * 257}, openai.BadRequestError),
            ({"dimensions": 5}, openai.BadRequestError),
        ],
    )
    def test_wrong_ones_are_refused(self, client, model, arguments, error):
        """None is cut, or guessed at, in silence."""
        with pytest.raises(error):
            client.embeddings.create(**{"model": model, "input": "x"} | arguments)

    def test_a_crowd_is_told_when_to_come_back(self, client, model):
        """So that documents are embedded beside it."""

        def embed(_):
            try:
                client.embeddings.create(model=model, input=["The gate closes at dusk."] * 64)
            except openai.RateLimitError as refused:
                return refused.response.headers["retry-after"]
            return "embedded"

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            found = list(pool.map(embed, range(64)))
        assert "embedded" in found
        assert set(found) == {"embedded", "1"}


class TestAfterACrash:
    """kill -9, in the middle of it."""

    def test_what_was_acknowledged_is_done_after_it(self, tmp_path):
        """Files, stores, what waits to be taken in, and what was to go."""
        with service(tmp_path) as (running, _, client):
            files = [put(client, name=f"{n}.pdf").id for n in range(3)]
            kept = client.vector_stores.create(file_ids=files[:2])
            gone = client.vector_stores.create(file_ids=files)
            client.vector_stores.delete(gone.id)
            client.files.delete(files[2])
            os.kill(running.process.pid, signal.SIGKILL)
            running.process.wait()
        with service(tmp_path) as (_, _, client):
            assert {f.id for f in client.files.list()} == set(files[:2])
            assert [s.id for s in client.vector_stores.list()] == [kept.id]
            deadline = time.monotonic() + PATIENCE_S
            while client.vector_stores.retrieve(kept.id).file_counts.completed < 2:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert client.vector_stores.search(kept.id, query=QUESTION).data
            on_disk = {path.stem for path in (tmp_path / "uploads" / "files").iterdir()}
            assert on_disk == set(files[:2])
