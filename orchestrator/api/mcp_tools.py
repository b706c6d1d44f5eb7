"""
The tools that agents get over MCP, and how their results read.

Both servers have the same: the one behind `/mcp`, and `tidegate mcp`, which speaks on stdio and asks a
running orchestrator. What differs is who does the work (`Doors`).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from mcp.server import Server, ServerRequestContext
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from orchestrator.api.json_route import read_fields
from orchestrator.api.mcp_schemas import (
    AddArguments,
    AddPathArguments,
    AskArguments,
    ListArguments,
    SearchArguments,
)
from orchestrator.errors import InvalidParameter

INSTRUCTIONS = (
    "Answers questions over the user's own PDFs. `ask` gives an answer with [n] marks and the page of "
    "each source; `search_documents` gives the passages themselves. A refusal says when to come back."
)
READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADDS = ToolAnnotations(
    read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
)

Notice: TypeAlias = Callable[[str], Awaitable[None]]
"""Tells the caller how far it is, in words."""


class Doors(Protocol):
    """Who does the work; each answers with what the HTTP route of the same kind sends."""

    async def search(self, wanted: SearchArguments) -> dict[str, Any]:
        """As `POST /search`."""
        ...

    async def ask(self, wanted: AskArguments, notice: Notice) -> dict[str, Any]:
        """As `POST /ask`."""
        ...

    async def documents(self, wanted: ListArguments) -> dict[str, Any]:
        """As `GET /documents`."""
        ...

    async def add(self, given: Any, notice: Notice) -> dict[str, Any]:
        """As one document of `POST /upload`."""
        ...


class Tools:
    """
    The tools of one server.

    Args:
        add_arguments: How it is given a PDF.
    """

    def __init__(self, add_arguments: type[AddArguments | AddPathArguments]) -> None:
        self._add_arguments = add_arguments

    def definitions(self) -> list[Tool]:
        """What clients are told of them."""
        return [
            _tool(
                "search_documents",
                "Find the passages of the user's PDFs that fit a question best, each with its page.",
                SearchArguments,
                READS,
            ),
            _tool(
                "ask",
                "Answer a question from the user's PDFs, with the page of each source.",
                AskArguments,
                READS,
            ),
            _tool(
                "list_documents",
                "List the user's PDFs, the newest first, and how far each one is.",
                ListArguments,
                READS,
            ),
            _tool(
                "add_document",
                "Add a PDF. It can be searched once its status is `ready`.",
                self._add_arguments,
                ADDS,
            ),
        ]

    async def call(
        self, name: str, arguments: Mapping[str, Any] | None, doors: Doors, notice: Notice
    ) -> CallToolResult:
        """
        What a tool gives.

        Args:
            name: Which tool.
            arguments: What the client sent.
            doors: Who does the work.
            notice: Told how far it is.

        Raises:
            InvalidParameter: If there is no such tool, or the arguments are none that it takes.
        """
        given = arguments or {}
        match name:
            case "search_documents":
                found = await doors.search(read_fields(SearchArguments, given))
                return _result(_passages_text(found["passages"]), found)
            case "ask":
                found = await doors.ask(read_fields(AskArguments, given), notice)
                return _result(_answer_text(found), found)
            case "list_documents":
                found = await doors.documents(read_fields(ListArguments, given))
                return _result(_documents_text(found["documents"]), found)
            case "add_document":
                found = await doors.add(read_fields(self._add_arguments, given), notice)
                return _result(_document_text(found), found)
        raise InvalidParameter(
            f"There is no tool {name!r}. There are: "
            f"{', '.join(tool.name for tool in self.definitions())}.",
            param="name",
        )


def tool_server(
    tools: Tools,
    *,
    version: str,
    doors: Callable[[ServerRequestContext[Any]], Doors],
    told: Callable[[Exception, ServerRequestContext[Any]], CallToolResult],
) -> Server[Any]:
    """
    The SDK's server with these tools.

    Args:
        tools: What it offers.
        version: Ours.
        doors: Who does the work of a request.
        told: What becomes of an error of theirs.
    """

    async def listed(
        _context: ServerRequestContext[Any], _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=tools.definitions())

    async def called(
        context: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult:
        told_so_far = 0

        async def notice(text: str) -> None:
            nonlocal told_so_far
            told_so_far += 1
            await context.session.report_progress(told_so_far, message=text)

        try:
            return await tools.call(params.name, params.arguments, doors(context), notice)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is told as a result
            return told(exc, context)

    return Server(
        "tidegate",
        version=version,
        instructions=INSTRUCTIONS,
        on_list_tools=listed,
        on_call_tool=called,
    )


def refusal(message: str, *, code: str, retry_after_s: float | None) -> CallToolResult:
    """An error as a result, which the model can read and act on."""
    later = "" if retry_after_s is None else f" Come back in {retry_after_s:.0f} s."
    error = {"code": code, "message": message, "retry_after_s": retry_after_s}
    return CallToolResult(
        content=[TextContent(type="text", text=f"{message}{later} ({code})")],
        structured_content={"error": error},
        is_error=True,
    )


def waiting_text(position: int, eta_s: float | None) -> str:
    """A place in the queue, in words."""
    about = "" if eta_s is None else f", about {eta_s:.0f} s"
    return f"waiting: place {position}{about}"


def _tool(name: str, description: str, arguments: Any, annotations: ToolAnnotations) -> Tool:
    return Tool(
        name=name,
        description=description,
        input_schema=arguments.model_json_schema(),
        annotations=annotations,
    )


def _result(text: str, found: dict[str, Any]) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=found)


def _passages_text(passages: Sequence[Mapping[str, Any]]) -> str:
    if not passages:
        return "Nothing was found."
    return "\n\n".join(f"[{p['filename']}, page {p['page']}]\n{p['text']}" for p in passages)


def _answer_text(answer: Mapping[str, Any]) -> str:
    cited = [c for c in answer["citations"] if c["cited"]]
    lines = [f"[{c['n']}] {c['filename']}, page {c['page']}" for c in cited]
    sources = ["Sources:\n" + "\n".join(lines)] if lines else []
    degraded = [answer["degraded"]["reason"]] if answer["degraded"] else []
    return "\n\n".join([answer["answer"], *sources, *degraded])


def _documents_text(documents: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(map(_document_text, documents)) or "There are no documents yet."


def _document_text(document: Mapping[str, Any]) -> str:
    why = f": {document['error']['message']}" if document.get("error") else ""
    return (
        f"{document['filename']} ({document['id']}, collection {document['collection']}, "
        f"{document['pages']} pages): {document['status']}{why}"
    )
