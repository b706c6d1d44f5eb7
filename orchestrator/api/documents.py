"""`POST /upload` and `/documents`."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import Headers, UploadFile
from starlette.responses import FileResponse, JSONResponse
from starlette.types import Message, Receive, Scope, Send

from orchestrator.access.ownership import shown_name
from orchestrator.api.access import identity
from orchestrator.api.forms import form_of, only
from orchestrator.api.openapi_document import ERRORS, FILE, RANGE, event_stream
from orchestrator.api.schemas import (
    COLLECTION_PATTERN,
    DEFAULT_COLLECTION,
    BoxesResponse,
    DocumentOut,
    DocumentsResponse,
    ErrorEventOut,
    UploadResponse,
)
from orchestrator.api.sse import EventStream, StreamTimers, frame, unless_disconnected
from orchestrator.domain import Document, DocumentId, DocumentStatus
from orchestrator.errors import (
    DocumentError,
    DocumentNotFound,
    InvalidParameter,
    InvalidRequest,
    OrchestratorError,
    RangeNotSatisfiable,
    leaves,
)
from orchestrator.pipelines.library import Accepted, Library
from orchestrator.pipelines.owned_library import OwnedLibrary

MAX_PAGE = 1000
BAD_REQUEST = 400
MAX_NUMBER = 2**31 - 1
"""Of a page or a character; SQLite takes no more than 64 bits, and no document has as many."""
UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "collection": {
                            "description": "Letters, digits, '.', '_' and '-', at most 64; "
                            f"none, or an empty one, is `{DEFAULT_COLLECTION}`.",
                            "type": "string",
                            "pattern": f"^({COLLECTION_PATTERN[1:-1]})?$",
                        },
                        "replaces": {
                            "type": "string",
                            "description": "Id of the document that goes when this one is ready.",
                        },
                    },
                },
                "encoding": {"file": {"contentType": "application/pdf"}},
            }
        },
    }
}
EVENTS = {"document": DocumentOut, "error": ErrorEventOut}
"""What the events of a document carry, by their names."""


class DocumentFile(FileResponse):
    """
    A PDF, whole or by ranges; a range that cannot be served is told like every other error.

    Args:
        path: Where it is.
        filename: What it is called.
        shown: Whether a browser shows it, or stores it.
        gone: What to raise if it was deleted since it was found.
    """

    def __init__(self, path: Path, *, filename: str, shown: bool, gone: OrchestratorError) -> None:
        super().__init__(
            path,
            media_type="application/pdf",
            filename=filename,
            content_disposition_type="inline" if shown else "attachment",
        )
        self._gone = gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Send it.

        Raises:
            RangeNotSatisfiable: If the file has no such bytes.
            InvalidRequest: If the ranges cannot be read.
            OrchestratorError: `gone`.
        """
        try:
            self.stat_result = await asyncio.to_thread(os.stat, self.path)
        except FileNotFoundError as exc:
            raise self._gone from exc
        self.set_stat_headers(self.stat_result)
        refusal: OrchestratorError | None = None

        async def unless_refused(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] >= BAD_REQUEST:
                refusal = _range_refusal(message["status"], Headers(raw=message["headers"]))
            if refusal is None:
                await send(message)

        await super().__call__(scope, receive, unless_refused)
        if refusal is not None:
            raise refusal


