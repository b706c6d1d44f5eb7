"""
What the fuzzer sends beyond what it makes up by itself; Schemathesis loads this into its own process.

Left alone it never sends a PDF, deletes the only documents there are, and allows a question 5e-324 s,
to which 504 is the right answer. And it takes a field that no schema names for permitted: here it is
not, so that what is answered and what is documented stay the same.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, HookContext

from tests import pdfs

KEPT = frozenset(os.environ.get("TIDEGATE_FUZZ_KEPT", "").split())
"""Ids of what is not deleted."""
NOBODYS = "doc-000000000000000000000000"
PATIENCE_S = 60.0
AMBIGUOUS = 2
DEADLINE = "X-Request-Deadline-Ms"
MOST = {"n": 1, "top_k": 5, "max_tokens": 64, "max_completion_tokens": 64}
"""Half of what is more becomes this: it would be refused."""
FILES = [
    *(pdfs.text_pdf([f"The lock of harbour {n} opens at {n} o'clock."]) for n in range(8)),
    b"%PDF-1.4 and then nothing",
    b"no PDF",
    b"",
]
SCHEMAS = "#/components/schemas/"
UPLOADS: st.SearchStrategy[Any] = st.lists(st.sampled_from(FILES), min_size=1, max_size=2)
"""The field `file` of a form: it is repeatable, so a list."""

schemathesis.openapi.media_type("application/pdf", UPLOADS)


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Close every object that is answered: a field that is not documented is a failure."""
    shapes = raw_schema["components"]["schemas"]
    asked = set(_referred(_requests(raw_schema), shapes))
    for name, shape in shapes.items():
        if name not in asked and "properties" in shape:
            shape.setdefault("additionalProperties", False)


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Keep what the other requests need, and leave each enough time to be answered."""
    ids = case.path_parameters
    # With two ids a file only leaves a store: both stay.
    for name in ids if case.method == "DELETE" and len(ids) == 1 else ():
        if ids[name] in KEPT:
            ids[name] = NOBODYS
    if isinstance(case.body, dict) and _too_short(case.body.get("timeout_s"), PATIENCE_S):
        case.body["timeout_s"] = PATIENCE_S
    if isinstance(case.body, dict):
        _make_servable(case.body)
        if case.path == "/upload":
            _keep_wrong(case.body)
    with suppress(KeyError, TypeError, ValueError):
        if _too_short(float(case.headers[DEADLINE]), PATIENCE_S * 1000):
            case.headers[DEADLINE] = str(PATIENCE_S * 1000)


def _make_servable(body: dict[str, Any]) -> None:
    """What a shape cannot say: limits that are settings, one choice, a last turn of the user's, text."""
    for name, most in MOST.items():
        value = body.get(name)
        if type(value) is int and value > most and value % 2:
            body[name] = most
    with suppress(KeyError, IndexError, TypeError):
        last = body["messages"][-1] if "messages" in body else body["input"][-1]
        if last["role"] in {"system", "developer", "assistant"}:
            last["role"] = "user"
        for part in last["content"] if isinstance(last["content"], list) else ():
            if isinstance(part["type"], str):
                part.update(type="text", text=part.get("text") or "When does the gate close?")


def _keep_wrong(form: dict[str, Any]) -> None:
    """A list of one or none in place of a text would be sent as what is right; two are wrong."""
    for name in ("collection", "replaces"):
        value = form.get(name)
        if isinstance(value, list) and len(value) < AMBIGUOUS:
            form[name] = ["a", "b"]


def _too_short(value: object, enough: float) -> bool:
    """Whether it is a time, and less than enough; what is no time at all is sent as it is."""
    return isinstance(value, int | float) and 0 < value < enough


def _requests(document: dict[str, Any]) -> Iterator[Any]:
    for operations in document["paths"].values():
        for operation in operations.values():
            yield operation.get("requestBody")
            yield operation.get("parameters")


def _referred(
    value: Any, shapes: dict[str, Any], seen: frozenset[str] = frozenset()
) -> Iterator[str]:
    """The names of the shapes that are used in `value`, and in those in turn."""
    if isinstance(value, dict):
        name = str(value.get("$ref", "")).removeprefix(SCHEMAS)
        if name in shapes and name not in seen:
            yield name
            yield from _referred(shapes[name], shapes, seen | {name})
        value = value.values()
    if not isinstance(value, str | int | float | None):
        for inner in value:
            yield from _referred(inner, shapes, seen)
