"""A document's way through the real orchestrator: in, followed, found, deleted, refused."""

import concurrent.futures
import json
import socket

import httpx2
import pytest

from tests import pdfs


def upload(http, data: bytes, name: str = "paper.pdf", *, wait: bool = True, **fields):
    return http.post(
        "/upload",
        params={"wait": "true"} if wait else {},
        files={"file": (name, data, "application/pdf")},
        data=fields,
    )


def stored(http):
    return {d["id"] for d in http.get("/documents", params={"limit": 1000}).json()["documents"]}


def test_an_upload_becomes_searchable_and_goes_again(http, engine):
    """Acknowledged, ready, found on its page, given back, deleted, gone from the search."""
    data = pdfs.text_pdf(["Nothing here.", "The zeppelin hangar stands in Friedrichshafen."])
    response = upload(http, data, collection="life")
    (document,) = response.json()["documents"]
    assert (response.status_code, document["status"], document["pages"]) == (200, "ready", 2)
    body = {"question": "Where is the zeppelin hangar?", "collection": "life"}
    found = http.post("/search", json=body).json()["passages"]
    assert (found[0]["page"], found[0]["document_id"]) == (2, document["id"])
    back = http.get(f"/documents/{document['id']}/file")
    assert back.content == data
    assert back.headers["content-type"] == "application/pdf"
    part = http.get(f"/documents/{document['id']}/file", headers={"Range": "bytes=0-4"})
    assert (part.status_code, part.content) == (206, data[:5])
    assert http.delete(f"/documents/{document['id']}").status_code == 204
    assert http.get(f"/documents/{document['id']}").status_code == 404
    assert http.post("/search", json=body).json()["error"]["code"] == "collection_not_found"


def test_the_same_bytes_again_are_no_work(http, engine):
    """A second upload has the same id and says so; another collection has its own."""
    data = pdfs.text_pdf(["The same bytes."])
    first, second, other = (
        upload(http, data, collection=name).json()["documents"][0] for name in ("a", "a", "b")
    )
    assert (first["duplicate"], second["duplicate"], other["duplicate"]) == (False, True, False)
    assert first["id"] == second["id"] != other["id"]


def test_fifty_uploads_of_the_same_bytes_at_once_are_one(http, engine):
    """Racing uploads end as one document with one set of chunks."""
    data = pdfs.text_pdf(["Raced by many."])
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: upload(http, data, collection="race"), range(50)))
    documents = [a.json()["documents"][0] for a in answers]
    assert {a.status_code for a in answers} == {200}
    assert len({d["id"] for d in documents}) == 1
    assert sum(not d["duplicate"] for d in documents) == 1
    listed = http.get("/documents", params={"collection": "race"}).json()["documents"]
    assert [d["chunks"] for d in listed] == [1]


def test_progress_can_be_followed(http, engine):
    """The event stream ends when the document is ready, and shows pages on the way."""
    data = pdfs.text_pdf([f"Page {n} speaks of number {n}." for n in range(1, 30)])
    (document,) = upload(http, data, wait=False, collection="slow").json()["documents"]
    with http.stream("GET", f"/documents/{document['id']}/events") as response:
        seen = [json.loads(e.data) for e in httpx2.EventSource(response)]
    assert seen[-1]["status"] == "ready"
    assert seen[-1]["pages_done"] == seen[-1]["pages"] == 29


def test_several_files_in_one_request(http, engine):
    """Each file has its entry, in order; a bad one does not spoil the others."""
    files = [
        ("file", ("one.pdf", pdfs.text_pdf(["First of two."]), "application/pdf")),
        ("file", ("two.pdf", b"no pdf at all", "application/pdf")),
    ]
    response = http.post("/upload", files=files, data={"collection": "pair"})
    first, second = response.json()["documents"]
    assert response.status_code == 202
    assert (first["filename"], second["status"]) == ("one.pdf", "refused")
    assert second["error"]["code"] == "not_a_pdf"


BAD_PDFS = {
    "text": (lambda: b"# just text\n", 415, "not_a_pdf"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 500, 415, "not_a_pdf"),
    "empty": (lambda: b"", 400, "empty_file"),
    "encrypted": (lambda: pdfs.encrypted("secret"), 422, "encrypted_document"),
    "image only": (pdfs.image_only, 422, "no_text"),
    "no pages": (pdfs.no_pages, 422, "no_pages"),
    "too many pages": (lambda: pdfs.many_pages(51), 413, "too_many_pages"),
    "damaged": (pdfs.damaged, 422, "damaged_document"),
    "too large": (lambda: b"%PDF-1.7\n" + b"x" * 3_500_000, 413, "document_too_large"),
}


