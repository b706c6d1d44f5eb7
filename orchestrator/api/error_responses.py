"""
The one table from error class to HTTP, and the one shape that every error has on the wire.

`{"error": {"message", "type", "code", "param"}}`, as OpenAI's clients expect it.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from orchestrator import errors
from orchestrator.errors import OrchestratorError

logger = logging.getLogger(__name__)

INVALID = "invalid_request_error"
OVERLOADED = "overloaded_error"
SERVER = "server_error"
TIMEOUT = "timeout_error"
AUTHENTICATION = "authentication_error"
PERMISSION = "permission_error"
RATE_LIMIT = "rate_limit_error"
CLIENT_CLOSED_REQUEST = 499
"""Nginx's word for a client that hung up; seen in logs and metrics only."""

STATUS: Mapping[type[OrchestratorError], tuple[int, str]] = {
    errors.Internal: (HTTPStatus.INTERNAL_SERVER_ERROR, SERVER),
    errors.RequestError: (HTTPStatus.BAD_REQUEST, INVALID),
    errors.InvalidRequest: (HTTPStatus.BAD_REQUEST, INVALID),
    errors.InvalidParameter: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.ContextTooLong: (HTTPStatus.BAD_REQUEST, INVALID),
    errors.ModelNotFound: (HTTPStatus.NOT_FOUND, INVALID),
    errors.RouteNotFound: (HTTPStatus.NOT_FOUND, INVALID),
    errors.MethodNotAllowed: (HTTPStatus.METHOD_NOT_ALLOWED, INVALID),
    errors.BodyTooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, INVALID),
    errors.UnsupportedMediaType: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, INVALID),
    errors.RangeNotSatisfiable: (HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, INVALID),
    errors.DocumentNotFound: (HTTPStatus.NOT_FOUND, INVALID),
    errors.CollectionNotFound: (HTTPStatus.NOT_FOUND, INVALID),
    errors.UploadNotFound: (HTTPStatus.NOT_FOUND, INVALID),
    errors.VectorStoreNotFound: (HTTPStatus.NOT_FOUND, INVALID),
    errors.FileBatchNotFound: (HTTPStatus.NOT_FOUND, INVALID),
    errors.DocumentNotReady: (HTTPStatus.CONFLICT, INVALID),
    errors.ClientClosed: (CLIENT_CLOSED_REQUEST, INVALID),
    errors.InvalidApiKey: (HTTPStatus.UNAUTHORIZED, AUTHENTICATION),
    errors.AdminKeyNeeded: (HTTPStatus.FORBIDDEN, PERMISSION),
    errors.ForeignOrigin: (HTTPStatus.FORBIDDEN, PERMISSION),
    errors.RateLimited: (HTTPStatus.TOO_MANY_REQUESTS, RATE_LIMIT),
    errors.QuotaExceeded: (HTTPStatus.TOO_MANY_REQUESTS, RATE_LIMIT),
    errors.DocumentError: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.NotAPdf: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, INVALID),
    errors.EmptyFile: (HTTPStatus.BAD_REQUEST, INVALID),
    errors.DamagedDocument: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.EncryptedDocument: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.NoTextInDocument: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.NoPages: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.TooManyPages: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, INVALID),
    errors.DocumentTooLarge: (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, INVALID),
    errors.ParserTimeout: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.ParserOutOfMemory: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.IngestionInterrupted: (HTTPStatus.UNPROCESSABLE_ENTITY, INVALID),
    errors.StorageFull: (HTTPStatus.INSUFFICIENT_STORAGE, SERVER),
    errors.CollectionFull: (HTTPStatus.INSUFFICIENT_STORAGE, SERVER),
    errors.StoreUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, SERVER),
    errors.IndexNotReady: (HTTPStatus.SERVICE_UNAVAILABLE, SERVER),
    errors.EmbedderUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, SERVER),
    errors.CircuitOpen: (HTTPStatus.SERVICE_UNAVAILABLE, SERVER),
    errors.NotReady: (HTTPStatus.SERVICE_UNAVAILABLE, SERVER),
    errors.Overloaded: (HTTPStatus.TOO_MANY_REQUESTS, OVERLOADED),
    errors.QueueFull: (HTTPStatus.TOO_MANY_REQUESTS, OVERLOADED),
    errors.QueueTimeout: (HTTPStatus.TOO_MANY_REQUESTS, OVERLOADED),
    errors.IngestionQueueFull: (HTTPStatus.TOO_MANY_REQUESTS, OVERLOADED),
    errors.DeadlineExceeded: (HTTPStatus.GATEWAY_TIMEOUT, TIMEOUT),
    errors.EngineError: (HTTPStatus.BAD_GATEWAY, SERVER),
    errors.EngineUnavailable: (HTTPStatus.SERVICE_UNAVAILABLE, SERVER),
    errors.EngineOverloaded: (HTTPStatus.TOO_MANY_REQUESTS, OVERLOADED),
    errors.EngineTimeout: (HTTPStatus.GATEWAY_TIMEOUT, TIMEOUT),
    errors.EngineRejected: (HTTPStatus.BAD_GATEWAY, SERVER),
    errors.EngineProtocolError: (HTTPStatus.BAD_GATEWAY, SERVER),
}

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1, 60
"""Older OpenAI clients ignore a Retry-After above 60 s."""

DEFAULT_RETRY_AFTER_S = 5
"""Told with a 429 or 503 whose end nobody knows: a restart takes longer, a hiccup is over."""
COME_BACK_LATER = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

OPENAI_PREFIX = "/v1/"

