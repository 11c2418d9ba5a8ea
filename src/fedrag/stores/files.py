"""A store's folder on disk: what `MemoryStore.save` writes and `MemoryStore.open` maps into memory.

The folder changes in one step (`fedrag.durable`). Each version in it holds three files, whose names are fixed:

    store.json        format version, counts, dtype, width, the encoder's fingerprint, sizes and CRC-32 of the others
    vectors.bin       the matrix, row by row, little-endian float32 or bfloat16
    documents.arrow   ids, texts, metadata (JSON) and media: an Arrow IPC file, which any Arrow reader opens

A store that has only been added to since it was saved or opened is saved at the cost of what came: the new version
takes the old files by hard link and holds the new rows in `vectors.1.bin`, `documents.1.arrow` and so on. Short files
are merged into the next, so that there are few, and saving n documents again and again writes each about log n times.

Nothing from a document ever becomes part of a path. Files are mapped, not read: opening takes milliseconds, and sizes
are all that it compares. The checksums, for which every byte must be read, are compared when asked for.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from fedrag.durable import current, publish
from fedrag.errors import StoreError
from fedrag.stores.about import ABOUT, FORMAT, VECTORS, About, Saved, identity, names, read_about
from fedrag.stores.matrix import STORED, DType, Matrix
from fedrag.stores.table import SCHEMA, Batch, Table

_VERSION = re.compile(r"v\d{6,}")  # of this folder, and of a system's around it
_PIECE = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class Content:
    """What a store holds; an empty one has no matrix. `living`, booleans `[m]`, says which rows count; None: all."""

    table: Table
    matrix: Matrix | None
    dtype: DType
    fingerprint: str
    living: Tensor | None = None
    saved: Saved | None = None


def save(folder: Path, content: Content, home: Path | None) -> Content:
    """Publish a version with the living rows of a store; return what the store goes on with.

    At home, where it was first saved or opened, that is the files, mapped: its memory is free for what comes.
    """
    written: list[Saved] = []

    def put(version: Path) -> None:
        write(version, content)
        written.append(Saved.of(version))

    publish(folder, put)
    if content.living is not None:
        return replace(content, saved=None)
    if home is None or _place(home) == _place(folder):
        with suppress(StoreError, FileNotFoundError):  # another process saved meanwhile and cleared this version
            return read(written[0].version)
    return replace(content, saved=written[0])


def write(version: Path, content: Content) -> None:
    """Write the living rows of a store into an empty folder, or link what `content.saved` has of them."""
    table, matrix = content.table, content.matrix
    keep = torch.ones(table.rows, dtype=torch.bool, device="cpu") if content.living is None else content.living.clone()
    count, linked = int(keep.sum()), _linked(version, content)
    keep[: sum(linked.rows) if linked else 0] = False
    vectors, documents = new = names(len(linked.rows) if linked else 0)
    files, crc32 = (dict(linked.files), dict(linked.crc32)) if linked else ({}, {})
    if keep.any() or not linked:
        with (version / vectors).open("wb") as file:
            if matrix is not None:
                matrix.write_to(file, keep.nonzero()[:, 0])
        with (version / documents).open("wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for batch in table.batches(keep):
                writer.write_batch(batch)
        files |= {name: (version / name).stat().st_size for name in new}
        crc32 |= {name: _crc32(version / name) for name in new}
    about = About(
        format=FORMAT if len(files) > 2 else 2,
        documents=count,
        dtype=content.dtype,
        width=matrix.width if matrix is not None else 0,
        longest=matrix.longest if matrix is not None else 0.0,
        fingerprint=content.fingerprint,
        files=files,
        crc32=crc32,
    )
    (version / ABOUT).write_text(json.dumps(asdict(about), indent=2) + "\n", encoding="utf-8")


def _linked(version: Path, content: Content) -> About | None:
    """Link what can be kept of the files saved before into this version; return what is there, None if nothing."""
    saved = content.saved
    # two saved copies that share a file would be damaged together: only successive versions of one folder do
    if content.living is not None or saved is None or not saved.about.crc32 or _place(saved.version) != _place(version):
        return None
    kept, new = saved.about.rows, content.table.rows - saved.about.documents
    while kept and kept[-1] < 2 * new:
        new += kept.pop()
    files = [name for i in range(len(kept)) for name in names(i)]
    try:
        for name in files:
            os.link(saved.version / name, version / name)
            if identity(version / name) != saved.identity[name]:
                raise FileNotFoundError(name)
    except OSError:  # replaced by another process, or a file system without links
        for name in files:
            (version / name).unlink(missing_ok=True)
        return None
    sizes, sums = ({name: of[name] for name in files} for of in (saved.about.files, saved.about.crc32))
    return replace(saved.about, files=sizes, crc32=sums) if kept else None


def _place(version: Path) -> list[str]:
    return [part for part in version.absolute().parts if not _VERSION.fullmatch(part)]


def read_current(folder: Path, *, verify: bool = False) -> Content:
    """Map the version in use. Raises `StoreError` as `read` does, and where there is none."""
    while True:
        version = current(folder)
        try:
            return read(version, verify=verify)
        except (StoreError, FileNotFoundError):
            if current(folder) == version:  # else another process saved meanwhile and cleared this version
                raise


def read(version: Path, *, verify: bool = False) -> Content:
    """Map what `write` wrote. Raises `StoreError`, which names the file, for anything missing, cut or newer.

    With `verify`, also for any changed bit.
    """
    about = read_about(version / ABOUT)
    for name, size in about.files.items():
        path = version / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise StoreError(f"{path} {state}, expected {size} bytes: restore the store from a copy or build it again")
    if verify:
        _compare(version, about)
    stored = sum(about.files[names(i)[0]] for i in range(len(about.rows)))
    if stored != about.documents * about.width * STORED[about.dtype].itemsize or sum(about.rows) != about.documents:
        raise StoreError(
            f"{version / VECTORS} has {stored} bytes, with the files that go on, expected {about.documents} x "
            f"{about.width} values of {about.dtype}: restore the store from a copy or build it again"
        )
    batches: list[Batch] = []
    parts: list[npt.NDArray[Any]] = []
    for number, rows in enumerate(about.rows):
        vectors, documents = names(number)
        found = _batches(version / documents)
        if (count := sum(batch.num_rows for batch in found)) != rows:
            raise StoreError(
                f"{version / documents} holds {count} documents, expected {rows}: "
                "restore the store from a copy or build it again"
            )
        batches += found
        if rows:
            # mode "c": pages that are written to are copied into memory, the file is never changed
            mapped = np.memmap(version / vectors, STORED[about.dtype], "c", shape=(rows, about.width))
            parts.append(np.asarray(mapped))
    matrix = Matrix(about.dtype, about.width, parts=parts, longest=about.longest) if parts else None
    return Content(Table(batches), matrix, about.dtype, about.fingerprint, saved=Saved.of(version))


def _compare(version: Path, about: About) -> None:
    if not about.crc32:
        raise StoreError(
            f"{version / ABOUT} holds no checksums to verify, since an older fedrag wrote it: open the store without "
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


def _batches(path: Path) -> list[Batch]:
    try:
        reader: Any = pa.ipc.open_file(pa.memory_map(str(path)))
        if not reader.schema.equals(SCHEMA):
            raise StoreError(
                f"{path} has the columns {reader.schema.names}, expected {SCHEMA.names}: restore it from a copy"
            )
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path} is damaged ({error}): restore the store from a copy or build it again") from None
