"""What both clients send and understand; nothing here waits."""

import io
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, TypedDict, cast

import httpx2

from orchestrator.api.schemas import AskResponse, DocumentOut, QueuedOut, SourcesOut, TokenOut

CONNECT_S = 5.0
ANSWER_S = 600.0
ATTEMPTS = 3
COME_BACK = {429, 503}
LONGEST_WAIT_S = 60.0
UNREACHABLE = "unreachable"
PAGE = 100

AnswerEvent: TypeAlias = QueuedOut | SourcesOut | TokenOut | AskResponse
"""What an answer is while it comes: a place in the queue, the sources, text, and last the whole."""

_EVENTS: dict[str, type[QueuedOut | SourcesOut | TokenOut | AskResponse | DocumentOut]] = {
    "queued": QueuedOut,
    "sources": SourcesOut,
    "token": TokenOut,
    "done": AskResponse,
    "document": DocumentOut,
}


class SearchOptions(TypedDict, total=False):
    """Where to search; see `SearchRequest`."""

    collection: str
    document_ids: list[str]
    top_k: int
    timeout_s: float


class AskOptions(SearchOptions, total=False):
    """How to answer; see `AskRequest`."""

    max_tokens: int
    history: list[dict[str, str]]
    degrade: bool
    priority: Literal["interactive", "normal", "batch"]


class ClientError(Exception):
    """
    What the orchestrator answered instead of what was asked for.

    Attributes:
        code: The wire's `error.code`, or "unreachable".
        status: HTTP's; None if nothing answered, or an answer broke off.
        retry_after_s: When to come back, in seconds, if that was told.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Call:
    """
    One request.

    Attributes:
        method: HTTP's.
        path: Below the base address.
        params: Of its query.
        body: As JSON.
        fields: Of a form.
        file: Of the form, too.
        on_bytes: Told how many bytes of the file were sent, part by part.
    """

    method: str
    path: str
    params: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    fields: Mapping[str, str] | None = None
    file: Path | None = None
    on_bytes: Callable[[int], None] = lambda _: None

    def arguments(self, stack: ExitStack) -> dict[str, Any]:
        """What `httpx2` is to send; the file is open until the stack is closed."""
        found: dict[str, Any] = {"method": self.method, "url": self.path}
        if self.params is not None:
            found["params"] = dict(self.params)
        if self.body is not None:
            found["json"] = dict(self.body)
        if self.fields is not None:
            found["data"] = dict(self.fields)
        if self.file is not None:
            opened = stack.enter_context(self.file.open("rb"))
            counted = cast("BinaryIO", _Counted(opened, self.on_bytes))
            found["files"] = {"file": (self.file.name, counted, "application/pdf")}
        return found


def ask_call(question: str, options: AskOptions, *, stream: bool) -> Call:
    """A question."""
    return Call("POST", "/ask", body={"question": question, **options, "stream": stream})


def search_call(question: str, options: SearchOptions) -> Call:
    """A search."""
    return Call("POST", "/search", body={"question": question, **options})


def upload_call(
    path: Path, *, collection: str, replaces: str | None, on_bytes: Callable[[int], None]
) -> Call:
    """A file."""
    fields = {"collection": collection, "replaces": replaces or ""}
    return Call("POST", "/upload", fields=fields, file=path, on_bytes=on_bytes)


def documents_call(
    collection: str | None, status: str | None, after: str | None, limit: int
) -> Call:
    """A page of documents."""
    wanted = {"collection": collection, "status": status, "after": after, "limit": str(limit)}
    return Call("GET", "/documents", params={k: v for k, v in wanted.items() if v is not None})


def document_path(document_id: str) -> str:
    """Where a document is."""
    return f"/documents/{document_id}"


def client_arguments(base_url: str, key: str, answer_s: float) -> dict[str, Any]:
    """What both kinds of `httpx2` client are made with."""
    return {
        "base_url": base_url,
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx2.Timeout(answer_s, connect=CONNECT_S),
        "trust_env": False,
    }


def come_back_s(response: httpx2.Response, attempt: int, attempts: int) -> float | None:
    """
    After how long to try again; None if not.

    Args:
        response: What was answered.
        attempt: Which one it was, from 1.
        attempts: How many there may be.
    """
    if response.status_code not in COME_BACK or attempt >= attempts:
        return None
    if response.headers.get("x-should-retry") == "false":
        return None
    return _retry_after_s(response)


def event_of(event: httpx2.ServerSentEvent) -> Any:
    """
    What a server-sent event carries, in its shape; None if it is of a kind that is not known.

    Raises:
        ClientError: If it is an error.
    """
    data = json.loads(event.data)
    if event.event == "error":
        raise error_of(data)
    shape = _EVENTS.get(event.event)
    return None if shape is None else shape.model_validate(data)


def json_of(response: httpx2.Response) -> dict[str, Any]:
    """
    The JSON of an answer, whatever its status says about readiness.

    Raises:
        ClientError: If it is an error.
    """
    try:
        payload = response.json()
    except ValueError:
        payload = {}
    failed = isinstance(payload.get("error"), dict)
    if failed or (response.is_error and not payload):
        raise error_of(payload, response)
    return dict(payload)


def error_of(payload: Mapping[str, Any], response: httpx2.Response | None = None) -> ClientError:
    """The error that was told."""
    error = payload.get("error") or {}
    status = None if response is None else response.status_code
    return ClientError(
        str(error.get("message", f"The answer was {status}, without a reason.")),
        code=str(error.get("code", "unknown")),
        status=status,
        retry_after_s=error.get("retry_after_s") if response is None else _retry_after_s(response),
    )


def unreachable(base_url: str, exc: httpx2.HTTPError) -> ClientError:
    """Nothing answered, or it stopped to."""
    return ClientError(
        f"{base_url} does not answer ({type(exc).__name__}). "
        "Is Tidegate running? `make run` starts it; TIDEGATE_URL or --url names another.",
        code=UNREACHABLE,
    )


def _retry_after_s(response: httpx2.Response) -> float | None:
    for header, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = response.headers.get(header, "")
        if text.isdigit():
            return min(int(text) * unit_s, LONGEST_WAIT_S)
    return None


class _Counted(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, file: io.BufferedReader, on_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1, /) -> bytes:
        block = self._file.read(size)
        self._on_bytes(len(block))
        return block

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()
