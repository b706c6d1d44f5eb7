"""Filters of file search: what they let through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from orchestrator.api.attribute_filters import matcher
from orchestrator.api.file_search_schemas import Filter
from orchestrator.errors import InvalidParameter

FILTERS = TypeAdapter(Filter)
NUMBERS = st.integers(-9, 9) | st.floats(-9, 9)
VALUES = NUMBERS | st.booleans() | st.text("ab", max_size=2)
ATTRIBUTES = st.dictionaries(st.sampled_from("xyz"), VALUES)
EQUALS = st.builds(
    lambda kind, key, value: {"type": kind, "key": key, "value": value},
    st.sampled_from(["eq", "ne"]),
    st.sampled_from("xyz"),
    VALUES,
)


def lets(filters, attributes):
    """Whether a file with these attributes is let through."""
    return matcher(FILTERS.validate_python(filters), param="filters")(attributes)


@given(EQUALS, EQUALS, ATTRIBUTES)
def test_and_or_are_those_of_logic(one, other, attributes):
    """Whatever is in them."""
    both = [lets(one, attributes), lets(other, attributes)]
    assert lets({"type": "and", "filters": [one, other]}, attributes) == all(both)
    assert lets({"type": "or", "filters": [one, other]}, attributes) == any(both)


@given(st.sampled_from("xyz"), VALUES, ATTRIBUTES)
def test_not_is_the_other_half(key, value, attributes):
    """Of equality, and of lists."""
    for plain, negated, given_value in (("eq", "ne", value), ("in", "nin", [value, "c"])):
        asked = {"key": key, "value": given_value}
        assert lets({"type": plain, **asked}, attributes) != lets(
            {"type": negated, **asked}, attributes
        )


@given(NUMBERS, NUMBERS)
def test_numbers_are_ordered(found, value):
    """Each comparison as Python has it."""
    asked = {"key": "x", "value": value}
    expected = {
        "gt": found > value,
        "gte": found >= value,
        "lt": found < value,
        "lte": found <= value,
    }
    for kind, result in expected.items():
        assert lets({"type": kind, **asked}, {"x": found}) == result


@pytest.mark.parametrize("found", ["5", True, None])
@pytest.mark.parametrize("kind", ["gt", "gte", "lt", "lte"])
def test_only_numbers_are_larger_or_smaller(kind, found):
    """A text, a truth, or nothing at all is neither."""
    attributes = {} if found is None else {"x": found}
    assert not lets({"type": kind, "key": "x", "value": 0}, attributes)
    assert not lets({"type": kind, "key": "x", "value": 9}, attributes)


def test_true_is_not_one():
    """Python thinks so."""
    assert not lets({"type": "eq", "key": "x", "value": 1}, {"x": True})
    assert not lets({"type": "in", "key": "x", "value": [0]}, {"x": False})
    assert lets({"type": "eq", "key": "x", "value": 1.0}, {"x": 1})


@pytest.mark.parametrize(
    ("kind", "value"),
    [("gt", "5"), ("lte", True), ("in", "a"), ("nin", 1), ("eq", ["a"]), ("gt", [1])],
)
def test_values_that_do_not_go_with_it_are_refused(kind, value):
    """By their place, however deep."""
    wrong = {"type": kind, "key": "x", "value": value}
    right = {"type": "eq", "key": "x", "value": 1}
    nested = {"type": "and", "filters": [right, {"type": "or", "filters": [wrong]}]}
    with pytest.raises(InvalidParameter, match="x") as told:
        lets(nested, {})
    assert told.value.param == "filters.filters[1].filters[0].value"
