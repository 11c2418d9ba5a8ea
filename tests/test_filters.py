from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrag.errors import InputError
from fedrag.filters import compile_filter

OPERATORS = ["==", "!=", ">", ">=", "<", "<=", "in", "not in", "exists"]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def oracle(where: dict, metadata: dict) -> bool:
    """The documented meaning, written out case by case."""
    if "conditions" in where:
        results = [oracle(part, metadata) for part in where["conditions"]]
        return {"AND": all(results), "OR": any(results), "NOT": not all(results)}[where["operator"].upper()]
    name = where["field"][5:] if where["field"].startswith("meta.") else where["field"]
    present, found = name in metadata, metadata.get(name)
    if not present:
        found, present = metadata, True
        for key in name.split("."):
            present = present and isinstance(found, dict) and key in found
            found = found[key] if present else None
    op, value = where["operator"], where.get("value", True)
    if op == "exists":
        return present is value
    if not present:
        return False

    def marked(a: Any) -> Any:
        if isinstance(a, dict):
            return {key: marked(part) for key, part in a.items()}
        return (
            [marked(part) for part in a] if isinstance(a, list) else ("true or false", a) if isinstance(a, bool) else a
        )

    def same(a: Any, b: Any) -> bool:
        return marked(a) == marked(b)

    if op == "==":
        return same(found, value)
    if op == "!=":
        return not same(found, value)
    if op == "in":
        return any(same(found, each) for each in value)
    if op == "not in":
        return all(not same(found, each) for each in value)
    if not ((isinstance(found, str) and isinstance(value, str)) or (is_number(found) and is_number(value))):
        return False
    return {">": found > value, ">=": found >= value, "<": found < value, "<=": found <= value}[op]


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["", "a", "b"])
)
values = st.one_of(scalars, st.lists(scalars, max_size=2), st.dictionaries(st.sampled_from("ab"), scalars, max_size=2))
keys = st.sampled_from(["a", "b", "a.b", "meta"])
metadatas = st.dictionaries(keys, st.one_of(values, st.dictionaries(keys, values, max_size=2)), max_size=3)
fields = st.sampled_from(["a", "b", "a.b", "meta.a", "meta.a.b", "a.a", "b.a.b", "meta", "meta.meta", "", "."])
comparisons = st.one_of(
    st.fixed_dictionaries({"field": fields, "operator": st.sampled_from(["==", "!="]), "value": values}),
    st.fixed_dictionaries(
        {
            "field": fields,
            "operator": st.sampled_from([">", ">=", "<", "<="]),
            "value": st.one_of(st.integers(-2, 2), st.floats(allow_nan=True), st.sampled_from(["", "a"])),
        }
    ),
    st.fixed_dictionaries(
        {"field": fields, "operator": st.sampled_from(["in", "not in"]), "value": st.lists(values, max_size=3)}
    ),
    st.fixed_dictionaries({"field": fields, "operator": st.just("exists")}, optional={"value": st.booleans()}),
)
wheres = st.recursive(
    comparisons,
    lambda parts: st.fixed_dictionaries(
        {
            "operator": st.sampled_from(["AND", "OR", "NOT", "and", "Not"]),
            "conditions": st.lists(parts, min_size=1, max_size=3),
        }
    ),
    max_leaves=6,
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(wheres, st.lists(metadatas, min_size=1, max_size=5))
def test_agrees_with_the_oracle(where: dict, rows: list[dict]) -> None:
    keep = compile_filter(where)
    assert [keep(row) for row in rows] == [oracle(where, row) for row in rows]


@pytest.mark.parametrize(
    ("operator", "value", "matching"),
    [
        ("==", 2, ["two"]),
        ("==", 1, ["one"]),
        ("==", True, ["true"]),
        ("!=", True, ["one", "two", "three", "text"]),
        ("!=", 2, ["one", "three", "text", "true"]),
        (">", 2, ["three"]),
        (">=", 2, ["two", "three"]),
        ("<", 2, ["one"]),
        ("<=", 2, ["one", "two"]),
        ("<", "zz", ["text"]),
        ("in", [1, 3.0, "x"], ["one", "three", "text"]),
        ("in", {"x"}, ["text"]),
        ("not in", (1, 3, "x"), ["two", "true"]),
        ("exists", True, ["one", "two", "three", "text", "true"]),
        ("exists", False, ["none"]),
    ],
)
def test_every_operator(operator: str, value: Any, matching: list[str]) -> None:
    rows = {"one": {"v": 1}, "two": {"v": 2}, "three": {"v": 3}, "text": {"v": "x"}, "true": {"v": True}, "none": {}}
    keep = compile_filter({"field": "v", "operator": operator, "value": value})
    assert [name for name, row in rows.items() if keep(row)] == matching


def test_a_missing_field_matches_no_comparison_and_not_turns_that_round() -> None:
    for operator in OPERATORS[:-1]:
        value = [1] if "in" in operator else 1
        comparison = {"field": "gone.deep", "operator": operator, "value": value}
        for row in ({}, {"gone": 1}, {"gone": {"other": 1}}, {"gone": ["deep"]}):
            assert compile_filter(comparison)(row) is False
            assert compile_filter({"operator": "NOT", "conditions": [comparison]})(row) is True


def test_a_key_with_dots_is_found_as_it_is() -> None:
    keep = compile_filter({"field": "file.name", "operator": "==", "value": "a"})
    assert keep({"file.name": "a"})
    assert keep({"file": {"name": "a"}})
    assert not keep({"file.name": "b", "file": {"name": "a"}})


def test_lists_as_values_do_not_break_membership() -> None:
    assert compile_filter({"field": "tags", "operator": "in", "value": [["a"], "b"]})({"tags": ["a"]})
    assert not compile_filter({"field": "tags", "operator": "in", "value": {"a"}})({"tags": ["a"]})


@pytest.mark.parametrize("one", [1, [1], [0, [1]], {"a": 1}, [{"a": [1]}]])
def test_true_is_no_number_however_deep_it_lies(one: Any) -> None:
    true = json.loads(json.dumps(one).replace("1", "true"))
    real = json.loads(json.dumps(one).replace("1", "1.0"))
    for operator, value in (("==", true), ("in", [true, "other"])):
        keep = compile_filter({"field": "v", "operator": operator, "value": value})
        assert [keep({"v": found}) for found in (true, one, real)] == [True, False, False]
    for operator, value in (("!=", one), ("not in", [one])):
        keep = compile_filter({"field": "v", "operator": operator, "value": value})
        assert [keep({"v": found}) for found in (true, one, real)] == [True, False, False]


@pytest.mark.parametrize(
    "other", [[], [1], [1, 2, 3], [2, 1], {"a": 1}, {"a": 1, "b": 3}, {"a": 1, "c": 2}, "12", None]
)
def test_lists_and_dicts_are_equal_as_a_whole(other: Any) -> None:
    for value in ([1, 2], {"a": 1, "b": 2}):
        keep = compile_filter({"field": "v", "operator": "==", "value": value})
        assert [keep({"v": value}), keep({"v": other})] == [True, False]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({}, "'field'"),
        (None, "a filter is a dict"),
        ({"field": 3, "operator": "==", "value": 1}, "'field'"),
        ({"field": "a", "operator": "=", "value": 1}, "unknown operator '='"),
        ({"field": "a", "operator": ["=="], "value": 1}, "unknown operator"),
        ({"field": "a", "operator": "=="}, "needs a 'value'"),
        ({"field": "a", "operator": "==", "valeu": 1}, "unknown key 'valeu'"),
        ({"field": "a", "operator": "in", "value": "abc"}, "takes a list"),
        ({"field": "a", "operator": "<", "value": None}, "a number or a string"),
        ({"field": "a", "operator": "<", "value": True}, "a number or a string"),
        ({"field": "a", "operator": "exists", "value": "yes"}, "true or false"),
        ({"field": "a", "operator": "==", "value": object()}, "type object"),
        ({"operator": "XOR", "conditions": []}, "unknown operator 'XOR'"),
        ({"operator": "AND", "conditions": []}, "at least one"),
        ({"operator": "AND", "conditions": {}}, "at least one"),
        ({"operator": "AND", "conditions": [3]}, "a filter is a dict"),
        ({"operator": "AND", "conditions": [{"field": "a", "operator": "exists"}], "field": "b"}, "'field'"),
    ],
)
def test_malformed_filters_name_the_fault(where: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compile_filter(where)


def test_nesting_without_end_is_refused() -> None:
    where: dict = {"field": "a", "operator": "exists"}
    for _ in range(5000):
        where = {"operator": "NOT", "conditions": [where]}
    with pytest.raises(InputError, match="levels"):
        compile_filter(where)


words = st.one_of(st.sampled_from([*OPERATORS, "AND", "OR", "NOT", "a", "meta.a"]), st.text(max_size=3))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words),
    lambda parts: st.one_of(
        st.lists(parts, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["field", "operator", "value", "conditions"]), st.text(max_size=2)),
            st.one_of(words, parts),
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(anything, st.dictionaries(st.sampled_from(["a", "b"]), anything, max_size=2))
def test_any_json_is_a_filter_or_an_input_error(where: Any, metadata: dict) -> None:
    try:
        keep = compile_filter(where)
    except InputError:
        return
    assert keep(metadata) in (True, False)
