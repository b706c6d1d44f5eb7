"""A thin HTTP client of the orchestrator; the command line speaks through it."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

import httpx2

CONNECT_S = 5.0
ANSWER_S = 600.0


class ClientError(Exception):
    """
    What the orchestrator answered instead of what was asked for.

    Attributes:
        code: The wire's `error.code`, or "unreachable".
    """

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event."""

    name: str
    data: dict[str, Any]


class Client:
    """
    Talks to one orchestrator.

    Args:
        base_url: Where it listens.
        key: Sent as a bearer token, if there is one.
    """

    def __init__(self, base_url: str, *, key: str = "") -> None:
        self._http = httpx2.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
            trust_env=False,
        )
        self._base_url = base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        """
        The JSON of a GET, whatever its status says about readiness.

        Raises:
            ClientError: If nothing answers, or the answer is an error.
        """
        with self._told():
            response = self._http.get(path)
        return _checked(response.json())

    def post(self, path: str) -> dict[str, Any]:
        """
        The JSON of an order that takes no arguments.

        Raises:
            ClientError: If nothing answers, or the answer is an error.
        """
        with self._told():
            response = self._http.post(path, json={})
        return _checked(response.json())

    def upload(
        self,
        path: Path,
        *,
        collection: str,
        replaces: str | None = None,
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> dict[str, Any]:
        """
        The document that a file became; it may still be on its way.

        Args:
            path: The PDF.
            collection: Where it goes.
            replaces: Id of the document that goes when this one is ready.
            on_bytes: Called with the number of bytes of each part that was sent.

        Raises:
            ClientError: If the file was refused.
        """
        with path.open("rb") as file, self._told():
            response = self._http.post(
                "/upload",
                files={
                    "file": (
                        path.name,
                        cast("BinaryIO", _Counted(file, on_bytes)),
                        "application/pdf",
                    )
                },
                data={"collection": collection, "replaces": replaces or ""},
            )
        payload = response.json()
        if response.is_error:
            raise _error(payload)
        return dict(payload["documents"][0])

    def follow(self, document_id: str) -> Iterator[dict[str, Any]]:
        """The document after each change, until it is ready or failed."""
        for event in self._events("GET", f"/documents/{document_id}/events"):
            yield event.data

    def ask(self, body: dict[str, Any]) -> Iterator[ServerEvent]:
        """
        The answer as it comes: `queued`, `sources`, `token`, `done`.

        Raises:
            ClientError: If the question was refused, or the answer broke off.
        """
        yield from self._events("POST", "/ask", json={**body, "stream": True})

    def _events(self, method: str, path: str, **arguments: Any) -> Iterator[ServerEvent]:
        with self._told(), self._http.stream(method, path, **arguments) as response:
            if response.is_error:
                raise _error(json.loads(response.read()))
            for event in httpx2.EventSource(response):
                data = json.loads(event.data)
                if "error" in data and event.event == "error":
                    raise _error(data)
                yield ServerEvent(event.event, data)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as exc:
            raise ClientError(
                f"{self._base_url} does not answer ({type(exc).__name__}). "
                "Is Tidegate running? `make run` starts it; TIDEGATE_URL or --url names another.",
                code="unreachable",
            ) from exc


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


def _checked(payload: dict[str, Any]) -> dict[str, Any]:
    """The payload, unless it is an error."""
    if "error" in payload and isinstance(payload["error"], dict):
        raise _error(payload)
    return dict(payload)


def _error(payload: dict[str, Any]) -> ClientError:
    error = payload.get("error", {})
    return ClientError(str(error.get("message", payload)), code=str(error.get("code", "unknown")))
