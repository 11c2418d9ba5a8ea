"""Rows out of JSON lines, JSON, CSV and parquet files, each with the words that say where it stands.

Text is UTF-8, with or without a byte order mark. CSV cells are text; a column whose every filled cell is the one
spelling of a whole number, or of a float, becomes numbers (`2020` and `0.5`, but not `007` or `1.10`).

>>> [row.values for row in rows_of([{"text": "Paris"}])]
[{'text': 'Paris'}]
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import pyarrow as pa
import pyarrow.parquet as pq

from fedrag.data.fields import brief
from fedrag.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_ROWS = 4096  # of a parquet file, held at a time
_NO_NUMBERS = ("nan", "inf", "-inf")  # yet float() takes them


@dataclass(frozen=True, slots=True)
class Row:
    """The columns of one row, and its place: `train.jsonl, line 3`, or `train.parquet, rows[2]`."""

    source: str
    number: int
    values: Mapping[str, Any]
    by_line: bool = False

    @property
    def where(self) -> str:
        """The place in words."""
        return self.at(self.number)

    def at(self, number: int) -> str:
        """The place of another row of the same table."""
        place = f"line {number}" if self.by_line else f"rows[{number}]"
        return f"{self.source}, {place}" if self.source else place


def rows_of(rows: Iterable[Any], source: str = "") -> Iterator[Row]:
    """Number the rows of a HuggingFace dataset, or of any iterable of dicts, from 0."""
    if isinstance(rows, (str, bytes, Mapping)) or not hasattr(rows, "__iter__"):
        hint = "; pass one of its splits, such as rows['train']" if isinstance(rows, Mapping) else ""
        raise DataError(f"rows are an iterable of dicts or one split of a dataset, got {brief(rows)}{hint}")
    for number, row in enumerate(rows):
        found = Row(source, number, cast(Mapping[str, Any], row))
        if not isinstance(row, Mapping):
            raise DataError(f"{found.where}: a row is a dict of columns, got {brief(row)}")
        yield found


def read_rows(path: Path, *, texts: Collection[str], json_cells: Collection[str]) -> Iterator[Row]:
    """Read a table. Of a CSV file, the columns `texts` stay as they are written, and `json_cells` hold JSON."""
    match path.suffix.lower():
        case ".jsonl":
            return _jsonl(path)
        case ".json":
            return _json(path)
        case ".csv":
            return _csv(path, texts, json_cells)
        case ".parquet":
            return _parquet(path)
        case suffix:
            raise DataError(f"{path}: cannot read {suffix or 'a file without a suffix'}; wanted {', '.join(SUFFIXES)}")


def read_text(path: Path) -> str:
    """Decode a file, newlines as they are. Raises `DataError`, which names the line, where it is not UTF-8."""
    with opened(path):
        data = path.read_bytes()
    return _decode(data, lambda start: f"{path}, line {data.count(10, 0, start) + 1}")


@contextmanager
def opened(path: Path) -> Generator[None]:
    """Say `DataError` for what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _decode(data: bytes, where: Callable[[int], str]) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        raise DataError(
            f"{where(error.start)}: byte 0x{data[error.start]:02x} is not UTF-8, the file may be in {kind}; "
            "convert it, for example with `iconv -t utf-8`"
        ) from None


def _loads(text: str, where: str, wanted: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        found, place = f"{error.msg} in {brief(text)}", f"column {error.colno}"
        raise DataError(f"{where}, {place}: not valid JSON ({found}); wanted {wanted}") from None
    except (ValueError, RecursionError) as error:  # NaN, thousands of digits, thousands of brackets
        raise DataError(f"{where}: not valid JSON ({error}); wanted {wanted}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _jsonl(path: Path) -> Iterator[Row]:
    with opened(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            text = (line if number > 1 else line.removeprefix(b"\xef\xbb\xbf")).strip()
            if not text:
                continue
            decoded = _decode(text, lambda _, where=where: where)
            values = _loads(decoded, where, 'one object a line, such as {"text": "..."}')
            if not isinstance(values, dict):
                raise DataError(f"{where}: wanted one JSON object a line, got {brief(values)}")
            yield Row(str(path), number, cast(dict[str, Any], values), by_line=True)


def _json(path: Path) -> Iterator[Row]:
    rows = _loads(read_text(path), str(path), "a list of objects")
    if not isinstance(rows, list):
        raise DataError(f"{path}: wanted a list of objects, got {brief(rows)}")
    yield from rows_of(cast(list[Any], rows), str(path))


def _csv(path: Path, texts: Collection[str], json_cells: Collection[str]) -> Iterator[Row]:
    """Read twice: what a column is only its last cell tells, and a table may be larger than memory."""
    names: list[str] = []
    numbers: dict[int, list[type[int] | type[float]]] = {}
    for line, record in _records(path):
        if not names:
            names = record
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path}, line {line}: the column {repeated[0]!r} stands there twice; rename one")
            plain_text = {*texts, *json_cells}
            numbers = {i: [int, float] for i, name in enumerate(names) if name not in plain_text}
            continue
        for i in [*numbers]:
            if cell := record[i]:
                numbers[i] = [kind for kind in numbers[i] if _spells(kind, cell)]
                if not numbers[i]:
                    del numbers[i]
    rows = _records(path)
    next(rows, None)
    for line, record in rows:
        values: dict[str, Any] = {}
        for i, (name, cell) in enumerate(zip(names, record, strict=True)):
            if name in json_cells:
                where = f"{path}, line {line}, {name!r}"
                values[name] = _loads(cell, where, 'JSON, such as ["Paris"]') if cell else None
            elif i in numbers:
                values[name] = numbers[i][0](cell) if cell else None
            else:
                values[name] = cell if name in texts else cell or None
        yield Row(str(path), line, values, by_line=True)


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each record, all of one width."""
    width, first, start = 0, 0, 1
    with opened(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            limit = csv.field_size_limit(2**31 - 1)  # the module refuses texts above 128 KiB otherwise
            try:
                record = next(reader)
            except StopIteration:
                return
            except UnicodeDecodeError:
                read_text(path)  # says in which line
                raise
            except csv.Error as error:
                raise DataError(
                    f'{path}, line {reader.line_num}: not valid CSV ({error}); quote cells with " and double it'
                ) from None
            finally:
                csv.field_size_limit(limit)
            if record:
                width, first = width or len(record), first or start
                if len(record) != width:
                    raise DataError(f"{path}, line {start}: {len(record)} cells, wanted {width} as in line {first}")
                yield start, record
            start = reader.line_num + 1


def _spells(kind: type[int] | type[float], cell: str) -> bool:
    """Whether a cell is the one spelling of a number, so that nothing is lost when it becomes one."""
    try:
        return str(kind(cell)) == cell and cell not in _NO_NUMBERS
    except ValueError:
        return False


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with opened(path), pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path}: the column {repeated[0]!r} stands there twice; rename one")
            for batch in file.iter_batches(_ROWS):
                for values in batch.to_pylist():
                    yield Row(str(path), number, values)
                    number += 1
    except DataError:
        raise
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as parquet after {number} rows: {error}") from None
