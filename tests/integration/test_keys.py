"""API keys in front of a real orchestrator: who gets in, who sees what, and how much of it."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field

import httpx2
import openai
import pytest
from playwright.sync_api import expect

from tests import pdfs
from tests.browsers import browsing, serious, visiting
from tests.fake_engine import FakeEngine, serving
from tests.faults import PATIENCE_S, QUESTION, SMALL, wait_until
from tests.running import orchestrator

NEVER = "doc-000000000000000000000000"
SECRET = "The password of the northern lock is zanzibar."
NOT_FOUND = {
    "document_id": "document_not_found",
    "file_id": "file_not_found",
    "vector_store_id": "vector_store_not_found",
}
BODIES = {
    "/v1/vector_stores/{vector_store_id}": {"name": "mine"},
    "/v1/vector_stores/{vector_store_id}/search": {"query": "The password?"},
    "/v1/vector_stores/{vector_store_id}/files": {"file_id": "file-1"},
    "/v1/vector_stores/{vector_store_id}/files/{file_id}": {"attributes": {}},
    "/v1/vector_stores/{vector_store_id}/file_batches": {"file_ids": ["file-1"]},
}
ORDINARY = pdfs.text_pdf(["The northern lock opens at nine in the morning."])


def never(known_id):
    """An id of the same kind that never was."""
    return f"{known_id[:-24]}{'0' * 24}"


def tidegate(*arguments, data_dir):
    """What the command prints: (exit code, stdout, stderr)."""
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments, "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


@dataclass
class Service:
    """An orchestrator, its engine, and clients of two owners, one admin and nobody."""

    url: str
    data_dir: object
    engine: FakeEngine
    keys: dict[str, str] = field(default_factory=dict)

    def client(self, name):
        headers = {"Authorization": f"Bearer {self.keys[name]}"} if name in self.keys else {}
        return httpx2.Client(
            base_url=self.url, headers=headers, timeout=PATIENCE_S, trust_env=False
        )

    def make_key(self, name, *options):
        code, out, err = tidegate("keys", "create", name, *options, data_dir=self.data_dir)
        assert code == 0, err
        self.keys[name] = out.strip()
        with self.client(name) as http:
            assert wait_until(lambda: http.get("/v1/models").status_code == 200)


def upload(http, data, name="paper.pdf", **fields):
    return http.post(
        "/upload",
        params={"wait": "true"},
        files={"file": (name, data, "application/pdf")},
        data=fields,
    )


def added(http, data, name="paper.pdf", **fields):
    """The document that the upload became."""
    response = upload(http, data, name, **fields)
    assert response.status_code == 200, response.text
    return response.json()["documents"][0]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("keys")
    with (
        serving(FakeEngine()) as engine,
        orchestrator(data_dir, engine.url, **SMALL, embedder_url=engine.url) as running,
    ):
        made = Service(running.url, data_dir, engine)
        with made.client("nobody") as http:
            added(http, pdfs.text_pdf(["From the time before there were keys."]), "old.pdf")
        made.make_key("ann")
        made.make_key("bob")
        made.make_key("ops", "--admin")
        yield made


@pytest.fixture(scope="module")
def open_url(tmp_path_factory):
    """An orchestrator without keys."""
    with (
        serving(FakeEngine()) as engine,
        orchestrator(
            tmp_path_factory.mktemp("open"), engine.url, **SMALL, embedder_url=engine.url
        ) as running,
    ):
        yield running.url


@pytest.fixture
def ann(service):
    with service.client("ann") as http:
        yield http


@pytest.fixture
def bob(service):
    with service.client("bob") as http:
        yield http


@pytest.fixture
def nobody(service):
    with service.client("nobody") as http:
        yield http


@pytest.fixture
def anns(ann):
    """A document of Ann's that nobody else knows."""
    document = added(ann, pdfs.text_pdf([SECRET]), "secret.pdf", collection="papers")
    yield document
    ann.delete(f"/documents/{document['id']}")


def code(response):
    return response.status_code, response.json()["error"]["code"]


