"""OpenAI's `/v1/files`: PDFs that can be put into vector stores."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse

from orchestrator.api.access import identity
from orchestrator.api.documents import DocumentFile
from orchestrator.api.file_search_json import file_json
from orchestrator.api.file_search_schemas import FileDeleted, FileOut, FilesPage
from orchestrator.api.forms import form_of, only
from orchestrator.api.openapi_document import ERRORS, FILE, RANGE
from orchestrator.api.sse import unless_disconnected
from orchestrator.errors import InvalidParameter, InvalidRequest, UploadNotFound
from orchestrator.pipelines.uploads import Uploads
from orchestrator.pipelines.vector_stores import VectorStores
from orchestrator.retrieval.registry_rows import Listing

PURPOSES = ("assistants", "user_data")
MAX_PAGE, DEFAULT_PAGE = 10_000, 1000
Order = Literal["asc", "desc"]
UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"enum": list(PURPOSES)},
                    },
                },
                "encoding": {"file": {"contentType": "application/pdf"}},
            }
        },
    }
}


class FileRoutes:
    """The files' doors."""

    def __init__(self, *, uploads: Uploads, stores: VectorStores) -> None:
        self._uploads = uploads
        self._stores = stores

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/files", responses=ERRORS)
        router.add_api_route(
            "",
            self.create,
            methods=["POST"],
            response_model=FileOut,
            openapi_extra=UPLOAD_SCHEMA,
            summary="Upload a PDF for vector stores",
        )
        router.add_api_route("", self.listed, methods=["GET"], response_model=FilesPage)
        one = "/{file_id}"
        router.add_api_route(one, self.get, methods=["GET"], response_model=FileOut)
        router.add_api_route(one, self.delete, methods=["DELETE"], response_model=FileDeleted)
        router.add_api_route(
            f"{one}/content",
            self.content,
            methods=["GET"],
            response_class=Response,
            responses=FILE,
            openapi_extra=RANGE,
        )
        return router

    async def create(self, request: Request) -> Response:
        """Keep a PDF; it is read once it is put into a vector store."""
        async with form_of(request, max_files=1) as form:
            file, purpose = only(form, "file"), only(form, "purpose")
            if not isinstance(file, UploadFile):
                raise InvalidRequest("No file came in the field `file`. Send a PDF.", param="file")
            if purpose not in PURPOSES:
                raise InvalidParameter(
                    f"`purpose` must be one of {', '.join(PURPOSES)}: files are for vector stores "
                    "here.",
                    param="purpose",
                )
            if form.getlist("expires_after[anchor]"):
                raise InvalidParameter(
                    "Files stay until they are deleted: leave `expires_after` out.",
                    param="expires_after",
                )
            work = self._uploads.accept(
                file.file,
                filename=file.filename or "",
                purpose=str(purpose),
                identity=identity(request),
            )
            return JSONResponse(file_json(await unless_disconnected(request, work)))

    async def listed(
        self,
        request: Request,
        purpose: Annotated[str | None, Query(description="Of this purpose only.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
        after: Annotated[str | None, Query(description="`last_id` of the page before.")] = None,
        order: Order = "desc",
    ) -> dict[str, Any]:
        """List files, the newest first."""
        wanted = listing(limit, after, None, order)
        found = await self._uploads.listed(identity(request), wanted, purpose=purpose)
        return page([file_json(file) for file in found], wanted)

    async def get(self, file_id: str, request: Request) -> dict[str, Any]:
        """Describe one file."""
        return file_json(await self._uploads.get(identity(request), file_id))

    async def delete(self, file_id: str, request: Request) -> dict[str, Any]:
        """Remove a file, also from all vector stores."""
        await self._stores.delete_upload(identity(request), file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    async def content(self, file_id: str, request: Request) -> Response:
        """Give the PDF back; ranges are honoured."""
        file = await self._uploads.get(identity(request), file_id)
        gone = UploadNotFound(f"The file {file_id!r} was deleted just now.", param="file_id")
        path = self._uploads.path(file.id)
        return DocumentFile(path, filename=file.filename, shown=False, gone=gone)


def listing(limit: int, after: str | None, before: str | None, order: Order) -> Listing:
    """What is to be read for a page: one more, which tells whether there are more."""
    return Listing(limit + 1, after=after, before=before, ascending=order == "asc")


def page(found: Sequence[dict[str, Any]], wanted: Listing) -> dict[str, Any]:
    """A part of a list on the wire, of what a `listing` gave."""
    limit = wanted.limit - 1
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > limit,
    }
