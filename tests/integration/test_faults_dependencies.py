"""Row 35 of the fault table: the embedder dies or hangs, the document store cannot be used."""

import concurrent.futures
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests import pdfs
from tests.faults import bench, refused, wait_until

RECOVERED_S = 90
"""More than loading the model takes on a busy machine."""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One orchestrator for the file."""
    with bench(
        tmp_path_factory.mktemp("dependencies"), own_embedder=True, embedder_timeout_s="3"
    ) as made:
        yield made


@pytest.fixture
def hurt(running):
    """The orchestrator, healed; after the test nothing may be left."""
    assert wait_until(
        lambda: running.status()["dependencies"]["embedder"]["status"] == "ok", RECOVERED_S
    )
    running.heal()
    yield running
    running.nothing_left()


def by_words(answer) -> bool:
    degraded = answer.json()["degraded"]
    return answer.status_code == 200 and degraded is not None and "words only" in degraded["reason"]


def whole(hurt) -> bool:
    answer = hurt.ask()
    return answer.status_code == 200 and answer.json()["degraded"] is None


class TestRow35Embedder:
    """Questions need it for their meaning, documents for their vectors."""

    def test_a_killed_one_is_replaced(self, hurt):
        """Meanwhile questions are searched by words, and say so; then all is as before."""
        before = hurt.status()["embedder"]["restarts"]
        hurt.embedder().kill()
        began_s = time.monotonic()
        answer = hurt.ask()
        assert time.monotonic() - began_s < 3
        assert by_words(answer)
        assert answer.headers["x-tidegate-degraded"] == "L1"
        assert answer.json()["answer"] == "The gate closes [1]."
        assert answer.json()["citations"]
        assert wait_until(lambda: whole(hurt), RECOVERED_S)
        assert hurt.status()["embedder"]["restarts"] == before + 1

    def test_a_hung_one_is_waited_for_once(self, hurt):
        """Questions wait one second for it, then its breaker answers for it at once."""
        os.kill(hurt.embedder().pid, signal.SIGSTOP)
        began_s = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: hurt.ask(), range(6)))
        assert all(by_words(answer) for answer in answers)
        assert time.monotonic() - began_s < 3
        assert hurt.breaker("embedder") != "closed"
        assert wait_until(lambda: whole(hurt), RECOVERED_S)
        assert hurt.breaker("embedder") == "closed"

    def test_it_is_trusted_again_although_nobody_asks(self, hurt):
        """A breaker that opened closes by itself once its embedder answers: at night nobody calls."""
        os.kill(hurt.embedder().pid, signal.SIGSTOP)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda _: hurt.ask(), range(6)))
        assert hurt.breaker("embedder") != "closed"
        os.kill(hurt.embedder().pid, signal.SIGCONT)
        assert wait_until(
            lambda: hurt.status()["dependencies"]["embedder"]["status"] == "ok", RECOVERED_S
        )
        assert hurt.breaker("embedder") == "closed"
        assert whole(hurt)

    def test_an_upload_waits_for_it(self, hurt):
        """A document that arrives meanwhile is taken, and ready once there is an embedder."""
        hurt.embedder().kill()
        added = hurt.http.post(
            "/upload",
            files={"file": ("later.pdf", pdfs.text_pdf(["The sluice opens at noon."]))},
        )
        assert added.status_code == 202
        document = added.json()["documents"][0]["id"]

        def ready() -> bool:
            state = hurt.http.get(f"/documents/{document}").json()
            assert state["status"] != "failed", state
            return state["status"] == "ready"

        assert wait_until(ready, RECOVERED_S)
        hurt.http.delete(f"/documents/{document}")

    def test_a_question_without_a_word_in_common_is_not_answered_no(self, hurt):
        """When words find nothing, nobody knows: 503, not "the documents say nothing"."""
        hurt.embedder().kill()
        response = hurt.http.post("/search", json={"question": "qwertz uiop"})
        assert refused(response) == (503, "embedder_unavailable")


class TestRow35Store:
    """Without the document store there is nothing to answer from."""

    def test_one_that_fails_is_left_alone(self, hurt):
        """503 store_unavailable, then its breaker answers; closes by itself when it is back."""
        with closing(sqlite3.connect(hurt.program.log.with_name("tidegate.db"))) as database:
            database.execute("ALTER TABLE chunks_fts RENAME TO lost")
            codes = [refused(hurt.ask()) for _ in range(12)]
            assert set(codes) == {(503, "store_unavailable"), (503, "circuit_open")}
            assert codes[-1] == (503, "circuit_open")
            assert hurt.series('tidegate_breaker_state{name="store"}') > 0
            assert hurt.http.get("/readyz").status_code == 503
            database.execute("ALTER TABLE lost RENAME TO chunks_fts")
        assert wait_until(lambda: hurt.breaker("store") == "closed", 15)
        assert whole(hurt)

    def test_a_damaged_one_is_told(self, running):
        """503 at once and not ready, while the process stays well. Last: nothing survives it."""
        spoil(running.program.log.with_name("tidegate.db"))
        assert refused(running.ask())[0] == 503
        ready = running.http.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["dependencies"]["store"]["status"] == "down"
        assert running.http.get("/healthz").status_code == 200


def spoil(database: Path) -> None:
    """Overwrite the file and its log; a change before that, so that nobody trusts a cached page."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO meta VALUES ('spoilt', 'yes')")
        for path in (database, database.with_name(f"{database.name}-wal")):
            path.write_bytes(b"\0" * path.stat().st_size)
