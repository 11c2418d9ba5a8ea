"""What `store.json` says about a version of a store, and whether files are those that it spoke of.

>>> names(0), names(2)
(('vectors.bin', 'documents.arrow'), ('vectors.2.bin', 'documents.2.arrow'))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fedrag.errors import StoreError
from fedrag.stores.matrix import STORED, DType

FORMAT = 3
"""Raised whenever a version of fedrag writes what older ones cannot read: 3 is written where there is more than one
file of vectors, else 2. Format 1, without checksums, is read."""

ABOUT, VECTORS, DOCUMENTS = "store.json", "vectors.bin", "documents.arrow"


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

    @property
    def rows(self) -> list[int]:
        """How many rows each file of vectors holds."""
        size = self.width * STORED[self.dtype].itemsize
        return [self.files[names(i)[0]] // size if size else 0 for i in range(len(self.files) // 2)]


@dataclass(frozen=True, slots=True)
class Saved:
    """A version that holds the first rows of a store as they are; `identity` tells whether its files are the same."""

    version: Path
    about: About
    identity: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, version: Path) -> Saved:
        """What lies in a version now."""
        about = read_about(version / ABOUT)
        return cls(version.absolute(), about, {name: identity(version / name) for name in about.files})


def names(number: int) -> tuple[str, str]:
    """The files of vectors and of documents that hold the rows after those of `number` others."""
    return (f"vectors.{number}.bin", f"documents.{number}.arrow") if number else (VECTORS, DOCUMENTS)


def identity(path: Path) -> tuple[int, ...]:
    """Tell a file from any other, and from itself once it is written to."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def read_about(path: Path) -> About:
    """Read `store.json`. Raises `StoreError` for what is none, or of a newer format."""
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
    listed = content.get("files")
    count = len(cast(dict[str, Any], listed)) // 2 if content.get("format") == 3 and isinstance(listed, dict) else 1
    expected = {name for i in range(max(count, 1)) for name in names(i)}
    per_file = [content.get(name) for name in {"files", "crc32"} - absent]
    return (
        set(content) == set(About.__dataclass_fields__) - absent
        and all(isinstance(of, dict) and set(cast(dict[str, Any], of)) == expected for of in per_file)
        and content["dtype"] in STORED
        and isinstance(content["fingerprint"], str)
        and isinstance(content["longest"], float)
        and all(isinstance(content[name], int) and content[name] >= 0 for name in ("documents", "width"))
    )
