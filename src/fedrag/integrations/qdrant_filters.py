"""What of a filter Qdrant can decide: its own `Filter` that lets through all that matches, and hardly more.

Qdrant's conditions are not quite those of `fedrag.filters`: one on a list holds when it holds for any element, an
integer and the float of the same value are different matches, null counts as absent, strings have no order. So the
filter made here is wider where the two differ, or says nothing at all, and whoever searches with it looks at what it
let through once more with `compile_filter`.

>>> both = [{"field": "year", "operator": ">", "value": 1}, {"field": "year", "operator": "!=", "value": 7}]
>>> found = narrow({"operator": "AND", "conditions": both}, lambda field: [field])
>>> found.model_dump(exclude_none=True)  # "!=" says nothing, since it holds for null, too
{'must': [{'should': [{'key': 'year', 'range': {'gte': 0.9999999999999999}}]}]}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fedrag.optional import require
from fedrag.types import Where

require("qdrant_client", extra="qdrant")

from qdrant_client import models  # noqa: E402

Paths = Callable[[str], Sequence[str]]
"""The JSON paths of a payload at which the value of a metadata field may lie."""
_LARGEST = 1e300


def narrow(where: Where, paths: Paths) -> models.Filter | None:
    """Return a filter that holds wherever `where`, which has been checked, does; `None` for one that always holds."""
    if "conditions" in where:
        parts = [narrow(part, paths) for part in where["conditions"]]
        known: list[models.Condition] = [part for part in parts if part is not None]
        match where["operator"].upper():
            case "AND" if known:
                return models.Filter(must=known)
            case "OR" if len(known) == len(parts):
                return models.Filter(should=known)
            case _:  # what is wider than a condition is narrower when it is negated
                return None
    tests = [test for path in paths(where["field"]) for test in _tests(path, where["operator"], where.get("value"))]
    return models.Filter(should=tests) if tests else None


def _tests(path: str, operator: str, value: Any) -> list[models.Condition]:
    """Return conditions of which one holds where the comparison does; none where it cannot be said."""
    match operator:
        case "==" if _sayable(value):
            return _equal(path, [value])
        case "in" if all(map(_sayable, value)):
            return _equal(path, list(value))
        case "exists" if value is False:
            return [models.IsEmptyCondition(is_empty=models.PayloadField(key=path))]
        case ">" | ">=" if not isinstance(value, str) and _sayable(value):
            return [models.FieldCondition(key=path, range=models.Range(gte=_below(value)))]
        case "<" | "<=" if not isinstance(value, str) and _sayable(value):
            return [models.FieldCondition(key=path, range=models.Range(lte=-_below(-value)))]
        case _:
            return []


def _equal(path: str, values: list[Any]) -> list[models.Condition]:
    tests: list[models.Condition] = []
    for value in values:
        if isinstance(value, bool):
            tests.append(models.FieldCondition(key=path, match=models.MatchValue(value=value)))
        elif isinstance(value, (int, float)):
            about = models.Range(gte=_below(value), lte=-_below(-value))
            tests.append(models.FieldCondition(key=path, range=about))
        elif value is None:
            tests.append(models.IsNullCondition(is_null=models.PayloadField(key=path)))
    if strings := [value for value in values if isinstance(value, str)]:
        tests.append(models.FieldCondition(key=path, match=models.MatchAny(any=strings)))
    return tests


def _sayable(value: Any) -> bool:
    """Whether Qdrant can compare with this value at all; numbers go there as floats."""
    if isinstance(value, (list, dict)):
        return False
    return not isinstance(value, (int, float)) or abs(value) <= _LARGEST


def _below(value: float) -> float:
    """A float that is smaller, by the least there is: integers above 2**53 are rounded."""
    return math.nextafter(float(value), -math.inf)
