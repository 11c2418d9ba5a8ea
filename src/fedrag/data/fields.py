"""The values of a row, checked: strings that are Unicode, identifiers, metadata that JSON can hold.

A null (`None`, a float NaN, pandas' NaT) is a missing value everywhere: as metadata it is left out.

>>> plain({"year": 2020, "day": datetime.date(2020, 5, 1)}, "rows[0]", "info")
{'year': 2020, 'day': '2020-05-01'}
"""

from __future__ import annotations

import datetime
import decimal
import difflib
import functools
import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np

from fedrag.errors import DataError

_DEPTH = 32
_ALSO_CALLED = {
    "text": ("content", "contents", "body", "passage", "page_content", "document", "context"),
    "id": ("_id", "doc_id", "docid", "document_id"),
    "question": ("query", "prompt", "instruction", "input", "anchor"),
    "answers": ("response", "output", "target", "completion", "ground_truth", "golds"),
    "positives": ("positive", "positive_ids", "gold_ids"),
    "negatives": ("negative", "negative_ids"),
}


def brief(value: object) -> str:
    """Type and the beginning of a value, for an error message."""
    shown = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else ""
    return f"{type(value).__name__} {shown[:40] + '...' if len(shown) > 43 else shown}".strip()


def missing(value: object) -> bool:
    """Whether a value is a null."""
    return value is None or (isinstance(value, (float, datetime.datetime)) and value != value)


def required(row: Mapping[str, Any], where: str, column: str, *, setting: str = "") -> Any:
    """The value of a column that must be there. The `DataError` guesses which column was meant."""
    if column in row:
        if missing(row[column]):
            raise DataError(f"{where}: the column {column!r} is null, wanted a value")
        return row[column]
    names = [str(name) for name in row]
    close = difflib.get_close_matches(column, names, n=1, cutoff=0.6) or [
        name for name in names if name.lower() in (column, *_ALSO_CALLED.get(column, ()))
    ]
    found = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "") if names else "none"
    guess = f"; did you mean {close[0]!r}?" if close else ";"
    step = f"Pass {setting}={close[0] if close else '...'!r}" if setting else "Rename the column"
    raise DataError(
        f"{where}: there is no column {column!r}, the columns are {found}{guess} {step if close else step.lower()}"
    )


@functools.lru_cache(maxsize=256)
def misspelt(names: tuple[str, ...], column: str) -> str | None:
    """The column that is almost, but not quite, called like an optional one."""
    close = [] if column in names else difflib.get_close_matches(column, names, n=1, cutoff=0.85)
    return close[0] if close else None


def string(value: object, where: str, column: str) -> str:
    """A string of valid Unicode, empty or not."""
    if not isinstance(value, str):
        raise DataError(f"{where}: the column {column!r} takes a string, got {brief(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the column {column!r} holds half a surrogate pair at character {error.start}, which is not "
            "Unicode text; write the file again as UTF-8"
        ) from None
    return str(value)  # numpy's strings too are plain ones from here on


def filled(value: object, where: str, column: str) -> str:
    """A string with more in it than white space."""
    text = string(value, where, column)
    if not text.strip():
        raise DataError(f"{where}: the column {column!r} is empty; fill it or remove the row")
    return text


def identifier(value: Any, where: str, column: str) -> str:
    """A document's id: a string, or a whole number, which is turned into one."""
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Integral)):
        raise DataError(f"{where}: the column {column!r} takes ids, strings or whole numbers, got {brief(value)}")
    return filled(value, where, column) if isinstance(value, str) else str(int(value))


def sequence(value: object, where: str, column: str) -> list[Any]:
    """A list, tuple or array."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise DataError(f"{where}: the column {column!r} takes a list, got {brief(value)}")
    return list(cast(list[Any], value))


def metadata(row: Mapping[str, Any], where: str, taken: Collection[str]) -> dict[str, Any]:
    """All columns but the `taken` ones, and the keys of a column `metadata`, as plain JSON values."""
    found: dict[str, Any] = {}
    inner = None if "metadata" in taken or missing(row.get("metadata")) else row["metadata"]
    if inner is not None and not isinstance(inner, Mapping):
        raise DataError(f"{where}: the column 'metadata' takes an object, got {brief(inner)}")
    columns = {name: value for name, value in row.items() if name not in (*taken, "metadata")}
    for name, value in [*columns.items(), *cast(Mapping[str, Any], inner or {}).items()]:
        if missing(value):
            continue
        if name in found:
            raise DataError(f"{where}: {name!r} is both a column and a key of 'metadata'; rename one")
        found[string(name, where, "metadata")] = plain(value, where, str(name))
    return found


def plain(value: Any, where: str, column: str, depth: int = 0) -> Any:
    """A value as JSON writes it: dates in ISO 8601, decimals and NumPy's numbers as numbers."""
    if depth > _DEPTH:
        raise DataError(f"{where}: the column {column!r} is nested more than {_DEPTH} deep; flatten it")
    match value:
        case None | bool() | int():
            return value
        case str():
            return string(value, where, column)
        case float() if math.isfinite(value):
            return value
        case decimal.Decimal() if value.is_finite():
            return float(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case np.datetime64():
            return str(value)
        case np.ndarray() | np.generic():
            return plain(value.tolist(), where, column, depth + 1)
        case list() | tuple():
            return [plain(item, where, column, depth + 1) for item in cast(list[Any], value)]
        case Mapping():
            items = cast(Mapping[Any, Any], value).items()
            return {string(key, where, column): plain(item, where, column, depth + 1) for key, item in items}
        case _:
            raise DataError(
                f"{where}: the column {column!r} holds {brief(cast(object, value))}, which JSON cannot; "
                "convert or remove the column"
            )