class DocumentRoutes:
    """The documents' doors."""

    def __init__(self, *, library: Library, max_files: int, timers: StreamTimers) -> None:
        self._library = library
        self._timers = timers
        self._max_files = max_files

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(responses=ERRORS)
        router.add_api_route(
            "/upload",
            self.upload,
            methods=["POST"],
            status_code=HTTPStatus.ACCEPTED,
            response_model=UploadResponse,
            responses={
                200: {"model": UploadResponse, "description": "All of them are searchable."}
            },
            openapi_extra=UPLOAD_SCHEMA,
            summary="Add PDFs",
        )
        router.add_api_route(
            "/documents", self.documents, methods=["GET"], response_model=DocumentsResponse
        )
        one = "/documents/{document_id}"
        router.add_api_route(one, self.document, methods=["GET"], response_model=DocumentOut)
        router.add_api_route(
            one, self.delete, methods=["DELETE"], status_code=HTTPStatus.NO_CONTENT
        )
        router.add_api_route(
            f"{one}/retry",
            self.retry,
            methods=["POST"],
            status_code=HTTPStatus.ACCEPTED,
            response_model=DocumentOut,
            summary="Start a failed document over",
        )
        router.add_api_route(
            f"{one}/events",
            self.events,
            methods=["GET"],
            response_class=Response,
            responses={200: {"content": event_stream(named=EVENTS)}},
        )
        router.add_api_route(
            f"{one}/boxes", self.boxes, methods=["GET"], response_model=BoxesResponse
        )
        router.add_api_route(
            f"{one}/file",
            self.file,
            methods=["GET"],
            response_class=Response,
            responses=FILE,
            openapi_extra=RANGE,
        )
        return router

    async def upload(self, request: Request, *, wait: bool = False) -> Response:
        """Take PDFs in. `wait=true` answers when they are searchable, or failed."""
        async with form_of(request, max_files=self._max_files) as form:
            collection = _collection(only(form, "collection"))
            files = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
            if not files:
                raise InvalidRequest(
                    "No file came in the field `file`. Send at least one PDF.", param="file"
                )
            replaces = _replaces(only(form, "replaces"), files)
            library = self._of(request)
            work = _accept_all(library, files, collection, replaces, wait=wait)
            entries, refusals = await unless_disconnected(request, work)
        if len(refusals) == len(entries):
            raise refusals[0]
        ready = all(entry["status"] == DocumentStatus.READY for entry in entries)
        return JSONResponse(
            {"documents": entries}, HTTPStatus.OK if wait and ready else HTTPStatus.ACCEPTED
        )

    async def documents(
        self,
        request: Request,
        collection: str | None = Query(None, pattern=COLLECTION_PATTERN),
        status: Annotated[DocumentStatus | None, Query(description="In this state only.")] = None,
        limit: int = Query(100, ge=1, le=MAX_PAGE),
        after: str | None = Query(None, description="`next` of the page before."),
    ) -> dict[str, Any]:
        """List documents, newest first."""
        return await documents_page(
            self._of(request), collection=collection, status=status, limit=limit, after=after
        )

    async def document(self, document_id: str, request: Request) -> dict[str, Any]:
        """Tell where one document is."""
        return document_json(await self._of(request).get(DocumentId(document_id)))

    async def retry(self, document_id: str, request: Request) -> dict[str, Any]:
        """Start a failed document over, from its first page."""
        return document_json(await self._of(request).retry(DocumentId(document_id)))

    async def delete(self, document_id: str, request: Request) -> Response:
        """Remove a document, its chunks and its file."""
        await self._of(request).delete(DocumentId(document_id))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def events(self, document_id: str, request: Request) -> Response:
        """Follow a document by server-sent events until it is ready or failed."""
        changes = self._of(request).watch(DocumentId(document_id))
        first = await anext(changes)

        async def frames() -> AsyncIterator[str]:
            yield frame(document_json(first), "document")
            async for document in changes:
                yield frame(document_json(document), "document")

        return EventStream(frames(), request=request, close=changes.aclose, timers=self._timers)

    async def boxes(
        self,
        document_id: str,
        request: Request,
        page: Annotated[int, Query(ge=1, le=MAX_NUMBER, description="From 1.")],
        start: Annotated[int, Query(ge=0, le=MAX_NUMBER, description="A passage's `char_start`.")],
        end: Annotated[int, Query(ge=1, le=MAX_NUMBER, description="A passage's `char_end`.")],
    ) -> dict[str, Any]:
        """Tell where a passage stands on its page, for a viewer that marks it."""
        found = await self._of(request).boxes(DocumentId(document_id), page, start, end)
        return {"page": page, "boxes": found}

    async def file(self, document_id: str, request: Request) -> Response:
        """Give the PDF back; ranges are honoured."""
        document, path = await self._of(request).file(DocumentId(document_id))
        gone = DocumentNotFound(
            f"The document {document_id!r} was deleted just now.", param="document_id"
        )
        return DocumentFile(path, filename=document.filename, shown=True, gone=gone)

    def _of(self, request: Request) -> OwnedLibrary:
        """The documents of whoever asks."""
        return OwnedLibrary(self._library, identity(request))


