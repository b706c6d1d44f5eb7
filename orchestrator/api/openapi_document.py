"""
What the OpenAPI document says beyond what FastAPI reads off the routes.

Answers to questions are written out by hand, for speed, and streams and files have no return type.
They are described here by the shapes in `schemas`, so that a client can be made from the document
alone; `make fuzz` holds every answer to it.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from orchestrator.api.schemas import ErrorResponse, component_schemas

Described = dict[str, Any]

RETRY_HEADERS: Described = {
    "Retry-After": {
        "description": "When to come back, in seconds.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 60},
    },
    "retry-after-ms": {
        "description": "The same in milliseconds.",
        "schema": {"type": "integer", "minimum": 1000, "maximum": 60000},
    },
    "x-should-retry": {
        "description": "Whether a client should come back by itself.",
        "schema": {"enum": ["true", "false"]},
    },
}
ALLOW_HEADER: Described = {
    "Allow": {"description": "With 405: the methods of the route.", "schema": {"type": "string"}}
}
DEGRADED_HEADERS: Described = {
    "X-Tidegate-Degraded": {
        "description": "The level of an answer that is less than a whole one.",
        "schema": {"enum": ["L1", "L2", "L3"]},
    }
}
REQUEST_ID_HEADERS: Described = {
    "X-Request-ID": {
        "description": "That of the request, or a new one.",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    }
}
ERRORS: dict[int | str, Described] = {
    "4XX": {"model": ErrorResponse, "headers": RETRY_HEADERS | ALLOW_HEADER},
    "5XX": {"model": ErrorResponse, "headers": RETRY_HEADERS},
}
"""Every error has the one shape, so that its status needs no entry of its own."""

DEADLINE: Described = {
    "parameters": [
        {
            "name": "X-Request-Deadline-Ms",
            "in": "header",
            "description": "The request's deadline in milliseconds; can only be shortened.",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        }
    ]
}
RANGE: Described = {
    "parameters": [
        {
            "name": "Range",
            "in": "header",
            "description": "Bytes of the file, e.g. `bytes=0-99`.",
            "schema": {"type": "string"},
        }
    ]
}
BINARY: Described = {"schema": {"type": "string", "format": "binary"}}
FILE: dict[int | str, Described] = {
    200: {"description": "The whole PDF.", "content": {"application/pdf": BINARY}},
    206: {
        "description": "The ranges that were asked for.",
        "content": {"application/pdf": BINARY, "multipart/byteranges": BINARY},
    },
}
SECURITY = "key"


def event_stream(
    *, named: Mapping[str, type] | None = None, unnamed: tuple[type, ...] = ()
) -> Described:
    """
    The content of an answer by server-sent events.

    Args:
        named: What an event carries, by its name.
        unnamed: What an event without a name carries: OpenAI's wire, which ends with `[DONE]`.
    """
    kinds = [_event(_json(model), name=name) for name, model in (named or {}).items()]
    kinds += [_event(_json(model)) for model in unnamed]
    if unnamed:
        kinds.append(_event({"const": "[DONE]"}))
    return {"text/event-stream": {"itemSchema": {"anyOf": kinds}}}


def describe(app: FastAPI, *, streamed: tuple[type, ...]) -> None:
    """
    Add to the document of `app` what holds for every route.

    Args:
        app: With all of its routes.
        streamed: Shapes that only event streams carry: FastAPI has not seen them.
    """
    written = app.openapi

    def whole() -> Described:
        if app.openapi_schema is None:
            _complete(written(), streamed)
        return written()

    # FastAPI's own way to extend the document; it is made once, when it is first asked for.
    app.openapi = whole  # type: ignore[method-assign] # FastAPI's own hook


def _complete(document: Described, streamed: tuple[type, ...]) -> None:
    components = document["components"]
    for name, schema in component_schemas(*streamed).items():
        components["schemas"].setdefault(name, schema)
    components["securitySchemes"] = {
        SECURITY: {
            "type": "http",
            "scheme": "bearer",
            "description": "A key (`tidegate keys create`), where there are any.",
        }
    }
    document["security"] = [{}, {SECURITY: []}]
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                answer.setdefault("headers", {}).update(REQUEST_ID_HEADERS)


def _event(data: Described, *, name: str | None = None) -> Described:
    properties = {"data": {"type": "string", **data}}
    if name is None:
        return {"type": "object", "required": ["data"], "properties": properties}
    return {
        "type": "object",
        "required": ["event", "data"],
        "properties": {"event": {"const": name}, **properties},
    }


def _json(model: type) -> Described:
    return {
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": f"#/components/schemas/{model.__name__}"},
    }
