"""What outlives the orchestrator's process, and how it goes."""

import shutil
import signal
import time

import httpx2
import psutil
import pytest

from orchestrator.retrieval.embedder_model import bundled_embedder
from tests import pdfs
from tests.running import orchestrator

BODY = {"question": "Where is the zeppelin hangar?"}


def upload(url: str, data: bytes, *, wait: bool = True) -> dict:
    response = httpx2.post(
        f"{url}/upload",
        params={"wait": str(wait).lower()},
        files={"file": ("a.pdf", data, "application/pdf")},
        timeout=60,
        trust_env=False,
    )
    assert response.is_success, response.text
    return response.json()["documents"][0]


def vectors_once_loaded(url: str) -> int:
    """Vectors in memory, once nothing is being loaded any more."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        indexes = httpx2.get(f"{url}/status", trust_env=False).json()["indexes"]
        if not indexes["building"]:
            return sum(indexes["vectors"].values())
        time.sleep(0.05)
    raise AssertionError(indexes)


def test_documents_survive_kill_9_and_unfinished_ones_go_on(tmp_path, fake_engine):
    """What was acknowledged is there after a crash: the finished found, the queued made ready."""
    big = pdfs.text_pdf([f"Page {n} tells of topic {n}. " * 30 for n in range(40)])
    with orchestrator(tmp_path, fake_engine.url) as running:
        ready = upload(running.url, pdfs.text_pdf(["The zeppelin hangar is in Friedrichshafen."]))
        queued = upload(running.url, big, wait=False)
        children = running.descendants()[1:]
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        assert not psutil.wait_procs(children, timeout=5)[1], (
            "the parser and the embedder die with their parent"
        )
    with orchestrator(tmp_path, fake_engine.url) as running:
        assert vectors_once_loaded(running.url) >= 1, "the index is there before anybody asks"
        found = httpx2.post(f"{running.url}/search", json=BODY, trust_env=False).json()
        assert found["passages"][0]["document_id"] == ready["id"]
        until = time.monotonic() + 30
        while time.monotonic() < until:
            document = httpx2.get(f"{running.url}/documents/{queued['id']}", trust_env=False).json()
            if document["status"] == "ready":
                break
            time.sleep(0.1)
        assert (document["status"], document["pages_done"]) == ("ready", 40)


def test_sigterm_lets_an_answer_finish(tmp_path, fake_engine):
    """Asked to stop, it finishes the stream that runs, exits with 0, and leaves nothing behind."""
    with orchestrator(tmp_path, fake_engine.url) as running:
        upload(running.url, pdfs.text_pdf(["The zeppelin hangar is in Friedrichshafen."]))
        children = running.descendants()[1:]
        fake_engine.play(tokens=["word "] * 10, token_s=0.1)
        with httpx2.stream(
            "POST", f"{running.url}/ask", json={**BODY, "stream": True}, trust_env=False
        ) as response:
            running.process.send_signal(signal.SIGTERM)
            names = [event.event for event in httpx2.EventSource(response)]
        assert names[-1] == "done"
        assert running.process.wait(10) == 0
        assert not psutil.wait_procs(children, timeout=5)[1]


def test_starts_without_an_engine_and_finds_it_later(tmp_path, fake_engine):
    """No engine: searching works, asking is told why; it is used as soon as it answers."""
    with orchestrator(tmp_path, "http://127.0.0.1:9", engine_poll_s="0.2") as running:
        upload(running.url, pdfs.text_pdf(["The zeppelin hangar is in Friedrichshafen."]))
        assert httpx2.post(f"{running.url}/search", json=BODY, trust_env=False).is_success
        strict = {**BODY, "degrade": False}
        asked = httpx2.post(f"{running.url}/ask", json=strict, trust_env=False)
        assert (asked.status_code, asked.json()["error"]["code"]) == (503, "engine_unavailable")
        assert int(asked.headers["retry-after"]) >= 1
        ready = httpx2.get(f"{running.url}/readyz", trust_env=False)
        assert ready.status_code == 503
        assert ready.json()["dependencies"]["engine"]["status"] == "down"


def test_a_used_port_is_one_clear_line(tmp_path, fake_engine):
    """The second orchestrator on a port says which setting to change, and exits with 2."""
    with orchestrator(tmp_path / "one", fake_engine.url) as running:
        port = running.url.rsplit(":", 1)[1]
        second = orchestrator(tmp_path / "two", fake_engine.url, port=port)
        with pytest.raises(AssertionError, match="exited with 2") as refused, second:
            pass
    assert "ORCHESTRATOR_PORT" in str(refused.value)


def test_another_embedding_model_is_refused(tmp_path, fake_engine):
    """Vectors of two models are never mixed: the start is refused in one line, nothing is lost."""
    with orchestrator(tmp_path / "data", fake_engine.url) as running:
        upload(running.url, pdfs.text_pdf(["The zeppelin hangar is in Friedrichshafen."]))
    other = tmp_path / "other-model"
    shutil.copytree(bundled_embedder(), other)
    config = other / "config.json"
    config.write_text(config.read_text().replace("{", '{"name": "other", ', 1))
    changed = orchestrator(tmp_path / "data", fake_engine.url, embedding_model=str(other))
    with pytest.raises(AssertionError, match="exited with 2") as refused, changed:
        pass
    assert "were embedded by another model" in str(refused.value)
    assert "Traceback" not in str(refused.value)
    with orchestrator(tmp_path / "data", fake_engine.url) as running:
        found = httpx2.post(f"{running.url}/search", json=BODY, trust_env=False).json()
        assert len(found["passages"]) == 1


def test_a_damaged_database_is_one_clear_line(tmp_path, fake_engine):
    """A file that is no database is told, and left as it is."""
    (tmp_path / "tidegate.db").write_bytes(b"this is no database, and must not be overwritten" * 99)
    broken = orchestrator(tmp_path, fake_engine.url)
    with pytest.raises(AssertionError, match="exited with 2") as refused, broken:
        pass
    assert "Traceback" not in str(refused.value)
    assert (tmp_path / "tidegate.db").read_bytes().startswith(b"this is no database")