async def _accept_all(
    library: OwnedLibrary,
    files: list[UploadFile],
    collection: str,
    replaces: DocumentId | None,
    *,
    wait: bool,
) -> tuple[list[dict[str, Any]], list[OrchestratorError]]:
    """One entry a file, and the errors of those that were refused."""
    entries: list[dict[str, Any]] = []
    refusals: list[OrchestratorError] = []
    for part in files:
        name = part.filename or ""
        try:
            accepted = await library.accept(
                part.file, filename=name, collection=collection, replaces=replaces
            )
            if wait:
                accepted = await _finished(library, accepted)
        except OrchestratorError as exc:
            if not isinstance(exc, DocumentError):
                raise
            refusals.append(exc)
            reason = {"code": exc.code, "message": exc.message}
            entries.append({"filename": name, "status": "refused", "error": reason})
        else:
            entries.append(accepted_json(accepted))
    return entries, refusals


async def _finished(library: OwnedLibrary, accepted: Accepted) -> Accepted:
    """The document once it is ready; its failure is raised as the error that it is."""
    document = await library.wait(accepted.document.id)
    if document.status is DocumentStatus.FAILED:
        raise _failure(document)
    return Accepted(document, accepted.duplicate)


async def documents_page(
    library: OwnedLibrary,
    *,
    collection: str | None,
    limit: int,
    after: str | None,
    status: DocumentStatus | None = None,
) -> dict[str, Any]:
    """Some documents on the wire, newest first, and how to go on after them."""
    found = await library.documents(
        collection=collection,
        status=status,
        limit=limit + 1,
        after=DocumentId(after) if after else None,
    )
    return {
        "documents": [document_json(document) for document in found[:limit]],
        "next": found[limit - 1].id if len(found) > limit else None,
    }


def accepted_json(accepted: Accepted) -> dict[str, Any]:
    """A document on the wire as its upload left it."""
    return {**document_json(accepted.document), "duplicate": accepted.duplicate}


def document_json(document: Document) -> dict[str, Any]:
    """A document on the wire."""
    failed = document.error_code is not None
    return {
        "id": document.id,
        "collection": shown_name(document.collection),
        "filename": document.filename,
        "status": document.status.value,
        "size_bytes": document.size_bytes,
        "pages": document.pages,
        "pages_done": document.pages_done,
        "chunks": document.chunks,
        "warning": document.warning,
        "replaces": document.replaces,
        "error": {"code": document.error_code, "message": document.error_message}
        if failed
        else None,
        "created_at": document.created_at,
    }


def _failure(document: Document) -> OrchestratorError:
    kinds = {kind.code: kind for kind in leaves()}
    kind = kinds.get(document.error_code or "", DocumentError)
    return kind(document.error_message or "The document failed.")


def _range_refusal(status: int, headers: Headers) -> OrchestratorError:
    """What the framework has said of the ranges, in plain text, as an error of ours."""
    if status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return InvalidRequest(
            "The Range header cannot be read. `bytes=0-99` asks for the first hundred bytes.",
            param="range",
        )
    size = headers.get("content-range", "").rpartition("/")[2]
    return RangeNotSatisfiable(
        f"The file has {size} bytes; the range is beyond them. Ask for less, or without a range.",
        size_bytes=int(size),
    )


def _replaces(value: object, files: list[UploadFile]) -> DocumentId | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(files) > 1:
        raise InvalidParameter(
            "`replaces` is the id of one document, and comes with one file.", param="replaces"
        )
    return DocumentId(value)


def _collection(value: object) -> str:
    if value is None or value == "":
        return DEFAULT_COLLECTION
    if not isinstance(value, str) or not re.fullmatch(COLLECTION_PATTERN, value):
        raise InvalidParameter(
            "A collection's name has letters, digits, '.', '_' and '-', at most 64.",
            param="collection",
        )
    return value
