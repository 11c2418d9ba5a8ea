"""The record of an unfinished rebuild: new vectors that outlive the process before they come into use.

While a store in a folder gets new vectors, every `put` is appended here, durably, so that a process that dies goes on
where it stopped. A record holds the fingerprint, the ids, a digest of each text that was encoded, and the vectors.
Whoever replays it compares the digests, since a document may have been replaced in the meantime, and goes no further
than the first record that is cut short or, where two processes wrote here at a time, of another fingerprint.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> Journal.start(folder, "encoder-2").append(Record(["a"], [digest("Paris")], torch.ones(1, 2)))
>>> journal, records = Journal.resume(folder, "encoder-2")
>>> [(record.ids, record.vectors.tolist()) for record in records]
[(['a'], [[1.0, 1.0]])]
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedrag.durable import sync

_HEAD = struct.Struct("<QI")  # bytes of the record that follows, and its CRC-32
_FORMAT = 2
_NAME = "REBUILD"


@dataclass(frozen=True, slots=True)
class Record:
    """One `put`: ids, digests of their texts, `[n, d]` float32 vectors."""

    ids: Sequence[str]
    digests: Sequence[str]
    vectors: Tensor


def digest(text: str) -> str:
    """Short hash of the text that a vector was made from."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Journal:
    """The file that outlives the process: a head with the fingerprint, then one record per `put`."""

    def __init__(self, path: Path, fingerprint: str, end: int) -> None:
        self._path = path
        self._for = fingerprint
        self._end = end  # where the last whole record ends

    @classmethod
    def start(cls, folder: Path, fingerprint: str) -> Journal:
        """Begin an empty journal, in the place of any other."""
        path = folder / _NAME
        path.write_bytes(b"")
        journal = cls(path, fingerprint, 0)
        journal._append(_record(json.dumps({"format": _FORMAT, "fingerprint": fingerprint}).encode()))
        sync(folder)
        return journal

    @classmethod
    def resume(cls, folder: Path, fingerprint: str) -> tuple[Journal, Iterator[Record]] | None:
        """Return the journal of a rebuild for this fingerprint and what it holds; None when there is none."""
        records = _read(folder / _NAME)
        first = next(records, None)
        if first is None or _fingerprint(first[1]) != fingerprint:
            return None
        journal = cls(folder / _NAME, fingerprint, first[0])
        return journal, journal._replay(records)

    @staticmethod
    def finish(folder: Path, fingerprint: str) -> None:
        """Delete the journal of a rebuild whose vectors have been saved."""
        first = next(_read(folder / _NAME), None)
        if first is not None and _fingerprint(first[1]) == fingerprint:
            (folder / _NAME).unlink()

    def append(self, record: Record) -> None:
        """Add a record durably; a failure leaves the journal as it was."""
        about = json.dumps({"for": self._for, "ids": record.ids, "digests": record.digests}).encode()
        values = np.ascontiguousarray(record.vectors.numpy(), "<f4")
        self._append(_record(struct.pack("<Q", len(about)) + about + values.tobytes()))

    def _append(self, data: bytes) -> None:
        with self._path.open("r+b") as file:
            file.seek(self._end)  # over what an interrupted write left
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(data)

    def _replay(self, records: Iterator[tuple[int, bytes]]) -> Iterator[Record]:
        for end, data in records:
            (size,) = struct.unpack_from("<Q", data)
            about = json.loads(data[8 : 8 + size])
            if about["for"] != self._for:
                return
            values = np.frombuffer(data, "<f4", offset=8 + size).reshape(len(about["ids"]), -1)
            self._end = end
            yield Record(about["ids"], about["digests"], torch.from_numpy(values.copy()))


def _record(data: bytes) -> bytes:
    return _HEAD.pack(len(data), zlib.crc32(data)) + data


def _read(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (end, content) of every whole record."""
    if not path.is_file():
        return
    total = path.stat().st_size
    with path.open("rb") as file:
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            size, check = _HEAD.unpack(head)
            # zeros are what a file system may leave where a write did not arrive
            if not size or file.tell() + size > total or zlib.crc32(data := file.read(size)) != check:
                return
            yield file.tell(), data


def _fingerprint(data: bytes) -> str | None:
    head = json.loads(data)
    return head["fingerprint"] if head["format"] == _FORMAT else None
