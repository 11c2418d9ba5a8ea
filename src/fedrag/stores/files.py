"""A store's folder on disk: what `MemoryStore.save` writes and `MemoryStore.open` maps into memory.

The folder changes in one step (`fedrag.durable`). Each version in it holds three files, whose names are fixed:

    store.json        format version, counts, dtype, width, the encoder's fingerprint, sizes and CRC-32 of the other two
    vectors.bin       the matrix, row by row, little-endian float32 or bfloat16
    documents.arrow   ids, texts, metadata (JSON) and media: an Arrow IPC file, which any Arrow reader opens

Nothing from a document ever becomes part of a path. Files are mapped, not read: opening takes milliseconds, and sizes
are all that it compares. The checksums, for which every byte must be read, are compared when asked for.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fedrag.errors import StoreError
from fedrag.stores.matrix import STORED, DType, Matrix
from fedrag.stores.table import SCHEMA, Table

FORMAT = 2
"""Raised whenever a version of fedrag writes what older ones cannot read. Format 1, without checksums, is read."""

_ABOUT, _VECTORS, _DOCUMENTS = "store.json", "vectors.bin", "documents.arrow"
_PIECE = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What `store.json` says. `width` is 0 while the store is empty; `files` holds sizes in bytes."""

    format: int
    documents: int
    dtype: DType
    width: int
    longest: float
    fingerprint: str
    files: Mapping[str, int]
    crc32: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Content:
    """What a store holds; an empty one has no matrix. `living`, booleans `[m]`, says which rows count; None: all."""

    table: Table
    matrix: Matrix | None
    dtype: DType
    fingerprint: str
    living: Tensor | None = None


def write(version: Path, content: Content) -> None:
    """Write the living rows of a store into an empty folder."""
    table, matrix, living = content.table, content.matrix, content.living
    rows = torch.arange(table.rows, device="cpu") if living is None else living.nonzero()[:, 0]
    with (version / _VECTORS).open("wb") as file:
        if matrix is not None:
            matrix.write_to(file, rows)
    with (version / _DOCUMENTS).open("wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for batch in table.batches(living):
            writer.write_batch(batch)
    about = About(
        format=FORMAT,
        documents=len(rows),
        dtype=content.dtype,
        width=matrix.width if matrix is not None else 0,
        longest=matrix.longest if matrix is not None else 0.0,
        fingerprint=content.fingerprint,
        files={name: (version / name).stat().st_size for name in (_VECTORS, _DOCUMENTS)},
        crc32={name: _crc32(version / name) for name in (_VECTORS, _DOCUMENTS)},
    )
    (version / _ABOUT).write_text(json.dumps(asdict(about), indent=2) + "\n", encoding="utf-8")


def read(version: Path, *, verify: bool = False) -> Content:
    """Map what `write` wrote. Raises `StoreError`, which names the file, for anything missing, cut or newer.

    With `verify`, also for any changed bit.
    """
    about = _about(version / _ABOUT)
    for name, size in about.files.items():
        path = version / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise StoreError(f"{path} {state}, expected {size} bytes: restore the store from a copy or build it again")
    if verify:
        _compare(version, about)
    if about.files[_VECTORS] != about.documents * about.width * STORED[about.dtype].itemsize:
        raise StoreError(
            f"{version / _VECTORS} has {about.files[_VECTORS]} bytes, expected {about.documents} x {about.width} "
            f"values of {about.dtype}: restore the store from a copy or build it again"
        )
    table = _table(version / _DOCUMENTS)
    if table.rows != about.documents:
        raise StoreError(
            f"{version / _DOCUMENTS} holds {table.rows} documents, expected {about.documents}: "
            "restore the store from a copy or build it again"
        )
    if not about.documents:
        return Content(table, None, about.dtype, about.fingerprint)
    shape = (about.documents, about.width)
    # mode "c": pages that are written to are copied into memory, the file is never changed
    values = np.asarray(np.memmap(version / _VECTORS, STORED[about.dtype], "c", shape=shape))
    matrix = Matrix(about.dtype, about.width, parts=[values], longest=about.longest)
    return Content(table, matrix, about.dtype, about.fingerprint)


def _compare(version: Path, about: About) -> None:
    if not about.crc32:
        raise StoreError(
            f"{version / _ABOUT} holds no checksums to verify, since an older fedrag wrote it: open the store without "
            "verify and save it again"
        )
    for name, expected in about.crc32.items():
        if (found := _crc32(version / name)) != expected:
            raise StoreError(
                f"{version / name} is damaged: its CRC-32 is {found}, expected {expected}; restore the store from a "
                "copy or build it again"
            )


def _crc32(path: Path) -> str:
    total = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total = zlib.crc32(piece, total)
    return f"{total:08x}"


def _about(path: Path) -> About:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: check that {path.parent.parent} is the folder of a store") from None
    except ValueError as error:
        size = path.stat().st_size
        raise StoreError(
            f"{path} ({size} bytes) is not the JSON that was written there ({error}): restore it"
        ) from None
    if isinstance(found, dict):
        content = cast(dict[str, Any], found)
        if isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise StoreError(
                f"{path} is of format {content['format']}; this fedrag reads formats up to {FORMAT}: upgrade fedrag"
            )
        if _complete(content):
            return About(**content)
    raise StoreError(f"{path} does not describe a store: restore it from a copy or build the store again")


def _complete(content: Mapping[str, Any]) -> bool:
    absent = {"crc32"} if content.get("format") == 1 else set[str]()
    per_file = [content.get(name) for name in {"files", "crc32"} - absent]
    return (
        set(content) == set(About.__dataclass_fields__) - absent
        and all(isinstance(of, dict) and set(cast(dict[str, Any], of)) == {_VECTORS, _DOCUMENTS} for of in per_file)
        and content["dtype"] in STORED
        and isinstance(content["fingerprint"], str)
        and isinstance(content["longest"], float)
        and all(isinstance(content[name], int) and content[name] >= 0 for name in ("documents", "width"))
    )


def _table(path: Path) -> Table:
    try:
        reader: Any = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(SCHEMA):
            raise StoreError(
                f"{path} has the columns {reader.schema.names}, expected {SCHEMA.names}: restore it from a copy"
            )
        return Table(reader.get_batch(i) for i in range(reader.num_record_batches))
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path} is damaged ({error}): restore the store from a copy or build it again") from None
