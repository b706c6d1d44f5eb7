"""OpenAI's `/v1/vector_stores`: files that are searched together, and what is written on them."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.responses import JSONResponse

from orchestrator.api.access import identity
from orchestrator.api.answer_json import degraded_header
from orchestrator.api.attribute_filters import matcher
from orchestrator.api.file_search_json import batch_json, result_json, store_file_json, store_json
from orchestrator.api.file_search_schemas import (
    ChunkingStrategy,
    FileBatchCreateRequest,
    FileBatchOut,
    RankingOptions,
    StoreContentPage,
    StoreFileCreateRequest,
    StoreFileDeleted,
    StoreFileOut,
    StoreFilesPage,
    StoreFileStatusOut,
    StoreFileUpdateRequest,
    StoreResultsPage,
    StoreSearchRequest,
    VectorStoreCreateRequest,
    VectorStoreDeleted,
    VectorStoreOut,
    VectorStoresPage,
    VectorStoreUpdateRequest,
)
from orchestrator.api.openai_files import Order, listing, page
from orchestrator.api.openapi_document import DEADLINE, DEGRADED_HEADERS, ERRORS
from orchestrator.api.question_limits import QuestionLimits
from orchestrator.api.sse import unless_disconnected
from orchestrator.errors import InvalidParameter
from orchestrator.pipelines.query import QueryPipeline
from orchestrator.pipelines.vector_stores import VectorStores
from orchestrator.retrieval.registry_rows import (
    Attributes,
    FileBatch,
    Listing,
    StoreFileStatus,
    VectorStore,
)

MAX_PAGE, DEFAULT_PAGE = 100, 20
DEFAULT_RESULTS = 10
Status = Annotated[StoreFileStatusOut | None, Query(alias="filter", description="In this state.")]


def _part(
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    after: Annotated[str | None, Query(description="`last_id` of the page before.")] = None,
    before: Annotated[str | None, Query(description="`first_id` of the page after.")] = None,
    order: Order = "desc",
) -> Listing:
    return listing(limit, after, before, order)


Part = Annotated[Listing, Depends(_part)]
"""Which part of a list is asked for, by the query."""


class VectorStoreRoutes:
    """The stores' doors."""

    def __init__(
        self, *, stores: VectorStores, query: QueryPipeline, limits: QuestionLimits
    ) -> None:
        self._stores = stores
        self._query = query
        self._limits = limits

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1/vector_stores", responses=ERRORS)
        add = router.add_api_route
        add("", self.create, methods=["POST"], response_model=VectorStoreOut)
        add("", self.listed, methods=["GET"], response_model=VectorStoresPage)
        one = "/{vector_store_id}"
        add(one, self.get, methods=["GET"], response_model=VectorStoreOut)
        add(one, self.update, methods=["POST"], response_model=VectorStoreOut)
        add(one, self.delete, methods=["DELETE"], response_model=VectorStoreDeleted)
        add(
            f"{one}/search",
            self.search,
            methods=["POST"],
            response_model=StoreResultsPage,
            responses={200: {"headers": DEGRADED_HEADERS}},
            openapi_extra=DEADLINE,
            summary="Find passages in a vector store",
        )
        files = f"{one}/files"
        add(files, self.add_file, methods=["POST"], response_model=StoreFileOut)
        add(files, self.files, methods=["GET"], response_model=StoreFilesPage)
        file = f"{files}/{{file_id}}"
        add(file, self.file, methods=["GET"], response_model=StoreFileOut)
        add(file, self.update_file, methods=["POST"], response_model=StoreFileOut)
        add(file, self.remove_file, methods=["DELETE"], response_model=StoreFileDeleted)
        add(f"{file}/content", self.content, methods=["GET"], response_model=StoreContentPage)
        batches = f"{one}/file_batches"
        add(batches, self.add_batch, methods=["POST"], response_model=FileBatchOut)
        batch = f"{batches}/{{batch_id}}"
        add(batch, self.batch, methods=["GET"], response_model=FileBatchOut)
        add(f"{batch}/cancel", self.cancel, methods=["POST"], response_model=FileBatchOut)
        add(f"{batch}/files", self.batch_files, methods=["GET"], response_model=StoreFilesPage)
        return router

    async def create(self, body: VectorStoreCreateRequest, request: Request) -> dict[str, Any]:
        """Make a store, with files if some are named."""
        _stays(body.expires_after)
        _auto_only(body.chunking_strategy)
        store = await self._stores.create(
            identity(request),
            name=body.name or "",
            metadata=body.metadata or {},
            file_ids=body.file_ids,
        )
        return await self._store_json(store)

    async def listed(
        self,
        request: Request,
        wanted: Part,
    ) -> dict[str, Any]:
        """List stores, the newest first."""
        found = await self._stores.listed(identity(request), wanted)
        return page([await self._store_json(store) for store in found], wanted)

    async def get(self, vector_store_id: str, request: Request) -> dict[str, Any]:
        """Describe one store, and how far its files are."""
        return await self._store_json(await self._stores.get(identity(request), vector_store_id))

    async def update(
        self, vector_store_id: str, body: VectorStoreUpdateRequest, request: Request
    ) -> dict[str, Any]:
        """Give a store another name or other metadata."""
        _stays(body.expires_after)
        store = await self._stores.change(
            identity(request), vector_store_id, name=body.name, metadata=body.metadata
        )
        return await self._store_json(store)

    async def delete(self, vector_store_id: str, request: Request) -> dict[str, Any]:
        """Remove a store; the files that were put into it stay."""
        await self._stores.delete(identity(request), vector_store_id)
        return {"id": vector_store_id, "object": "vector_store.deleted", "deleted": True}

    async def search(
        self, vector_store_id: str, body: StoreSearchRequest, request: Request
    ) -> Response:
        """Find the passages of a store that fit a query best, by meaning and by words."""
        queries = [body.query] if isinstance(body.query, str) else body.query
        check_ranking(body.ranking_options, param="ranking_options")
        matches = None if body.filters is None else matcher(body.filters, param="filters")
        wanted = min(body.max_num_results or DEFAULT_RESULTS, self._limits.max_top_k)
        question = self._limits.question(
            "\n".join(queries),
            request=request,
            collection=vector_store_id,
            document_ids=(),
            top_k=wanted,
            param="query",
        )
        deadline = self._limits.deadline(request, body.timeout_s)
        async with deadline.scope():
            part = await self._stores.searchable(identity(request), vector_store_id, matches)
        if part.nothing:
            return _results(queries, [], {})
        question = replace(question, document_ids=part.document_ids)
        passages, degraded = await unless_disconnected(
            request, self._query.search(question, deadline)
        )
        files = await self._stores.by_document(
            vector_store_id, [passage.document_id for passage in passages]
        )
        options = body.ranking_options
        least = options.score_threshold if options and options.score_threshold else -1.0
        return _results(
            queries,
            [
                result_json(passage, files[passage.document_id])
                for passage in passages
                if passage.document_id in files and passage.score >= least
            ],
            degraded_header(degraded),
        )

    async def add_file(
        self, vector_store_id: str, body: StoreFileCreateRequest, request: Request
    ) -> dict[str, Any]:
        """Put a file into a store; it can be searched once it is `completed`."""
        _auto_only(body.chunking_strategy)
        who = identity(request)
        await self._stores.add(who, vector_store_id, {body.file_id: body.attributes or {}})
        return store_file_json(await self._stores.file(who, vector_store_id, body.file_id))

    async def files(
        self,
        vector_store_id: str,
        request: Request,
        wanted: Part,
        status: Status = None,
    ) -> dict[str, Any]:
        """List the files of a store, the newest first."""
        return await self._files_page(request, vector_store_id, wanted, status)

    async def file(self, vector_store_id: str, file_id: str, request: Request) -> dict[str, Any]:
        """Tell how far a file of a store is."""
        return store_file_json(await self._stores.file(identity(request), vector_store_id, file_id))

    async def update_file(
        self,
        vector_store_id: str,
        file_id: str,
        body: StoreFileUpdateRequest,
        request: Request,
    ) -> dict[str, Any]:
        """Write other attributes on a file of a store."""
        found = await self._stores.set_attributes(
            identity(request), vector_store_id, file_id, body.attributes or {}
        )
        return store_file_json(found)

    async def remove_file(
        self, vector_store_id: str, file_id: str, request: Request
    ) -> dict[str, Any]:
        """Take a file out of a store; the file itself stays."""
        await self._stores.remove(identity(request), vector_store_id, file_id)
        return {"id": file_id, "object": "vector_store.file.deleted", "deleted": True}

    async def content(self, vector_store_id: str, file_id: str, request: Request) -> dict[str, Any]:
        """Give the text that was read from a file of a store, page by page."""
        texts = await self._stores.page_texts(identity(request), vector_store_id, file_id)
        return {
            "object": "vector_store.file_content.page",
            "data": [{"type": "text", "text": text} for text in texts],
            "has_more": False,
            "next_page": None,
        }

    async def add_batch(
        self, vector_store_id: str, body: FileBatchCreateRequest, request: Request
    ) -> dict[str, Any]:
        """Put many files into a store at once."""
        files = _batch_files(body)
        who = identity(request)
        batch = await self._stores.add_batch(who, vector_store_id, files)
        return await self._batch_json(batch)

    async def batch(self, vector_store_id: str, batch_id: str, request: Request) -> dict[str, Any]:
        """Tell how far a batch is."""
        who = identity(request)
        return await self._batch_json(await self._stores.batch(who, vector_store_id, batch_id))

    async def cancel(self, vector_store_id: str, batch_id: str, request: Request) -> dict[str, Any]:
        """Take back what is not done of a batch."""
        who = identity(request)
        return await self._batch_json(await self._stores.cancel(who, vector_store_id, batch_id))

    async def batch_files(
        self,
        vector_store_id: str,
        batch_id: str,
        request: Request,
        wanted: Part,
        status: Status = None,
    ) -> dict[str, Any]:
        """List the files of a batch, the newest first."""
        return await self._files_page(request, vector_store_id, wanted, status, batch_id=batch_id)

    async def _files_page(
        self,
        request: Request,
        store_id: str,
        wanted: Listing,
        status: StoreFileStatus | None,
        *,
        batch_id: str | None = None,
    ) -> dict[str, Any]:
        found = await self._stores.files(
            identity(request), store_id, wanted, status=status, batch_id=batch_id
        )
        return page([store_file_json(file) for file in found], wanted)

    async def _store_json(self, store: VectorStore) -> dict[str, Any]:
        return store_json(store, await self._stores.counts(store.id))

    async def _batch_json(self, batch: FileBatch) -> dict[str, Any]:
        return batch_json(batch, await self._stores.counts(batch.store_id, batch_id=batch.id))


