"""
People on locust's greenlets.

Each act is sent when it is due, tried again as the `openai` client tries, and written down. Nobody waits
for the answer before the next act.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import gevent
import requests
from gevent.pool import Group

from loadtest.client_rules import NO_STATUS, ClientRules, retry_after_s
from loadtest.logbook import Entry, Outcome, Try, refused
from loadtest.openai_person import ask_openai
from loadtest.streaming import Stream, read_stream
from loadtest.workload import Act
from tests.pdfs import text_pdf

CONNECT_S = 5.0
READY_WITHIN_S = 300.0
LOOK_EVERY_S = 1.0
SOCKETS = 2000


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What came of one attempt.

    Attributes:
        tried: For the logbook.
        headers: Names in lower case.
        stream: What was seen of it; None of an answer that came at once, or of none.
        payload: The body, or the stream's last event.
    """

    tried: Try
    headers: Mapping[str, str]
    stream: Stream | None
    payload: Mapping[str, Any]


class People:
    """
    Everybody who uses one service.

    Args:
        url: Where it listens.
        model: Its name on OpenAI's wire.
        rules: How patient they are.
        pdfs: Files to upload beside those made here.
        told: Called with the entry of each act that has ended.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        rules: ClientRules,
        pdfs: tuple[bytes, ...],
        told: Callable[[Entry], None],
    ) -> None:
        self._url = url
        self._model = model
        self._rules = rules
        self._pdfs = pdfs
        self._told = told
        self._group = Group()
        self._rng = random.Random(0)  # noqa: S311 - jitter of retries, no secret
        self._http = requests.Session()
        self._http.trust_env = False
        self._http.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=SOCKETS))

    @property
    def open(self) -> int:
        """Acts that have no end yet."""
        return len(self._group)

    def send(self, act: Act, entry: Entry, *, due_s: float, key: str) -> None:
        """
        Begin an act, and come back at once.

        Args:
            act: What is done.
            entry: Where it is written down; its outcome stays `hung` until it has another.
            due_s: When it was due, on the monotonic clock.
            key: The person's.
        """
        self._group.spawn(self._do, act, entry, due_s, key)

    def drain(self, within_s: float) -> None:
        """Wait for what is open; what has no end by then is given up, and stays `hung`."""
        self._group.join(timeout=within_s)
        self._group.kill(timeout=LOOK_EVERY_S)

    def still_there(self, documents: list[str]) -> list[str]:
        """Which of these documents cannot be asked about any more."""
        return [one for one in documents if self._document(one).get("status") != "ready"]

    def _do(self, act: Act, entry: Entry, due_s: float, key: str) -> None:
        entry.late_s = time.monotonic() - due_s
        try:
            if act.kind == "upload":
                self._upload(act, entry, key)
            elif act.kind == "openai":
                ask_openai(
                    act, entry, due_s=due_s, url=self._url, model=self._model, key=key,
                    rules=self._rules,
                )  # fmt: skip
            else:
                self._ask(act, entry, due_s, key)
        except gevent.GreenletExit:
            entry.outcome = "hung"
        entry.total_s = time.monotonic() - due_s
        self._told(entry)

    def _ask(self, act: Act, entry: Entry, due_s: float, key: str) -> None:
        """Until an answer, a refusal that ends it, or the end of patience."""
        while True:
            answer = self._attempt(act, key, retries=len(entry.tries))
            if answer is None:
                entry.outcome = "left" if act.kind == "leave" else "hung"
                return
            entry.tries.append(answer.tried)
            entry.outcome = _outcome(answer)
            if entry.outcome in {"whole", "degraded"}:
                _note(answer, entry, due_s)
                return
            wait_s = self._pause_s(answer, entry)
            if wait_s is None:
                return
            gevent.sleep(wait_s)

    def _pause_s(self, answer: Answer, entry: Entry) -> float | None:
        """Seconds until the next try; None if there is none: an answer that has begun is not asked again."""
        if answer.tried.status == HTTPStatus.OK:
            return None
        return self._rules.wait_s(
            status=answer.tried.status,
            headers=answer.headers,
            retries=len(entry.tries) - 1,
            rng=self._rng,
        )

    def _attempt(self, act: Act, key: str, *, retries: int) -> Answer | None:
        """What came of one attempt; None if the person hung up first."""
        patience_s = self._rules.patience_s
        body = {
            "question": act.question,
            "max_tokens": act.max_tokens,
            "stream": act.kind != "ask",
            "timeout_s": patience_s,
            "history": [{"role": role, "content": text} for role, text in act.history],
        }
        headers = {"Authorization": f"Bearer {key}", "x-stainless-retry-count": str(retries)}
        limit_s = act.leave_after_s if act.kind == "leave" else patience_s + self._rules.grace_s
        answer: Answer | None = gevent.with_timeout(
            limit_s, self._answered, "/ask", headers, json=body, timeout_value=None
        )
        return answer

    def _answered(self, path: str, headers: Mapping[str, str], **body: Any) -> Answer:
        began_s = time.monotonic()
        limits = (CONNECT_S, self._rules.patience_s + self._rules.grace_s)
        try:
            with self._http.post(
                self._url + path, headers=dict(headers), stream=True, timeout=limits, **body
            ) as response:
                found = {name.lower(): value for name, value in response.headers.items()}
                stream: Stream | None = None
                payload: Mapping[str, Any]
                if found.get("content-type", "").startswith("text/event-stream"):
                    stream = read_stream(response.iter_content(None), began_s=began_s)
                    payload = stream.payload
                else:
                    payload = _json(response)
        except requests.RequestException as exc:
            tried = Try(NO_STATUS, type(exc).__name__, took_s=time.monotonic() - began_s)
            return Answer(tried, {}, None, {})
        error = payload.get("error") or {}
        tried = Try(
            status=response.status_code,
            code=str(error.get("code") or ""),
            told_s=retry_after_s(found),
            took_s=time.monotonic() - began_s,
        )
        return Answer(tried, found, stream, payload)

    def _upload(self, act: Act, entry: Entry, key: str) -> None:
        """A document nobody has uploaded before, until it can be searched."""
        data = self._pdfs[act.number % len(self._pdfs)] if self._pdfs else _report(act.number)
        files = {"file": (f"report-{act.number}.pdf", data + b"\n%% %d\n" % act.number)}
        answer = self._answered("/upload", {"Authorization": f"Bearer {key}"}, files=files)
        entry.tries.append(answer.tried)
        documents = answer.payload.get("documents") or []
        if answer.tried.status != HTTPStatus.ACCEPTED or not documents:
            entry.outcome = refused(answer.tried)
            return
        document = str(documents[0]["id"])
        until_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < until_s:
            status = self._document(document).get("status")
            if status == "ready":
                entry.outcome, entry.document = "whole", document
                return
            if status == "failed":
                entry.outcome = "failed"
                return
            gevent.sleep(LOOK_EVERY_S)

    def _document(self, document: str) -> Mapping[str, Any]:
        """What the service says of a document; nothing if it does not answer."""
        try:
            response = self._http.get(f"{self._url}/documents/{document}", timeout=CONNECT_S)
        except requests.RequestException:
            return {}
        return _json(response) if response.ok else {}


def _outcome(answer: Answer) -> Outcome:
    if answer.stream is not None and answer.stream.ending == "cut":
        return "cut"
    if "answer" not in answer.payload:
        return refused(answer.tried)
    return "degraded" if answer.payload.get("degraded") else "whole"


def _note(answer: Answer, entry: Entry, due_s: float) -> None:
    """What an answer says of itself, in the entry."""
    payload, stream = answer.payload, answer.stream
    entry.degraded = (payload.get("degraded") or {}).get("level")
    entry.completion_tokens = int((payload.get("usage") or {}).get("completion_tokens") or 0)
    if stream is not None and stream.first_token_s is not None:
        sent_s = time.monotonic() - answer.tried.took_s - due_s
        entry.first_token_s = sent_s + stream.first_token_s
        entry.gap_max_s = max(stream.gaps_s, default=0.0)


def _report(number: int) -> bytes:
    return text_pdf([
        f"Report {number}, page {page}. The keeper of lock {number % 97} read {number % 1000 / 100} m."
        for page in (1, 2, 3)
    ])


def _json(response: requests.Response) -> Mapping[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
