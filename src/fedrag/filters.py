"""Metadata filters, in the dict shape that Haystack users know, checked once and applied before any search.

A comparison is `{"field": "year", "operator": ">=", "value": 2020}`, with the operators
`== != > >= < <= in "not in" exists`. Comparisons combine as `{"operator": "AND" | "OR" | "NOT", "conditions": [...]}`.
A field may be written `meta.year`, and dots reach into nested metadata unless a key has the dots itself. A document
without the field matches no comparison, `!=` and `not in` included; `exists` asks for the field itself (with the value
false: for its absence). `NOT` is true when not all its conditions are.

Values compare as JSON has them: true is no number, numbers are ordered among numbers and strings among strings, and
any other pair is in no order.

>>> keep = compile_filter({"field": "year", "operator": ">=", "value": 2020})
>>> keep({"year": 2024}), keep({"year": 1999}), keep({})
(True, False, False)
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from fedrag.errors import InputError
from fedrag.types import Where

Predicate = Callable[[Mapping[str, Any]], bool]

_ABSENT = object()
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_COMPARISONS = ("==", "!=", *_ORDER, "in", "not in", "exists")
_LOGIC = ("AND", "OR", "NOT")
_DEEPEST = 50  # levels of AND, OR and NOT; far below Python's limit of recursion


def compile_filter(where: Where) -> Predicate:
    """Check a filter and return the test it stands for. Raises `InputError`, which names the faulty part."""
    return _compiled(where, 1)


def _compiled(where: Any, depth: int) -> Predicate:
    if not isinstance(where, Mapping):
        example = "{'field': 'year', 'operator': '==', 'value': 2020}"
        raise InputError(f"a filter is a dict such as {example}, got {reprlib.repr(where)}")
    if depth > _DEEPEST:
        raise InputError(f"the filter is nested more than {_DEEPEST} levels deep; flatten it")
    parts = cast(Mapping[str, Any], where)
    return _logic(parts, depth) if "conditions" in parts else _comparison(parts)


def _logic(where: Where, depth: int) -> Predicate:
    name = where.get("operator")
    name = name.upper() if isinstance(name, str) else name
    conditions = where["conditions"]
    if name not in _LOGIC:
        raise InputError(
            f"unknown operator {reprlib.repr(name)} beside 'conditions'; choose one of {', '.join(_LOGIC)}"
        )
    if unknown := set(where) - {"operator", "conditions"}:
        raise InputError(f"{name} takes the keys 'operator' and 'conditions' only, got also {_names(unknown)}")
    if not isinstance(conditions, (list, tuple)) or not conditions:
        raise InputError(f"'conditions' of {name} takes a list of at least one filter, got {reprlib.repr(conditions)}")
    parts = [_compiled(part, depth + 1) for part in cast(Sequence[Any], conditions)]
    if name == "AND":
        return lambda metadata: all(part(metadata) for part in parts)
    if name == "OR":
        return lambda metadata: any(part(metadata) for part in parts)
    return lambda metadata: not all(part(metadata) for part in parts)


def _comparison(where: Where) -> Predicate:
    field, name = where.get("field"), where.get("operator")
    if not isinstance(field, str):
        raise InputError(f"a comparison names its 'field' with a string, got {reprlib.repr(field)}")
    if unknown := set(where) - {"field", "operator", "value"}:
        raise InputError(
            f"the comparison of the field {field!r} has the unknown key {_names(unknown)}; "
            "it takes 'field', 'operator' and 'value'"
        )
    if name not in _COMPARISONS:
        raise InputError(
            f"unknown operator {reprlib.repr(name)} for the field {field!r}; choose one of {', '.join(_COMPARISONS)}"
        )
    if "value" not in where and name != "exists":
        raise InputError(f"the operator {name!r} for the field {field!r} needs a 'value'; null is written None")
    value = _checked(name, where.get("value", True))

    def matches(metadata: Mapping[str, Any]) -> bool:
        found = _lookup(metadata, field)
        if name == "exists":
            return (found is not _ABSENT) == value
        if found is _ABSENT:
            return False
        match name:
            case "==":
                return _same(found, value)
            case "!=":
                return not _same(found, value)
            case "in":
                return _among(found, value)
            case "not in":
                return not _among(found, value)
            case _:
                return _ordered(found, value) and _ORDER[name](found, value)

    return matches


def _checked(name: str, value: Any) -> Any:
    """Return the value of a comparison as `matches` takes it."""
    if name == "exists":
        if not isinstance(value, bool):
            raise InputError(f"the operator 'exists' takes true or false as its value, got {reprlib.repr(value)}")
    elif name in ("in", "not in"):
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise InputError(f"the operator {name!r} takes a list as its value, got {reprlib.repr(value)}")
        members = cast(Sequence[Any], value)
        # strings, of which long lists are made, are looked up; the others, which may be lists, are compared
        strings = frozenset(one for one in members if isinstance(one, str))
        return strings, [one for one in members if not isinstance(one, str)]
    elif name in _ORDER:
        if not isinstance(value, (int, float, str)) or isinstance(value, bool):
            raise InputError(
                f"the operator {name!r} takes a number or a string as its value, got {reprlib.repr(value)}"
            )
    elif value is not None and not isinstance(value, (str, int, float, list, dict)):
        raise InputError(f"the operator {name!r} takes a JSON value, got one of type {type(value).__name__}")
    return value


def _lookup(metadata: Mapping[str, Any], field: str) -> Any:
    path = field.removeprefix("meta.")
    if path in metadata:
        return metadata[path]
    found: Any = metadata
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return _ABSENT
        found = cast(Mapping[str, Any], found)[key]
    return found


def _same(found: Any, value: Any) -> bool:
    """Equality as in JSON: Python's, except that True is not 1, however deep it lies."""
    if isinstance(found, list) and isinstance(value, list):
        left, right = cast(list[Any], found), cast(list[Any], value)
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(found, dict) and isinstance(value, dict):
        mine, yours = cast(dict[str, Any], found), cast(dict[str, Any], value)
        return mine.keys() == yours.keys() and all(_same(mine[key], yours[key]) for key in mine)
    return isinstance(found, bool) == isinstance(value, bool) and found == value


def _among(found: Any, members: tuple[frozenset[str], list[Any]]) -> bool:
    strings, others = members
    return found in strings if isinstance(found, str) else any(_same(found, one) for one in others)


def _ordered(found: Any, value: Any) -> bool:
    if isinstance(found, bool):
        return False
    return isinstance(found, str) if isinstance(value, str) else isinstance(found, (int, float))


def _names(keys: set[Any]) -> str:
    return ", ".join(sorted(map(repr, keys)))