class TestTheDoor:
    """What opens without a key, and what does not."""

    def test_every_route_but_a_few_asks_for_a_key(self, nobody):
        """Whatever is added to the routes later, too; and says how to send one."""
        open_routes = {"/healthz", "/readyz"}
        paths = nobody.get("/openapi.json").json()["paths"]
        for path, methods in paths.items():
            for method in methods:
                asked = nobody.request(method, re.sub(r"\{\w+\}", NEVER, path))
                if path in open_routes:
                    assert asked.status_code in {200, 503}
                    continue
                assert code(asked) == (401, "invalid_api_key"), path
                assert asked.headers["www-authenticate"] == "Bearer"
                assert "tidegate keys create" in asked.json()["error"]["message"]

    def test_the_page_is_for_everybody(self, nobody):
        """It asks for the key itself; what it is made of is no secret."""
        assert nobody.get("/", headers={"Accept": "text/html"}).status_code == 200
        assert nobody.get("/web/js/main.js").status_code == 200

    def test_strangers_are_told_no_details(self, nobody, ann):
        """Addresses and errors of what is behind are for those with a key."""
        ready = nobody.get("/readyz").json()
        assert {d["detail"] for d in ready["dependencies"].values()} == {""}

    def test_a_large_upload_without_a_key_hears_why(self, nobody):
        """Before it is read, and without the connection being reset under it."""
        response = upload(nobody, b"%PDF-1.4" + bytes(5_000_000))
        assert code(response) == (401, "invalid_api_key")

    def test_a_revoked_key_opens_nothing(self, service):
        """Within a second or two, without a restart."""
        service.make_key("carl")
        key_id = service.keys["carl"].split("_")[1]
        assert tidegate("keys", "revoke", key_id, data_dir=service.data_dir)[0] == 0
        with service.client("carl") as http:
            assert wait_until(lambda: http.get("/documents").status_code == 401)
        listed = tidegate("keys", "list", data_dir=service.data_dir)[1]
        assert re.search(rf"{key_id}.*carl", listed)
        assert service.keys["carl"] not in listed

    def test_the_official_client_has_its_own_error(self, service):
        """AuthenticationError without a good key; an answer with one."""
        messages = [{"role": "user", "content": QUESTION}]
        with (
            openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk-nothing") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.chat.completions.create(model="fake-model", messages=messages)
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.keys["ann"]) as client:
            assert next(iter(client.models.list())).id == "fake-model"

    def test_no_key_and_no_text_in_the_log(self, service, anns, ann):
        """Only the key's id."""
        ann.post("/search", json={"question": "zanzibar?", "collection": "papers"})
        path = service.data_dir / "orchestrator.log"
        key_id = service.keys["ann"].split("_")[1]
        assert wait_until(lambda: re.search(rf'"/search".*"key": "{key_id}"', path.read_text()))
        log = path.read_text()
        assert not [name for name, text in service.keys.items() if text.split("_", 2)[2] in log]
        assert "zanzibar" not in log


@pytest.mark.browser
def test_the_page_asks_for_a_key(service, anns):
    """A wrong one is told; a good one opens the documents and their pages, and is kept for the tab."""
    with browsing() as browser, visiting(browser, service.url, patience_ms=30_000) as visit:
        page = visit.page
        expect(page.get_by_role("dialog")).to_contain_text("asks for a key")
        visit.pictured("key")
        assert serious(page) == []
        page.get_by_label("Key", exact=True).fill("tg_wrong")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("dialog")).to_contain_text("not known here")
        page.get_by_role("button", name="Later").click()
        expect(page.get_by_role("dialog")).to_be_hidden()
        page.get_by_role("button", name="Enter a key").click()
        page.get_by_label("Key", exact=True).fill(service.keys["ann"])
        with page.expect_navigation():
            page.get_by_role("button", name="Go on").click()
        page.get_by_label("Collection").fill("papers")
        page.get_by_label("Collection").press("Enter")
        expect(page.locator("li.ready")).to_contain_text("secret.pdf")
        expect(page.get_by_role("dialog")).to_be_hidden()
        row = visit.drop("more.pdf", pdfs.text_pdf(["The gate of the castle closes at dusk."]))
        expect(row).to_have_class("ready")
        visit.ask("When does the gate of the castle close?")
        page.locator(".answer .chip").first.click()
        expect(page.locator("#page-words")).to_have_text("Page 1 of 1")
        page.locator("#status-button").click()
        expect(page.locator("#status dl")).to_be_visible()
        visit.pictured("key-status")


