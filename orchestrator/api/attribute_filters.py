"""Filters of file search, as a question to a file's attributes."""

from collections.abc import Callable

from orchestrator.api.file_search_schemas import ComparisonFilter, CompoundFilter
from orchestrator.errors import InvalidParameter
from orchestrator.retrieval.registry_rows import Attributes

Value = str | bool | int | float
Test = Callable[[Attributes], bool]

ORDERED: dict[str, Callable[[float, float], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}


def matcher(given: ComparisonFilter | CompoundFilter, *, param: str) -> Test:
    """
    Whether a file with these attributes is wanted.

    A file that lacks the attribute is wanted by `ne` and `nin` only.

    Args:
        given: What the client sent.
        param: Where it stands in the request, for errors.

    Raises:
        InvalidParameter: If a value does not go with its comparison.
    """
    if isinstance(given, CompoundFilter):
        tests = [matcher(one, param=f"{param}.filters[{n}]") for n, one in enumerate(given.filters)]
        if given.type == "and":
            return lambda attributes: all(test(attributes) for test in tests)
        return lambda attributes: any(test(attributes) for test in tests)
    key, value = given.key, given.value
    if given.type in {"in", "nin"}:
        if not isinstance(value, list):
            raise _wrong(given, "a list", param)
        values: list[Value] = list(value)
        wanted = given.type == "in"
        return lambda attributes: wanted == any(_same(attributes.get(key), v) for v in values)
    if isinstance(value, list):
        raise _wrong(given, "one value; `in` takes a list", param)
    if given.type in ORDERED:
        if isinstance(value, str | bool):
            raise _wrong(given, "a number", param)
        return _ordered(key, ORDERED[given.type], value)
    equal = given.type == "eq"
    return lambda attributes: equal == _same(attributes.get(key), value)


def _ordered(key: str, compare: Callable[[float, float], bool], value: float) -> Test:
    def test(attributes: Attributes) -> bool:
        found = attributes.get(key)
        return not isinstance(found, str | bool | None) and compare(found, value)

    return test


def _same(found: Value | None, value: Value) -> bool:
    """Whether two values are equal; Python takes True for 1."""
    return found == value and isinstance(found, bool) == isinstance(value, bool)


def _wrong(given: ComparisonFilter, wants: str, param: str) -> InvalidParameter:
    return InvalidParameter(
        f"The filter `{given.type}` on {given.key!r} takes {wants}.", param=f"{param}.value"
    )