@pytest.mark.parametrize("name", BAD_PDFS)
def test_a_pdf_that_cannot_be_used_says_why(http, engine, name):
    """Each kind has its code, in the one error shape."""
    make, status, code = BAD_PDFS[name]
    before = stored(http)
    response = upload(http, make())
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    if code != "no_text":  # accepted first: that no page has text is only known at the end
        assert stored(http) == before, "nothing half-stored"


def test_a_truncated_pdf_is_read_or_refused(http, engine):
    """What can be saved of a cut file is, and what cannot is told."""
    response = upload(http, pdfs.truncated())
    assert response.status_code in {200, 422}, response.text


def test_pages_without_text_are_named(http, engine):
    """A partly scanned document is ready, with a warning that names the pages."""
    data = pdfs.mixed(["Written page one.", "Written page two."], image_pages=2)
    (document,) = upload(http, data, collection="mixed").json()["documents"]
    assert document["status"] == "ready"
    assert "pages 3-4 of 4" in document["warning"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.pdf", "passwd.pdf"),
        ("C:\\docs\\a.pdf", "a.pdf"),
        ("ä ü 報告.pdf", "ä ü 報告.pdf"),
        ("x" * 400 + ".pdf", None),
        ("line\nbreak.pdf", None),
    ],
)
def test_names_are_shown_and_never_paths(http, engine, name, shown):
    """A file's name is a label; nothing on the disk is named after it."""
    data = pdfs.text_pdf([f"Named {len(name)} and {name[:3]!r}."])
    (document,) = upload(http, data, name, collection="names").json()["documents"]
    assert "/" not in document["filename"]
    assert "\n" not in document["filename"]
    assert len(document["filename"]) <= 200
    if shown:
        assert document["filename"] == shown


def test_a_name_that_is_no_utf8_is_taken(http, engine):
    """Bytes that are no UTF-8 in a name make a label, not an error."""
    boundary = b"frontier"
    data = pdfs.text_pdf(["Named in bytes."])
    body = (
        b"--"
        + boundary
        + b'\r\nContent-Disposition: form-data; name="file"; filename="caf\xe9.pdf"'
        b"\r\nContent-Type: application/pdf\r\n\r\n" + data + b"\r\n--" + boundary + b"--\r\n"
    )
    response = http.post(
        "/upload?wait=true",
        content=body,
        headers={"Content-Type": "multipart/form-data; boundary=frontier"},
    )
    assert response.status_code == 200, response.text
    assert response.json()["documents"][0]["filename"].startswith("caf")


def test_a_body_over_the_limit_is_refused_before_it_is_sent(http, engine):
    """Two gigabytes are refused by their Content-Length; the answer arrives."""
    host, port = http.base_url.host, http.base_url.port
    with socket.create_connection((host, port), timeout=10) as raw:
        raw.sendall(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2147483648\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n" + b"x" * 65536
        )
        answer = b""
        while part := raw.recv(65536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer


def test_a_body_without_a_length_is_cut_off_at_the_limit(http, engine):
    """Chunked bodies are counted on the way."""

    def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n'
        for _ in range(200):
            yield b"x" * 65536

    response = http.post(
        "/upload",
        content=endless(),
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        ({"json": {}}, 415, "unsupported_media_type"),
        ({"files": {"other": ("a.pdf", b"x")}}, 400, "invalid_request"),
        (
            {"files": {"file": ("a.pdf", b"x")}, "data": {"collection": "a/b"}},
            422,
            "invalid_parameter",
        ),
        (
            {"files": {"file": ("a.pdf", b"x")}, "data": {"collection": ["a", "b"]}},
            422,
            "invalid_parameter",
        ),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
            400,
            "invalid_request",
        ),
    ],
)
def test_a_malformed_upload_is_told_what_to_send(http, arguments, status, code):
    """Wrong form, wrong field, wrong name."""
    response = http.post("/upload", **arguments)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_a_charset_that_cannot_be_read_is_told(http):
    """A codec that refuses every byte is the caller's mistake, not a bug of ours."""
    response = http.post(
        "/upload",
        content=b'--b\r\nContent-Disposition: form-data; name="collection"\r\n\r\na\r\n--b--\r\n',
        headers={"Content-Type": "multipart/form-data; boundary=b; charset=undefined"},
    )
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


