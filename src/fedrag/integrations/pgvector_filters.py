"""What of a filter PostgreSQL can decide: a condition on `jsonb` that lets through all that matches, and hardly more.

JSON in PostgreSQL compares nearly as `fedrag.filters` does: true is no number, 1 is 1.0. Three things differ. Numbers
are decimals of any length there, so they are compared as the floats that Python reads, but from 2**53 on, where Python
has integers too, not at all; some strings cannot be in JSON there; and strings are in the order of the database's
language, unless they are told to be in that of their code points. So there are comparisons of which nothing is said
here, and whoever searches looks at what was let through with `compile_filter`.

>>> narrow({"field": "year", "operator": ">", "value": 2**60}) is None
True
>>> narrow({"field": "a.b", "operator": "==", "value": True}).values
[[], ['true'], 'a.b', 'a.b', 'a', 'b']
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from fedrag.integrations.pgvector_text import holdable
from fedrag.types import Where

METADATA = "found.metadata"  # how the query must name what the condition is about
_LARGEST = 2**53  # below, a float is equal to an integer only if it was one
_TINY = "2.470328229206233e-324"  # up to here, Python reads nought, and PostgreSQL refuses to
_FLOAT = f"CASE WHEN v BETWEEN '-{_TINY}'::jsonb AND '{_TINY}'::jsonb THEN 0 ELSE (v #>> '{{}}')::float8 END"
_ORDER = (">", ">=", "<", "<=")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition with a placeholder for each value. `exact`: it does not only hold where the filter does, but iff."""

    text: str
    values: list[Any]
    exact: bool = True


def narrow(where: Where) -> Condition | None:
    """Return a condition, never null, that holds wherever `where`, which has been checked, does; `None`: for all."""
    if "conditions" not in where:
        return _comparison(str(where["field"]).removeprefix("meta."), where["operator"], where.get("value", True))
    parts = [narrow(part) for part in where["conditions"]]
    known = [part for part in parts if part is not None]
    exact = len(known) == len(parts) and all(part.exact for part in known)
    match where["operator"].upper():
        case "AND" if known:
            return _joined(known, " AND ", exact)
        case "OR" if len(known) == len(parts):
            return _joined(known, " OR ", exact)
        case "NOT" if exact:  # what is wider than a condition is narrower when it is negated
            all_of_them = _joined(known, " AND ", exact)
            return Condition(f"NOT {all_of_them.text}", all_of_them.values)
        case _:
            return None


def _joined(parts: Iterable[Condition], word: str, exact: bool) -> Condition:
    parts = list(parts)
    text = "(" + word.join(part.text for part in parts) + ")"
    return Condition(text, [value for part in parts for value in part.values], exact)


def _comparison(field: str, operator: str, value: Any) -> Condition | None:
    keys = field.split(".")
    if not _sayable(field):
        return None
    # a key with the dots itself comes first; "->" with a text gives null for all but an object that has the key
    nested = METADATA + " -> %s::text" * len(keys)
    found = f"CASE WHEN jsonb_exists({METADATA}, %s::text) THEN {METADATA} -> %s::text ELSE {nested} END"
    at = [field, field, *keys]
    match operator:
        case "exists":
            return Condition(f"(({found}) IS {'NOT ' if value else ''}NULL)", at)
        case "==" | "!=":
            return _comparison(field, "in" if operator == "==" else "not in", [value])
        case "in" | "not in" if all(map(_sayable, value)):
            test = "= ANY" if operator == "in" else "<> ALL"
            numbers = [float(one) for one in value if _number(one)]
            return Condition(
                _never_null(found, _as_float(f"{test}(%s::float8[])", f"{test}(%s::text[]::jsonb[])")),
                [numbers, [_json(one) for one in value], *at],
            )
        case _ if operator in _ORDER and _sayable(value):
            if isinstance(value, str):
                test = f"jsonb_typeof(v) = 'string' AND (v #>> '{{}}') COLLATE \"C\" {operator} %s::text"
                return Condition(_never_null(found, test), [value, *at])
            test = f"jsonb_typeof(v) = 'number' AND {_as_float(f'{operator} %s::float8', f'{operator} %s::jsonb')}"
            return Condition(_never_null(found, test), [float(value), _json(value), *at])
        case _:
            return None


def _never_null(found: str, test: str) -> str:
    return f"(SELECT v IS NOT NULL AND {test} FROM (SELECT {found} AS v) AS looked)"


def _as_float(test: str, otherwise: str) -> str:
    return f"CASE WHEN v BETWEEN '-1e300'::jsonb AND '1e300'::jsonb THEN {_FLOAT} {test} ELSE v {otherwise} END"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _sayable(value: Any) -> bool:
    """Whether PostgreSQL compares with this value as Python does."""
    match value:
        case None | bool():
            return True
        case int() | float():
            return abs(value) < _LARGEST  # which NaN is not
        case str():
            return holdable(value)
        case list():
            return all(_sayable(one) and not _number(one) for one in cast(list[Any], value))
        case dict():
            pairs = cast(dict[Any, Any], value)
            return all(isinstance(key, str) and _sayable(key) for key in pairs) and _sayable(list(pairs.values()))
        case _:
            return False