class TestNobodyElses:
    """Whatever is somebody else's is like what never was."""

    def answers_alike(self, http, theirs, never, send):
        """The same status, words and headers for another's id as for one that never was."""

        def seen(document_id):
            response = send(http, document_id)
            body = response.text.replace(document_id, "ID")
            body = re.sub(r'"request_id":"[^"]*"', "", body)
            fixed = {"x-request-id", "server-timing", "date"}
            headers = {k: v for k, v in response.headers.items() if k.lower() not in fixed}
            return response.status_code, body, headers

        assert seen(theirs) == seen(never)
        return send(http, theirs)

    def test_every_route_with_an_id_says_404(self, service, ann, bob, anns):
        """By the OpenAPI document, so that a route that is added later is tried, too."""
        paths = bob.get("/openapi.json").json()["paths"]
        with_id = [(path, method) for path in paths for method in paths[path] if "{" in path]
        theirs = self.ids_of(ann, anns)
        tried = 0
        for path, method in with_id:
            names = re.findall(r"\{(\w+)\}", path)
            if names == ["model_id"]:
                continue

            def send(http, first_id, path=path, method=method, names=names):
                query = {"page": 1, "start": 0, "end": 5}
                ids = {name: theirs[name] for name in names} | {names[0]: first_id}
                body = BODIES.get(path) if method == "post" else None
                return http.request(method, path.format(**ids), params=query, json=body)

            response = self.answers_alike(bob, theirs[names[0]], never(theirs[names[0]]), send)
            assert code(response) == (404, NOT_FOUND[names[0]]), path
            tried += 1
        assert tried >= 20
        assert ann.get(f"/documents/{anns['id']}").json()["status"] == "ready"
        store = ann.get(f"/v1/vector_stores/{theirs['vector_store_id']}").json()
        assert store["file_counts"]["total"] == 1

    def ids_of(self, ann, document):
        """Of everything that Ann has, by what it is called in paths."""
        kept = ann.post(
            "/v1/files", files={"file": ("a.pdf", ORDINARY)}, data={"purpose": "user_data"}
        ).json()["id"]
        store = ann.post("/v1/vector_stores", json={}).json()["id"]
        batch = ann.post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": [kept]})
        return {
            "document_id": document["id"],
            "file_id": kept,
            "vector_store_id": store,
            "batch_id": batch.json()["id"],
        }

    def test_a_store_takes_ones_own_files_only(self, ann, bob, anns):
        """Another's file is like one that never was; and so is their store for an answer."""
        theirs = self.ids_of(ann, anns)
        mine = bob.post("/v1/vector_stores", json={}).json()["id"]

        def put(http, file_id):
            return http.post(f"/v1/vector_stores/{mine}/files", json={"file_id": file_id})

        def create(http, file_id):
            return http.post("/v1/vector_stores", json={"file_ids": [file_id]})

        def respond(http, store_id):
            tool = {"type": "file_search", "vector_store_ids": [store_id]}
            body = {"model": "fake-model", "input": "The password?", "tools": [tool]}
            return http.post("/v1/responses", json=body)

        for send, theirs_id in (
            (put, theirs["file_id"]),
            (create, theirs["file_id"]),
            (respond, theirs["vector_store_id"]),
        ):
            assert self.answers_alike(bob, theirs_id, never(theirs_id), send).status_code == 404
        for path in ("/v1/files", "/v1/vector_stores"):
            listed = {one["id"] for one in bob.get(path).json()["data"]}
            assert not listed & set(theirs.values())

    @pytest.mark.parametrize("path", ["/ask", "/search", "/v1/chat/completions"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_questions_find_nothing_of_it(self, bob, anns, path, stream):
        """Neither by its id nor by the name of its collection."""
        added(bob, ORDINARY, collection="papers")

        def send(http, document_id):
            asked = {"collection": "papers", "document_ids": [document_id]}
            if path == "/v1/chat/completions":
                turns = [{"role": "user", "content": "What is the password?"}]
                asked |= {"model": "fake-model", "messages": turns, "stream": stream}
            else:
                asked |= {"question": "What is the password?"}
                asked |= {"stream": stream} if path == "/ask" else {}
            return http.post(path, json=asked)

        response = self.answers_alike(bob, anns["id"], NEVER, send)
        assert code(response) == (404, "document_not_found")
        if path != "/v1/chat/completions":
            asked = {"question": "What is the password?", "collection": "papers"}
            found = bob.post(path, json=asked)
            assert "zanzibar" not in found.text
            assert "secret.pdf" not in found.text

    def test_a_collection_that_only_others_have_does_not_exist(self, ann, bob, anns):
        """In the words that any other name gets."""
        added(ann, ORDINARY, collection="only-anns")

        def send(http, name):
            return http.post("/search", json={"question": "Locks?", "collection": name})

        response = self.answers_alike(bob, "only-anns", "nobodys-x", send)
        assert code(response) == (404, "collection_not_found")

    def test_lists_hold_ones_own(self, ann, bob, anns):
        """With and without a collection; and a page cannot be turned at another's document."""
        mine = added(bob, ORDINARY, collection="papers")["id"]
        for query in ({}, {"collection": "papers"}):
            listed = bob.get("/documents", params=query).json()["documents"]
            assert anns["id"] not in {d["id"] for d in listed}
            assert mine in {d["id"] for d in listed}
            assert {d["collection"] for d in listed} == {"papers"}

        def send(http, document_id):
            return http.get("/documents", params={"after": document_id})

        assert self.answers_alike(bob, anns["id"], NEVER, send).status_code == 404

    def test_an_upload_cannot_replace_it(self, ann, bob, anns):
        """Nor find out that it could."""

        def send(http, document_id):
            return upload(http, ORDINARY, collection="papers", replaces=document_id)

        self.answers_alike(bob, anns["id"], NEVER, send)
        assert ann.get(f"/documents/{anns['id']}").status_code == 200

    def test_the_same_bytes_are_two_documents(self, ann, bob):
        """Whoever uploads what another has is told nothing, and deletes only their own."""
        data = pdfs.text_pdf(["A paper that both of them have."])
        first, second = added(ann, data), added(bob, data)
        assert not second["duplicate"]
        assert first["id"] != second["id"]
        assert bob.delete(f"/documents/{second['id']}").status_code == 204
        assert ann.get(f"/documents/{first['id']}/file").content == data

    def test_status_counts_ones_own(self, service, ann, bob, anns):
        """And says nothing of what the whole service holds, or is reached by."""
        before = bob.get("/status").json()
        more = added(ann, pdfs.text_pdf(["One more of Ann's."]))
        after = bob.get("/status").json()
        assert after["documents"] == before["documents"]
        assert set(after) == {"version", "dependencies", "gate", "engine", "documents"}
        assert service.engine.url not in json.dumps(after)
        ann.delete(f"/documents/{more['id']}")
        with service.client("ops") as ops:
            assert ops.get("/status").json()["documents"]["total"] > after["documents"]["total"]
            assert "tidegate_requests_running" in ops.get("/metrics").text
        assert code(bob.get("/metrics")) == (403, "admin_key_needed")

    def test_what_was_there_before_keys_waits_for_its_owner(self, service, ann):
        """A key for `local` opens it; nobody else's does."""
        service.make_key("old", "--owner", "local")
        with service.client("old") as local:
            (document,) = local.get("/documents").json()["documents"]
        assert document["filename"] == "old.pdf"
        assert ann.get(f"/documents/{document['id']}").status_code == 404

    def test_keys_of_one_owner_open_the_same(self, service, ann, anns):
        """So that a key can be changed for another."""
        service.make_key("ann-2", "--owner", "ann")
        with service.client("ann-2") as again:
            assert (
                again.get(f"/documents/{anns['id']}").json()
                == ann.get(f"/documents/{anns['id']}").json()
            )


class TestQuotas:
    """What each key may use up."""

    def test_requests(self, service):
        """The one beyond the minute's is told when to come back; other keys do not notice."""
        service.make_key("slow", "--requests-per-min", "30")
        with service.client("slow") as http:
            answers = [http.get("/documents") for _ in range(40)]
        refused = [a for a in answers if a.status_code != 200]
        assert refused
        assert code(refused[-1]) == (429, "rate_limit_exceeded")
        assert 0 < int(refused[-1].headers["retry-after-ms"]) <= 2000
        with service.client("ann") as http:
            assert http.get("/documents").status_code == 200

    @pytest.mark.parametrize("stream", [False, True])
    def test_tokens(self, service, stream):
        """A proper 429 also for a stream, and the engine is not asked."""
        name = f"few-{stream}"
        service.make_key(name, "--tokens-per-min", "1500", "--owner", "few")
        with service.client(name) as http:
            added(http, ORDINARY)
            service.engine.play()
            asked = {"question": "When does the northern lock open?", "stream": stream}
            first = http.post("/ask", json=asked | {"max_tokens": 400})
            assert first.status_code == 200, first.text
            # What the first one used, some hundred tokens, was settled: a second one fits.
            second = http.post("/ask", json=asked | {"max_tokens": 300, "top_k": 1})
            assert second.status_code == 200, second.text
            seen = len(service.engine.requests)
            third = http.post("/ask", json=asked | {"max_tokens": 2000, "top_k": 50})
        assert code(third) == (429, "rate_limit_exceeded")
        assert int(third.headers["retry-after"]) >= 1
        assert len(service.engine.requests) == seen

    def test_documents_and_bytes(self, service):
        """Over all collections of the owner; told what to do, and not to try again by itself."""
        service.make_key("small", "--max-documents", "2", "--max-bytes", "100000")
        with service.client("small") as http:
            first = added(http, pdfs.text_pdf(["One."]), collection="a")
            added(http, pdfs.text_pdf(["Two."]), collection="b")
            response = upload(http, pdfs.text_pdf(["Three."]), collection="c")
            assert code(response) == (429, "quota_exceeded")
            assert response.headers["x-should-retry"] == "false"
            assert "retry-after" not in response.headers
            http.delete(f"/documents/{first['id']}")
            big = pdfs.text_pdf(["Big."]) + b"\n%" + b"x" * 200_000
            response = upload(http, big)
            assert code(response) == (429, "quota_exceeded")
            added(http, pdfs.text_pdf(["Three."]), collection="c")


class TestWithoutKeys:
    """On this machine only, and not for the pages of others."""

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Host": "rebound.evil.example"},
            {"Host": "[rebound"},
            {"Origin": "http://127.0.0.1:1"},
        ],
    )
    def test_pages_of_other_sites_are_refused(self, open_url, headers):
        """Also what a browser sends without asking first, and names that lead here by a trick."""
        for path in ("/documents", "/status", "/"):
            assert code(httpx2.get(f"{open_url}{path}", headers=headers, trust_env=False)) == (
                403,
                "foreign_origin",
            )
        file = {"file": ("a.pdf", ORDINARY, "application/pdf")}
        answer = httpx2.post(f"{open_url}/upload", files=file, headers=headers, trust_env=False)
        assert code(answer) == (403, "foreign_origin")
        assert httpx2.get(f"{open_url}/documents", trust_env=False).json()["documents"] == []

    def test_its_own_page_and_other_programs_are_not(self, open_url):
        """A browser names its own origin with some requests; others name none."""
        own = {"Origin": open_url}
        assert httpx2.get(f"{open_url}/documents", headers=own, trust_env=False).is_success
        for name in (
            "localhost",
            "[::1]:8080",
            "tidegate",
            "host.docker.internal",
            "10.0.0.8:8080",
        ):
            named = httpx2.get(f"{open_url}/documents", headers={"Host": name}, trust_env=False)
            assert named.is_success, name

    @pytest.mark.parametrize(
        "path", ["/", "/status", "/web/js/main.js", "/nowhere", "/documents/x"]
    )
    def test_no_answer_is_taken_for_another_type(self, open_url, path):
        """A document or an error is never guessed to be a page, whoever serves it."""
        answer = httpx2.get(f"{open_url}{path}", trust_env=False)
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]

    def test_no_browser_is_let_in_by_cors(self, open_url):
        """No answer says that pages of others may read it."""
        asked = httpx2.options(
            f"{open_url}/ask",
            headers={"Origin": open_url, "Access-Control-Request-Method": "POST"},
            trust_env=False,
        )
        assert not [name for name in asked.headers if name.lower().startswith("access-control")]


