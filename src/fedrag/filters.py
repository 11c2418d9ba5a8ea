"""Metadata filters, in the dict shape that Haystack users know, checked once and applied before any search.

A comparison is `{"field": "year", "operator": ">=", "value": 2020}`, with the operators
`== != > >= < <= in "not in" exists`. Comparisons combine as `{"operator": "AND" | "OR" | "NOT", "conditions": [...]}`.
A field may be written `meta.year`, and dots reach into nested metadata. A document without the field matches no
comparison, `!=` and `not in` included; `exists` asks for the field itself. `NOT` is true when not all its conditions are.

>>> keep = compile_filter({"field": "year", "operator": ">=", "value": 2020})
>>> keep({"year": 2024}), keep({"year": 1999}), keep({})
(True, False, False)
"""

from __future__ import annotations

import operator
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


def compile_filter(where: Where) -> Predicate:
    """Check a filter and return the test it stands for. Raises `InputError`, which names the faulty part."""
    if not isinstance(where, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"a filter is a dict such as {{'field': 'year', 'operator': '==', 'value': 2020}}, got {where!r}")
    if "conditions" in where:
        return _logic(where)
    return _comparison(where)


def _logic(where: Where) -> Predicate:
    name = str(where.get("operator", "")).upper()
    conditions = where["conditions"]
    if name not in _LOGIC:
        raise InputError(f"unknown operator {where.get('operator')!r} beside 'conditions'; choose one of {', '.join(_LOGIC)}")
    if not isinstance(conditions, Sequence) or isinstance(conditions, str) or not conditions:
        raise InputError(f"'conditions' of {name} takes a list of at least one filter, got {conditions!r}")
    parts = [compile_filter(part) for part in cast(Sequence[Where], conditions)]
    if name == "AND":
        return lambda metadata: all(part(metadata) for part in parts)
    if name == "OR":
        return lambda metadata: any(part(metadata) for part in parts)
    return lambda metadata: not all(part(metadata) for part in parts)


def _comparison(where: Where) -> Predicate:
    unknown = set(where) - {"field", "operator", "value"}
    if unknown or not isinstance(where.get("field"), str):
        raise InputError(f"a comparison has the keys 'field' (a string), 'operator' and 'value', got {dict(where)!r}")
    path = str(where["field"]).removeprefix("meta.").split(".")
    name = where.get("operator")
    value = where.get("value")
    if name not in _COMPARISONS:
        raise InputError(f"unknown operator {name!r} for the field {where['field']!r}; choose one of {', '.join(_COMPARISONS)}")
    if name in ("in", "not in") and (not isinstance(value, (list, tuple, set, frozenset))):
        raise InputError(f"the operator {name!r} takes a list as its value, got {value!r}")
    if name in _ORDER and not isinstance(value, (int, float, str)):
        raise InputError(f"the operator {name!r} takes a number or a string as its value, got {value!r}")

    def matches(metadata: Mapping[str, Any]) -> bool:
        found = _lookup(metadata, path)
        if found is _ABSENT:
            return name == "exists" and value is False
        match name:
            case "exists":
                return value is not False
            case "==":
                return found == value
            case "!=":
                return found != value
            case "in":
                return found in cast(Sequence[Any], value)
            case "not in":
                return found not in cast(Sequence[Any], value)
            case _:
                return _ordered(found, value) and _ORDER[name](found, value)

    return matches


def _lookup(metadata: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = metadata
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return _ABSENT
        found = cast(Mapping[str, Any], found)[key]
    return found


def _ordered(found: Any, value: Any) -> bool:
    """Numbers are ordered among numbers and strings among strings; other pairs do not match."""
    return isinstance(found, str) if isinstance(value, str) else isinstance(found, (int, float))
