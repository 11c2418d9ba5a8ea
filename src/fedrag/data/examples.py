"""Questions with their gold answers, from files, HuggingFace datasets or plain rows, in one schema.

| column      | holds                                                                                         |
| ----------- | --------------------------------------------------------------------------------------------- |
| `question`  | a string                                                                                      |
| `answers`   | a list of strings, SQuAD's `{"text": [...]}`, or `[]` for a question without an answer        |
| `answer`    | in place of `answers`: one string, empty for a question without an answer                     |
| `positives` | ids of documents that hold the answer (optional)                                              |
| `negatives` | ids of documents that do not (optional)                                                       |
| others      | become metadata, as do the keys of an object `metadata`; nulls are left out                   |

In a CSV file the cells of `answers`, `positives`, `negatives` and `metadata` are JSON, such as `["Paris"]`.

>>> examples_from([{"question": "Which river?", "answers": {"text": ["Seine"], "answer_start": [7]}}])[0].answers
('Seine',)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from fedrag.data.fields import brief, filled, identifier, metadata, missing, misspelt, required, sequence, string
from fedrag.data.rows import Row, read_rows, rows_of
from fedrag.errors import DataError
from fedrag.progress import track
from fedrag.types import Example

_LISTS = ("answers", "positives", "negatives")
_TAKEN = ("question", "answer", *_LISTS)


def read_examples(path: str | Path, *, progress: bool = True) -> list[Example]:
    """Read the examples of a `.jsonl`, `.json`, `.csv` or `.parquet` file, in order.

    Raises:
        DataError: names the file and line: no such file, no example, a missing column, a value of the wrong type,
            text that is not UTF-8, malformed JSON, CSV or parquet.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, wanted one file of examples, as .jsonl")
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path, the working directory is {Path.cwd()}")
    rows = read_rows(path, texts=("question", "answer"), json_cells=(*_LISTS, "metadata"))
    return _examples(rows, str(path), progress)


def examples_from(rows: Iterable[Mapping[str, Any]], *, progress: bool = True) -> list[Example]:
    """Take examples from a HuggingFace dataset, or from any iterable of dicts; errors as in `read_examples`."""
    return _examples(rows_of(rows), "rows", progress)


def _examples(rows: Iterable[Row], source: str, progress: bool) -> list[Example]:
    found = [_example(row) for row in track(rows, desc="read", unit="row", disable=not progress, delay=1.0)]
    if not found:
        raise DataError(f"{source}: there is no row, wanted at least one example")
    return found


def _example(row: Row) -> Example:
    values, where = row.values, row.where
    return Example(
        filled(required(values, where, "question"), where, "question"),
        _answers(values, where),
        _ids(values, where, "positives"),
        _ids(values, where, "negatives"),
        metadata(values, where, _TAKEN),
    )


def _answers(values: Mapping[str, Any], where: str) -> list[str] | None:
    one, many = values.get("answer"), values.get("answers")
    if not missing(one) and not missing(many):
        raise DataError(f"{where}: both 'answer' and 'answers' are there; keep one of them")
    if not missing(one):
        if not isinstance(one, str):
            raise DataError(
                f"{where}: the column 'answer' takes one string, got {brief(one)}; for a list, call it 'answers'"
            )
        return [string(one, where, "answer")] if one.strip() else []
    if missing(many):
        if "answer" in values or "answers" in values:
            raise DataError(f"{where}: the answer is null; a question without an answer has the answers []")
        if not missing(values.get("positives")):
            return None  # labelled for retrieval alone
        required(values, where, "answers")
    if isinstance(many, Mapping):
        many = required(cast(Mapping[str, Any], many), f"{where}, 'answers'", "text")
    if isinstance(many, str):
        raise DataError(
            f"{where}: the column 'answers' takes a list, got {brief(many)}; for one string, call it 'answer'"
        )
    return [filled(answer, where, "answers") for answer in sequence(many, where, "answers")]


def _ids(values: Mapping[str, Any], where: str, column: str) -> list[str]:
    found = values.get(column)
    if close := misspelt(tuple(map(str, values)), column):
        raise DataError(
            f"{where}: did you mean {column!r} by the column {close!r}? Rename it, or move it into 'metadata'"
        )
    return [] if missing(found) else [identifier(id, where, column) for id in sequence(found, where, column)]
