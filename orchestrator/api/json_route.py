"""
A route whose endpoint takes one JSON body: validated by its model, without the framework's way there.

FastAPI solves dependencies and keeps exit stacks for every request. A question needs none of it, and
under overload most requests are refusals, whose cost is just this way. The OpenAPI page stays FastAPI's.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from orchestrator.api.error_responses import NO_JSON
from orchestrator.errors import InvalidRequest


class JsonRoute(APIRoute):
    """A route of an endpoint `(body: Model, request: Request) -> Response`, and of no other kind."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What is called for each request."""
        endpoint: Callable[[BaseModel, Request], Awaitable[Response]] = self.endpoint
        model: type[BaseModel] = get_type_hints(endpoint)["body"]

        async def handle(request: Request) -> Response:
            return await endpoint(await _read(request, model), request)

        return handle


async def _read(request: Request, model: type[BaseModel]) -> BaseModel:
    """
    The body as its model has it.

    Raises:
        InvalidRequest: If it is no JSON object, or does not say that it is one: a page of another
            site can make a browser send anything else without asking us first.
        RequestValidationError: If a field is missing or wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and "+json" in kind):
        raise InvalidRequest(NO_JSON)
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as exc:
        raise RequestValidationError(exc.errors(include_url=False)) from exc
