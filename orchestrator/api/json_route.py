"""
Routes whose endpoint takes one JSON body, and the short way to them.

FastAPI matches routes one after the other, solves dependencies and keeps exit stacks for every
request. A question needs none of it, and under overload most requests are refusals, whose cost is just
this way. The OpenAPI page stays FastAPI's, and so do all other routes.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from http import HTTPMethod
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.error_responses import NO_JSON, validation_error
from orchestrator.errors import InvalidRequest

Fields = TypeVar("Fields", bound=BaseModel)


class JsonRoute(APIRoute):
    """A route of an endpoint `(body: Model, request: Request) -> Response`, and of no other kind."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What is called for each request."""
        endpoint: Callable[[BaseModel, Request], Awaitable[Response]] = self.endpoint
        model: type[BaseModel] = get_type_hints(endpoint)["body"]

        async def handle(request: Request) -> Response:
            return await endpoint(await _read(request, model), request)

        return handle


class ShortWay:
    """
    Leads a POST to a `JsonRoute` past the framework's router; every other request goes there.

    Errors leave as they are raised: `RequestContext` around it has the table.
    """

    def __init__(self, app: ASGIApp, *, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = {
            route.path: (route, route.get_route_handler())
            for route in routes
            if isinstance(route, JsonRoute) and "{" not in route.path
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        found = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if found is None or scope["method"] != HTTPMethod.POST:
            await self._app(scope, receive, send)
            return
        scope["route"], handle = found
        response = await handle(Request(scope, receive, send))
        await response(scope, receive, send)


def read_fields(model: type[Fields], given: Mapping[str, Any]) -> Fields:
    """
    Fields that came some other way than as a body of their own, as their model has them.

    Raises:
        InvalidParameter: If a field is missing or wrong.
    """
    try:
        return model.model_validate(given)
    except ValidationError as exc:
        raise validation_error(RequestValidationError(exc.errors(include_url=False))) from exc


async def _read(request: Request, model: type[BaseModel]) -> BaseModel:
    """
    The body as its model has it.

    Raises:
        InvalidRequest: If it is no JSON object, or does not say that it is one: a page of another
            site can make a browser send anything else without asking us first.
        InvalidParameter: If a field is missing or wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and "+json" in kind):
        raise InvalidRequest(NO_JSON)
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as exc:
        raise validation_error(RequestValidationError(exc.errors(include_url=False))) from exc
