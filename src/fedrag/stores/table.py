"""Documents as Arrow record batches: compact in memory, and readable where they lie in a mapped file.

A hundred thousand Python objects take several times the bytes of their texts; Arrow columns add a few bytes a row.
Metadata is kept as JSON, so that any store and any program can read it. Rows are numbered in the order in which
they came and are never changed: a replaced document becomes a new row, and its owner forgets the old one.

>>> table = Table()
>>> table.append(encode([Document("Paris is in France.", "a", {"year": 2024}), Document("Rome is in Italy.", "b")]))
>>> table.rows, table.document(0).metadata
(2, {'year': 2024})
>>> table.matching(lambda metadata: "year" in metadata).tolist()
[True, False]
"""

from __future__ import annotations

import json
import reprlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from fedrag.errors import InputError
from fedrag.filters import Predicate
from fedrag.types import Document, Hit, Media

SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("text", pa.large_string()),
        ("metadata", pa.large_string()),
        ("media", pa.list_(pa.struct([("data", pa.large_binary()), ("mime", pa.large_string())]))),
    ]
)
Batch = Any  # a pyarrow.RecordBatch: pyarrow ships no types
_MERGED = 4096  # rows up to which small batches are merged


@dataclass(frozen=True, slots=True)
class _Part:
    """One record batch. Making a column object anew for every document would take half the time of reading one."""

    start: int
    end: int
    batch: Batch
    columns: tuple[Any, Any, Any, Any]
    has_media: bool

    @classmethod
    def of(cls, start: int, batch: Batch) -> _Part:
        ids, texts, metadata, media = batch.columns
        return cls(start, start + batch.num_rows, batch, (ids, texts, metadata, media), len(media.flatten()) > 0)


_end = attrgetter("end")


class Table:
    """Rows of documents, appended and read by number."""

    def __init__(self, batches: Iterable[Batch] = ()) -> None:
        self._parts: list[_Part] = []
        for batch in batches:
            self._parts.append(_Part.of(self.rows, batch))

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._parts[-1].end if self._parts else 0

    def append(self, batch: Batch) -> None:
        """Add rows. Small batches are merged with the ones before, each row a few times at most."""
        self._parts.append(_Part.of(self.rows, batch))
        while len(self._parts) > 1:
            before, last = (part.batch for part in self._parts[-2:])
            if before.num_rows > 2 * last.num_rows or before.num_rows + last.num_rows > _MERGED:
                return
            self._parts[-2:] = [_Part.of(self._parts[-2].start, pa.concat_batches([before, last]))]

    def document(self, row: int) -> Document:
        """Return the document of this row."""
        part = self._parts[bisect_right(self._parts, row, key=_end)]
        ids, texts, metadata, media = part.columns
        at = row - part.start
        items = media[at].as_py() if part.has_media else ()
        return Document(
            texts[at].as_py(),
            ids[at].as_py(),
            json.loads(metadata[at].as_py()),
            tuple(Media(item["data"], item["mime"]) for item in items),
        )

    def id(self, row: int) -> str:
        """Return the id of this row."""
        part = self._parts[bisect_right(self._parts, row, key=_end)]
        return part.columns[0][row - part.start].as_py()

    def hits(self, candidates: list[tuple[int, float]], k: int) -> list[Hit]:
        """Return the k best of rows with scores, as hits, best first; ties go to the smaller id."""
        if len({score for _, score in candidates}) < len(candidates):
            candidates.sort(key=lambda found: self.id(found[0]))
        candidates.sort(key=lambda found: -found[1])
        return [Hit(self.document(row), score) for row, score in candidates[:k]]

    def ids(self) -> list[str]:
        """Return the ids of all rows."""
        return [id for part in self._parts for id in part.columns[0].to_pylist()]

    def matching(self, keep: Predicate) -> npt.NDArray[np.bool_]:
        """Return, for every row, whether its metadata passes the test; equal metadata is tested once."""
        known: dict[str, bool] = {}
        verdicts = [np.zeros(0, np.bool_)]
        for part in self._parts:
            coded: Any = part.columns[2].dictionary_encode()
            values: list[str] = coded.dictionary.to_pylist()
            for value in values:
                if value not in known:
                    known[value] = keep(json.loads(value))
            verdicts.append(np.array([known[value] for value in values], np.bool_)[coded.indices.to_numpy()])
        return np.concatenate(verdicts)

    def batches(self, keep: Tensor | None = None) -> Iterator[Batch]:
        """Yield the rows for which `keep`, booleans `[m]`, is true, as record batches; None keeps all."""
        for part in list(self._parts):
            flags = None if keep is None else keep[part.start : part.end]
            if flags is None or flags.all():
                yield part.batch
            elif flags.any():
                yield part.batch.filter(pa.array(flags.numpy()))


def encode(documents: Sequence[Document]) -> Batch:
    """Turn documents into rows. Raises `InputError`, which names the document and the key, for what cannot be kept."""
    texts = [_unicode(document, document.text, "text") for document in documents]
    ids = [_unicode(document, document.id, "id") for document in documents]
    metadata = [_json(document) for document in documents]
    media = [[{"data": item.data, "mime": item.mime} for item in document.media] for document in documents]
    columns = [ids, texts, metadata, media]
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def _unicode(document: Document, value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"the {name} of document {document.id!r} is of type {type(value).__name__}; give a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the {name} of document {document.id!r} holds {value[error.start]!r} at position {error.start}, which is "
            "half a character and not valid Unicode; read its source with errors='replace'"
        ) from None
    return value


def _json(document: Document) -> str:
    if not document.metadata:
        return "{}"
    encoded = _encoded(dict(document.metadata))
    if encoded is None:
        for key, value in document.metadata.items():
            if _encoded({key: value}) is None:
                raise InputError(
                    f"the metadata key {key!r} of document {document.id!r} holds {reprlib.repr(value)}, of type "
                    f"{type(value).__name__}, which JSON cannot keep; use strings as keys, and as values strings, "
                    "finite numbers, true, false, null, lists and dicts of these"
                )
        raise InputError(f"the metadata of document {document.id!r} is not plain JSON; use dicts, lists and scalars")
    return encoded


def _encoded(metadata: dict[str, Any]) -> str | None:
    try:
        text = json.dumps(metadata, allow_nan=False, separators=(",", ":"))
        return text if json.loads(text) == metadata else None  # numbers as keys or tuples would come back changed
    except (TypeError, ValueError, RecursionError):
        return None