def check_ranking(options: RankingOptions | None, *, param: str) -> None:
    """
    Do nothing if results can be ranked so.

    Raises:
        InvalidParameter: If weights are asked for: there is one way of ranking here.
    """
    if options is not None and options.hybrid_search is not None:
        raise InvalidParameter(
            "Meaning and words always count alike here: leave `hybrid_search` out.",
            param=f"{param}.hybrid_search",
        )


def _results(
    queries: list[str], results: list[dict[str, Any]], headers: dict[str, str]
) -> Response:
    found = {
        "object": "vector_store.search_results.page",
        "search_query": queries,
        "data": results,
        "has_more": False,
        "next_page": None,
    }
    return JSONResponse(found, headers=headers)


def _batch_files(body: FileBatchCreateRequest) -> dict[str, Attributes]:
    """What is to be written on each file, by its id."""
    _auto_only(body.chunking_strategy)
    if (body.file_ids is None) == (body.files is None):
        raise InvalidParameter(
            "Name the files once: by `file_ids`, or by `files` with attributes of their own.",
            param="file_ids",
        )
    if body.file_ids is not None:
        found = dict.fromkeys(body.file_ids, body.attributes or {})
    else:
        for file in body.files or []:
            _auto_only(file.chunking_strategy)
        found = {file.file_id: file.attributes or {} for file in body.files or []}
    if not found:
        raise InvalidParameter("The batch is empty. Name at least one file.", param="file_ids")
    return found


def _stays(expires_after: dict[str, Any] | None) -> None:
    if expires_after is not None:
        raise InvalidParameter(
            "Vector stores stay until they are deleted: leave `expires_after` out.",
            param="expires_after",
        )


def _auto_only(chunking: ChunkingStrategy | None) -> None:
    if chunking is not None and chunking.type != "auto":
        raise InvalidParameter(
            "Files are cut as this service is set up (ORCHESTRATOR_CHUNK_TOKENS): leave "
            "`chunking_strategy` out, or ask for `auto`.",
            param="chunking_strategy",
        )
