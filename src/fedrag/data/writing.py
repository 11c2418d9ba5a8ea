"""Examples into a file that `read_examples` reads back.

>>> import tempfile
>>> from fedrag.data.examples import read_examples
>>> path = Path(tempfile.mkdtemp()) / "questions.jsonl"
>>> examples = [Example("Which river?", ["the Seine"], positives=["d1"], metadata={"from": "d1"})]
>>> write_examples(path, examples)
>>> read_examples(path) == examples
True
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrag.durable import replace_text
from fedrag.errors import DataError
from fedrag.types import Example


def write_examples(path: str | Path, examples: Sequence[Example]) -> None:
    """Write a `.jsonl` file, one example a line, whole or not at all.

    Raises `DataError` for a path that is no `.jsonl`, for an example without answers and positives, which no reader
    takes, and for metadata that JSON cannot hold.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise DataError(f"{path}: examples are written as JSON lines; give the file a name that ends with .jsonl")
    for place, example in enumerate(examples):
        if example.answers is None and not example.positives:
            raise DataError(f"{path}: example {place} has neither answers nor positives; leave it out or give it some")
    try:
        lines = [json.dumps(row_of(example), ensure_ascii=False, allow_nan=False) for example in examples]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: JSON cannot hold the metadata of an example ({error}); keep plain values") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, "".join(line + "\n" for line in lines))


def row_of(example: Example) -> dict[str, Any]:
    """An example as a row in the schema of `read_examples`; what it does not have is left out."""
    row: dict[str, Any] = {"question": example.question}
    if example.answers is not None:
        row["answers"] = list(example.answers)
    if example.positives:
        row["positives"] = list(example.positives)
    if example.negatives:
        row["negatives"] = list(example.negatives)
    if example.metadata:
        row["metadata"] = dict(example.metadata)
    return row