def test_a_number_that_the_store_cannot_hold_is_refused(http, engine, handbook):
    """Beyond 64 bits SQLite raises: such a page does not get as far."""
    asked = {"page": 2**63, "start": 0, "end": 5}
    response = http.get(f"/documents/{handbook}/boxes", params=asked)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "page")


@pytest.mark.parametrize(
    ("ranges", "status", "code"),
    [
        ("bytes=9999999-", 416, "range_not_satisfiable"),
        ("bytes=-0", 416, "range_not_satisfiable"),
        ("bytes=", 400, "invalid_request"),
        ("pages=1-2", 400, "invalid_request"),
    ],
)
def test_a_range_that_cannot_be_served_is_told_like_every_error(
    http, engine, handbook, ranges, status, code
):
    """And with the size of the file, where the range lies beyond it."""
    whole = http.get(f"/documents/{handbook}/file")
    response = http.get(f"/documents/{handbook}/file", headers={"Range": ranges})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    size = f"bytes */{len(whole.content)}" if status == 416 else None
    assert response.headers.get("content-range") == size


def test_unknown_documents_are_not_found(http):
    """Every route of a document that does not exist gives the same 404."""
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/file"), ("GET", "/events")):
        response = http.request(method, f"/documents/doc-nope{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (
            404,
            "document_not_found",
        )


def test_the_list_comes_in_pages(http, engine):
    """`next` continues where the page before ended."""
    for n in range(3):
        upload(http, pdfs.text_pdf([f"Listed as number {n}."]), collection="listed")
    first = http.get("/documents", params={"collection": "listed", "limit": 2}).json()
    rest = http.get(
        "/documents", params={"collection": "listed", "limit": 2, "after": first["next"]}
    ).json()
    assert (len(first["documents"]), len(rest["documents"]), rest["next"]) == (2, 1, None)


def test_a_passage_can_be_marked_on_its_page(http, engine):
    """What `/search` says of a passage is enough to ask where it stands; nonsense is told."""
    data = pdfs.text_pdf(["Nothing here.", "The zeppelin hangar stands in Friedrichshafen."])
    (document,) = upload(http, data, collection="marks").json()["documents"]
    body = {"question": "Where is the zeppelin hangar?", "collection": "marks"}
    passage = http.post("/search", json=body).json()["passages"][0]
    place = {"page": passage["page"], "start": passage["char_start"], "end": passage["char_end"]}
    found = http.get(f"/documents/{document['id']}/boxes", params=place).json()
    assert found["page"] == 2
    ((left, top, right, bottom),) = found["boxes"]
    assert 0 < left < right < 1
    assert 0 < top < bottom < 0.5
    for wrong in ({"page": 9}, {"end": 10**6}, {"start": place["end"]}):
        refused = http.get(f"/documents/{document['id']}/boxes", params=place | wrong)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_parameter")


def test_a_document_is_replaced_in_one_moment(http, engine):
    """The old one is found until the new one is; then it is gone, with its file."""
    old, new = (
        pdfs.text_pdf([f"The zeppelin hangar stands in {place}."]) for place in ("Bremen", "Kiel")
    )
    (first,) = upload(http, old, collection="versions").json()["documents"]
    (second,) = upload(http, new, collection="versions", replaces=first["id"]).json()["documents"]
    assert (second["status"], second["replaces"]) == ("ready", first["id"])
    body = {"question": "Where is the zeppelin hangar?", "collection": "versions"}
    found = http.post("/search", json=body).json()["passages"]
    assert [p["document_id"] for p in found] == [second["id"]]
    assert http.get(f"/documents/{first['id']}").status_code == 404
    refused = upload(http, old, collection="versions", replaces="doc-nobody")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "document_not_found")


def test_a_failed_document_can_be_retried(http, engine):
    """It is listed as failed, starts over, and fails again for the same reason; others are refused."""
    upload(http, pdfs.image_only(), collection="again")
    query = {"collection": "again", "status": "failed"}
    (failed,) = http.get("/documents", params=query).json()["documents"]
    assert http.post(f"/documents/{failed['id']}/retry").status_code == 202
    with http.stream("GET", f"/documents/{failed['id']}/events") as response:
        seen = [json.loads(e.data) for e in httpx2.EventSource(response)]
    assert seen[-1]["error"]["code"] == "no_text"
    (ready,) = upload(http, pdfs.text_pdf(["Fine."]), collection="again").json()["documents"]
    refused = http.post(f"/documents/{ready['id']}/retry")
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_parameter")
