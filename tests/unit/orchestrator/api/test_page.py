"""The page's files: what is served to whom, under which policy, and that nothing in them is foreign."""

import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from orchestrator.api.middleware import RequestContext
from orchestrator.api.page import FOLDER, PageFiles, PageRoutes

OURS = [
    path
    for path in sorted(FOLDER.rglob("*"))
    if path.suffix in {".html", ".css", ".js", ".svg"} and "vendor" not in path.parts
]


@pytest.fixture
def finished():
    """What came of each request."""
    return []


@pytest.fixture
def client(finished):
    app = FastAPI()
    app.include_router(PageRoutes().router())
    app.mount("/web", PageFiles())
    return TestClient(RequestContext(app, max_open=8, on_finished=finished.append))


def test_browsers_get_the_page_and_others_the_routes(client):
    """By what they accept."""
    page = client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "<!doctype html>" in page.text
    listed = client.get("/", headers={"Accept": "*/*"})
    assert listed.headers["content-type"].startswith("text/plain")
    assert "POST /ask" in listed.text


@pytest.mark.parametrize("path", ["/", "/web/js/main.js", "/web/vendor/pdfjs/pdf.worker.min.mjs"])
def test_every_file_has_the_policy(client, path):
    """Nothing inline, nothing from elsewhere, no frame around it."""
    headers = client.get(path, headers={"Accept": "text/html"}).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("suffix", ["js/main.js", "vendor/pdfjs/pdf.min.mjs"])
def test_scripts_are_called_scripts(client, suffix):
    """A module of another type is refused by browsers."""
    kind = client.get(f"/web/{suffix}").headers["content-type"]
    assert kind.partition(";")[0] in {"text/javascript", "application/javascript"}


@pytest.mark.parametrize(
    "path", ["/web/../app.py", "/web/%2e%2e/app.py", "/web/nothing.js", "/web/"]
)
def test_nothing_else_is_served(client, path):
    """Neither what lies beside the folder nor a list of what is in it."""
    assert client.get(path).status_code == 404


def test_the_pages_files_count_as_one_route(client, finished):
    """What is "unknown" is what nobody serves: a scan, a typing error; worth a look."""
    for path in ("/", "/web/js/main.js", "/web/nothing.js", "/nowhere"):
        client.get(path)
    assert [(done.route, done.status) for done in finished] == [
        ("/", 200),
        ("/web", 200),
        ("/web", 404),
        ("unknown", 404),
    ]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_nothing_of_ours_is_loaded_from_elsewhere_or_made_of_strings(path):
    """No foreign address, no inline script or style, no markup out of text."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    if path.suffix == ".html":
        assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]* src=)", text)


def test_every_vendored_library_is_named_with_its_licence():
    """The list has a line for each folder, which holds a licence."""
    listed = (FOLDER / "vendor" / "README.md").read_text(encoding="utf-8")
    folders = [path for path in (FOLDER / "vendor").iterdir() if path.is_dir()]
    assert len(folders) == 3
    for folder in folders:
        assert f"`{folder.name}/`" in listed
        assert (folder / "LICENSE").is_file()