NO_JSON = "The body must be a JSON object; send Content-Type: application/json."


def error_body(error: OrchestratorError) -> dict[str, Any]:
    """The error as it goes over the wire, in a body."""
    return {
        "error": {
            "message": error.message,
            "type": STATUS[type(error)][1],
            "code": error.code,
            "param": error.param,
        }
    }


def error_event(error: OrchestratorError) -> dict[str, Any]:
    """The error as a stream's last event: it says itself when to come back, for want of a header."""
    body = error_body(error)
    body["error"]["retry_after_s"] = error_retry_after_s(error)
    return body


def error_retry_after_s(error: OrchestratorError) -> float | None:
    """When to come back, in seconds; None if that is not known, or would be in vain."""
    known_s = error.retry_after_s
    in_vain = error.should_retry is False and known_s is None
    if known_s is None and not in_vain and STATUS[type(error)][0] in COME_BACK_LATER:
        known_s = DEFAULT_RETRY_AFTER_S
    if known_s is None:
        return None
    return round(min(max(known_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S), 3)


def error_headers(error: OrchestratorError) -> dict[str, str]:
    """When to come back, in seconds and in milliseconds, and whether a client should by itself."""
    headers = {}
    seconds = error_retry_after_s(error)
    if seconds is not None:
        headers["Retry-After"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(int(seconds * 1000))
    if isinstance(error, errors.InvalidApiKey):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.RangeNotSatisfiable) and error.size_bytes is not None:
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


def error_response(error: OrchestratorError, *, path: str = "") -> Response:
    """
    The error as a response.

    A wrong parameter, and a PDF that cannot be used, are 400 below /v1, as OpenAI has it; on our own
    routes they are told apart.
    """
    status = STATUS[type(error)][0]
    wrong = isinstance(error, errors.InvalidParameter | errors.DocumentError)
    if wrong and path.startswith(OPENAI_PREFIX):
        status = HTTPStatus.BAD_REQUEST
    return JSONResponse(error_body(error), status, error_headers(error))


def validation_error(exc: RequestValidationError) -> OrchestratorError:
    """The first thing that is wrong with a request, in one sentence."""
    found = exc.errors()
    first = found[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it cannot be parsed")
        return errors.InvalidRequest(f"The body is not JSON: {reason}.")
    field = _field(first)
    if not field:
        return errors.InvalidRequest(NO_JSON)
    # Of a field that may be of several kinds, each kind says why it is not that one: what is wrong
    # with the right kind tells more.
    of_it = [error for error in found if _field(error).startswith(field)]
    told = next((error for error in of_it if not error["type"].endswith("_type")), first)
    field = _field(told)
    more = len({_field(error) for error in found} - {_field(error) for error in of_it})
    also = f" ({more} more field{'s' if more > 1 else ''} wrong)" if more else ""
    return errors.InvalidParameter(f"{field}: {told['msg']}{also}.", param=field)


def _field(error: Mapping[str, Any]) -> str:
    """Where it is, as the caller wrote it: without the names of kinds that a field may be of."""
    places = [str(part) for part in error["loc"] if part not in {"body", "query", "path"}]
    return ".".join(place for place in places if place not in _KINDS and "[" not in place)


_KINDS = {"str", "int", "float", "bool", "constrained-str"}


def http_error(exc: HTTPException) -> OrchestratorError:
    """What the framework itself refuses, as one of ours."""
    if isinstance(exc.__cause__, OrchestratorError):  # raised while the framework read the body
        return exc.__cause__
    if exc.status_code == HTTPStatus.NOT_FOUND:
        return errors.RouteNotFound("There is no such route. GET /openapi.json lists all of them.")
    if exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return errors.MethodNotAllowed("This route does not take that method.")
    return errors.InvalidRequest(str(exc.detail))


def install(app: FastAPI, *, routes: Sequence[BaseRoute] = ()) -> None:
    """
    Make every error of `app` leave in the one shape.

    Args:
        app: Whose errors.
        routes: All of its routes: a 405 names the methods of those that have the same path.
    """

    async def ours(request: Request, exc: Exception) -> Response:
        return _seen(request, cast("OrchestratorError", exc))

    async def invalid(request: Request, exc: Exception) -> Response:
        return _seen(request, validation_error(cast("RequestValidationError", exc)))

    async def framework(request: Request, exc: Exception) -> Response:
        refused = cast("HTTPException", exc)
        response = _seen(request, http_error(refused))
        if refused.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = _allowed(request.scope["path"], routes)
        return response

    async def bug(request: Request, exc: Exception) -> Response:
        return _seen(request, internal_error(exc))

    app.add_exception_handler(Exception, bug)
    app.add_exception_handler(OrchestratorError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, framework)


def _allowed(path: str, routes: Sequence[BaseRoute]) -> str:
    """The methods that a path takes, over all of its routes; files take two."""
    methods = {
        method
        for route in routes
        if isinstance(route, Route) and route.path_regex.match(path)
        for method in route.methods or ()
    }
    return ", ".join(sorted(methods or {"GET", "HEAD"}))


def internal_error(exc: Exception) -> OrchestratorError:
    """What a caller is told of a bug; the traceback goes to the log."""
    logger.error("unexpected error", exc_info=exc)
    return errors.Internal(
        "Something of ours broke. The log tells what, under this request's X-Request-ID."
    )


def _seen(request: Request, error: OrchestratorError) -> Response:
    request.state.outcome = error.code
    return error_response(error, path=request.url.path)


def dumps(payload: Mapping[str, Any]) -> str:
    """JSON for one event: compact, and on one line."""
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
