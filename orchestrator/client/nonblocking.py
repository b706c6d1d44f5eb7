"""The same client for programs that do other things meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
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


class AsyncClient:
    """
    Talks to one orchestrator, as `Client` does. Every method raises `ClientError` for what cannot be answered.

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
        self._http = httpx2.AsyncClient(**client_arguments(base_url, key, answer_s))
        self._base_url = base_url
        self._attempts = attempts

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def ask(self, question: str, **options: Unpack[AskOptions]) -> AskResponse:
        """The whole answer, with its sources."""
        found = await self._send(ask_call(question, options, stream=False))
        return AskResponse.model_validate(found)

    async def stream(
        self, question: str, **options: Unpack[AskOptions]
    ) -> AsyncIterator[AnswerEvent]:
        """The answer as it comes: notices while it waits, the sources, the text, last the whole."""
        async for event in self._events(ask_call(question, options, stream=True)):
            yield event

    async def search(self, question: str, **options: Unpack[SearchOptions]) -> SearchResponse:
        """The passages that fit a question best."""
        return SearchResponse.model_validate(await self._send(search_call(question, options)))

    async def upload(
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
        return UploadedDocumentOut.model_validate((await self._send(call))["documents"][0])

    async def follow(self, document_id: str) -> AsyncIterator[DocumentOut]:
        """The document after each change, until it is ready or failed."""
        async for document in self._events(Call("GET", f"{document_path(document_id)}/events")):
            yield document

    async def wait(self, document_id: str) -> DocumentOut:
        """The document once it is ready or failed."""
        async for document in self.follow(document_id):
            last = document
        return last

    async def document(self, document_id: str) -> DocumentOut:
        """How far a document is."""
        return DocumentOut.model_validate(await self.get(document_path(document_id)))

    async def documents(
        self, *, collection: str | None = None, status: str | None = None
    ) -> AsyncIterator[DocumentOut]:
        """All documents, the newest first, a page at a time."""
        after: str | None = None
        while True:
            page = await self.documents_page(collection=collection, status=status, after=after)
            for document in page.documents:
                yield document
            if (after := page.next) is None:
                return

    async def documents_page(
        self,
        *,
        collection: str | None = None,
        status: str | None = None,
        after: str | None = None,
        limit: int = PAGE,
    ) -> DocumentsResponse:
        """Some documents, the newest first; `next` of the page before goes on after it."""
        call = documents_call(collection, status, after, limit)
        return DocumentsResponse.model_validate(await self._send(call))

    async def delete(self, document_id: str) -> None:
        """Remove a document."""
        await self._send(Call("DELETE", document_path(document_id)))

    async def retry(self, document_id: str) -> DocumentOut:
        """Start a failed document over."""
        return DocumentOut.model_validate(await self.post(f"{document_path(document_id)}/retry"))

    async def ready(self) -> ReadyResponse:
        """Whether questions can be answered now, and why not."""
        return ReadyResponse.model_validate(await self.get("/readyz"))

    async def status(self) -> dict[str, Any]:
        """What the service is doing."""
        return await self.get("/status")

    async def get(self, path: str) -> dict[str, Any]:
        """The JSON of a GET, whatever its status says about readiness."""
        return await self._send(Call("GET", path), attempts=1)

    async def post(self, path: str) -> dict[str, Any]:
        """The JSON of an order that takes no arguments."""
        return await self._send(Call("POST", path, body={}), attempts=1)

    async def _send(self, call: Call, *, attempts: int | None = None) -> dict[str, Any]:
        most = self._attempts if attempts is None else attempts
        for attempt in range(1, most + 1):
            with self._told(), ExitStack() as stack:
                response = await self._http.request(**call.arguments(stack))
            wait_s = come_back_s(response, attempt, most)
            if wait_s is None:
                break
            await asyncio.sleep(wait_s)
        return {} if response.status_code == httpx2.codes.NO_CONTENT else json_of(response)

    async def _events(self, call: Call) -> AsyncIterator[Any]:
        for attempt in range(1, self._attempts + 1):
            async with AsyncExitStack() as stack:
                with self._told(), ExitStack() as files:
                    sending = self._http.stream(**call.arguments(files))
                    response = await stack.enter_async_context(sending)
                    if response.is_success:
                        async for sent in httpx2.EventSource(response):
                            if (event := event_of(sent)) is not None:
                                yield event
                        return
                    await response.aread()
            wait_s = come_back_s(response, attempt, self._attempts)
            if wait_s is None:
                break
            await asyncio.sleep(wait_s)
        json_of(response)
        raise error_of({}, response)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as exc:
            raise unreachable(self._base_url, exc) from exc
