"""The client for programs that wait."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx2

from orchestrator.api.schemas import (
    DEFAULT_COLLECTION,
    AskResponse,
    DocumentOut,
    DocumentsResponse,
    ReadyResponse,
    SearchResponse,
    UploadedDocumentOut,
)
from orchestrator.client.wire import (
    ANSWER_S,
    ATTEMPTS,
    PAGE,
    AnswerEvent,
    AskOptions,
    Call,
    SearchOptions,
    ask_call,
    client_arguments,
    come_back_s,
    document_path,
    documents_call,
    error_of,
    event_of,
    json_of,
    search_call,
    unreachable,
    upload_call,
)


class Client:
    """
    Talks to one orchestrator. Every method raises `ClientError` for what cannot be answered.

    Args:
        base_url: Where it listens.
        key: Sent as a bearer token, if there is one.
        answer_s: Longest silence of the service, in seconds.
        attempts: How often to ask in all, where the service says when to come back.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str = "",
        answer_s: float = ANSWER_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._http = httpx2.Client(**client_arguments(base_url, key, answer_s))
        self._base_url = base_url
        self._attempts = attempts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def ask(self, question: str, **options: Unpack[AskOptions]) -> AskResponse:
        """The whole answer, with its sources."""
        found = self._send(ask_call(question, options, stream=False))
        return AskResponse.model_validate(found)

    def stream(self, question: str, **options: Unpack[AskOptions]) -> Iterator[AnswerEvent]:
        """The answer as it comes: notices while it waits, the sources, the text, last the whole."""
        yield from self._events(ask_call(question, options, stream=True))

    def search(self, question: str, **options: Unpack[SearchOptions]) -> SearchResponse:
        """The passages that fit a question best."""
        return SearchResponse.model_validate(self._send(search_call(question, options)))

    def upload(
        self,
        path: Path,
        *,
        collection: str = DEFAULT_COLLECTION,
        replaces: str | None = None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> UploadedDocumentOut:
        """
        The document that a file became; it may still be on its way.

        Args:
            path: The PDF.
            collection: Where it goes.
            replaces: Id of the document that goes when this one is ready.
            on_bytes: Called with the number of bytes of each part that was sent.
        """
        call = upload_call(path, collection=collection, replaces=replaces, on_bytes=on_bytes)
        return UploadedDocumentOut.model_validate(self._send(call)["documents"][0])

    def follow(self, document_id: str) -> Iterator[DocumentOut]:
        """The document after each change, until it is ready or failed."""
        yield from self._events(Call("GET", f"{document_path(document_id)}/events"))

    def wait(self, document_id: str) -> DocumentOut:
        """The document once it is ready or failed."""
        *_, last = self.follow(document_id)
        return last

    def document(self, document_id: str) -> DocumentOut:
        """How far a document is."""
        return DocumentOut.model_validate(self.get(document_path(document_id)))

    def documents(
        self, *, collection: str | None = None, status: str | None = None
    ) -> Iterator[DocumentOut]:
        """All documents, the newest first, a page at a time."""
        after: str | None = None
        while True:
            page = self.documents_page(collection=collection, status=status, after=after)
            yield from page.documents
            if (after := page.next) is None:
                return

    def documents_page(
        self,
        *,
        collection: str | None = None,
        status: str | None = None,
        after: str | None = None,
        limit: int = PAGE,
    ) -> DocumentsResponse:
        """Some documents, the newest first; `next` of the page before goes on after it."""
        call = documents_call(collection, status, after, limit)
        return DocumentsResponse.model_validate(self._send(call))

    def delete(self, document_id: str) -> None:
        """Remove a document."""
        self._send(Call("DELETE", document_path(document_id)))

    def retry(self, document_id: str) -> DocumentOut:
        """Start a failed document over."""
        return DocumentOut.model_validate(self.post(f"{document_path(document_id)}/retry"))

    def ready(self) -> ReadyResponse:
        """Whether questions can be answered now, and why not."""
        return ReadyResponse.model_validate(self.get("/readyz"))

    def status(self) -> dict[str, Any]:
        """What the service is doing."""
        return self.get("/status")

    def get(self, path: str) -> dict[str, Any]:
        """The JSON of a GET, whatever its status says about readiness."""
        return self._send(Call("GET", path), attempts=1)

    def post(self, path: str) -> dict[str, Any]:
        """The JSON of an order that takes no arguments."""
        return self._send(Call("POST", path, body={}), attempts=1)

    def _send(self, call: Call, *, attempts: int | None = None) -> dict[str, Any]:
        most = self._attempts if attempts is None else attempts
        for attempt in range(1, most + 1):
            with self._told(), ExitStack() as stack:
                response = self._http.request(**call.arguments(stack))
            wait_s = come_back_s(response, attempt, most)
            if wait_s is None:
                break
            time.sleep(wait_s)
        return {} if response.status_code == httpx2.codes.NO_CONTENT else json_of(response)

    def _events(self, call: Call) -> Iterator[Any]:
        for attempt in range(1, self._attempts + 1):
            with self._told(), ExitStack() as stack:
                response = stack.enter_context(self._http.stream(**call.arguments(stack)))
                if response.is_success:
                    found = map(event_of, httpx2.EventSource(response))
                    yield from (event for event in found if event is not None)
                    return
                response.read()
            wait_s = come_back_s(response, attempt, self._attempts)
            if wait_s is None:
                break
            time.sleep(wait_s)
        json_of(response)
        raise error_of({}, response)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as exc:
            raise unreachable(self._base_url, exc) from exc
