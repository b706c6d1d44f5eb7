"""`POST /upload` and `/documents`."""

import re
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse, JSONResponse

from orchestrator.access.ownership import shown_name
from orchestrator.api.access import identity
from orchestrator.api.schemas import (
    COLLECTION_PATTERN,
    DEFAULT_COLLECTION,
    BoxesResponse,
    DocumentOut,
    DocumentsResponse,
    ErrorResponse,
    UploadResponse,
)
from orchestrator.api.sse import EventStream, StreamTimers, frame, unless_disconnected
from orchestrator.domain import Document, DocumentId, DocumentStatus
from orchestrator.errors import (
    DocumentError,
    InvalidParameter,
    InvalidRequest,
    OrchestratorError,
    UnsupportedMediaType,
    leaves,
)
from orchestrator.pipelines.library import Accepted, Library
from orchestrator.pipelines.owned_library import OwnedLibrary

MAX_PAGE = 1000
MAX_FIELDS = 10
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
                        "collection": {"type": "string", "pattern": COLLECTION_PATTERN},
                        "replaces": {
                            "type": "string",
                            "description": "Id of the document that goes when this one is ready.",
                        },
                    },
                }
            }
        },
    }
}


class DocumentRoutes:
    """The documents' doors."""

    def __init__(self, *, library: Library, max_files: int, timers: StreamTimers) -> None:
        self._library = library
        self._timers = timers
        self._max_files = max_files

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(
            responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}}
        )
        router.add_api_route(
            "/upload",
            self.upload,
            methods=["POST"],
            status_code=HTTPStatus.ACCEPTED,
            response_model=UploadResponse,
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
        router.add_api_route(f"{one}/events", self.events, methods=["GET"])
        router.add_api_route(
            f"{one}/boxes", self.boxes, methods=["GET"], response_model=BoxesResponse
        )
        router.add_api_route(f"{one}/file", self.file, methods=["GET"])
        return router

    async def upload(self, request: Request, *, wait: bool = False) -> Response:
        """Take PDFs in. `wait=true` answers when they are searchable, or failed."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise UnsupportedMediaType(
                "Send the PDF as multipart/form-data in the field `file`: "
                "curl -F file=@paper.pdf …/upload"
            )
        async with request.form(max_files=self._max_files, max_fields=MAX_FIELDS) as form:
            collection = _collection(form.get("collection"))
            files = [part for part in form.getlist("file") if isinstance(part, UploadFile)]
            if not files:
                raise InvalidRequest(
                    "No file came in the field `file`. Send at least one PDF.", param="file"
                )
            replaces = _replaces(form.get("replaces"), files)
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
    ) -> DocumentsResponse:
        """List documents, newest first."""
        found = await self._of(request).documents(
            collection=collection,
            status=status,
            limit=limit + 1,
            after=DocumentId(after) if after else None,
        )
        more = found[limit - 1].id if len(found) > limit else None
        return DocumentsResponse(
            documents=[DocumentOut(**document_json(d)) for d in found[:limit]], next=more
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
        page: Annotated[int, Query(ge=1)],
        start: Annotated[int, Query(ge=0)],
        end: Annotated[int, Query(ge=1)],
    ) -> dict[str, Any]:
        """Tell where a passage stands on its page, for a viewer that marks it."""
        found = await self._of(request).boxes(DocumentId(document_id), page, start, end)
        return {"page": page, "boxes": found}

    async def file(self, document_id: str, request: Request) -> Response:
        """Give the PDF back; ranges are honoured."""
        document, path = await self._of(request).file(DocumentId(document_id))
        return FileResponse(
            path,
            media_type="application/pdf",
            filename=document.filename,
            content_disposition_type="inline",
        )

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
            entries.append({
                **document_json(accepted.document),
                "duplicate": accepted.duplicate,
            })
    return entries, refusals


async def _finished(library: OwnedLibrary, accepted: Accepted) -> Accepted:
    """The document once it is ready; its failure is raised as the error that it is."""
    document = await library.wait(accepted.document.id)
    if document.status is DocumentStatus.FAILED:
        raise _failure(document)
    return Accepted(document, accepted.duplicate)


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