class TestWhereOthersAre:
    """An address that other machines can reach."""

    def started(self, data_dir, *arguments, **environment):
        settings = {"ORCHESTRATOR_PORT": "0", "ORCHESTRATOR_DATA_DIR": str(data_dir)} | environment
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "serve", *arguments],
            env=settings | {"PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )

    def test_is_refused_without_keys(self, tmp_path):
        """At once, with exit code 2, and what to do."""
        refused = self.started(tmp_path, ORCHESTRATOR_HOST="0.0.0.0")
        _, err = refused.communicate(timeout=60)
        assert refused.returncode == 2
        assert "tidegate keys create" in err
        assert "--insecure" in err

    def test_a_container_is_judged_by_where_it_is_published(self, tmp_path):
        """It listens on all of its own addresses, which nobody else can reach."""
        refused = self.started(
            tmp_path,
            ORCHESTRATOR_HOST="127.0.0.1",
            ORCHESTRATOR_PUBLISHED_HOST="0.0.0.0",
        )
        refused.communicate(timeout=60)
        assert refused.returncode == 2

    @pytest.mark.parametrize("way", ["insecure", "a key"])
    def test_is_taken_with_keys_or_if_it_is_meant(self, tmp_path, way):
        """It goes on to load, then; it is ended before anybody can reach it."""
        if way == "a key":
            assert tidegate("keys", "create", "me", data_dir=tmp_path)[0] == 0
        arguments = ["--insecure"] if way == "insecure" else []
        # A published address, so that this test opens no port to anybody.
        going = self.started(tmp_path, *arguments, ORCHESTRATOR_PUBLISHED_HOST="0.0.0.0")
        try:
            assert wait_until((tmp_path / "tidegate.db").exists, 60)
            assert going.poll() is None
        finally:
            going.terminate()
            going.communicate(timeout=60)
