"""What a file says: its text, what it tells about itself, and where its pages begin. And what a file may not be.

A name that the reader gives itself (`source`, `page`, ...) is not lost when a file has it too: it moves under `given`,
where a filter finds it as `given.source`.

>>> told({"title": "Keys", "source": "the wiki"}, "keys.md")
{'title': 'Keys', 'given': {'source': 'the wiki'}}
"""

from __future__ import annotations

import lzma
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedrag.data.fields import missing, plain, string
from fedrag.errors import DataError

OURS = ("source", "start", "end", "page", "pages", "given")
"""Names of metadata that say where a passage stands."""

_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)
"""What libraries raise, by their own tests and by ours, over bytes that are not what their name promises."""


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a file. `pages` holds, for each page with text, where it begins, in characters, and its number."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pages: tuple[tuple[int, int], ...] = ()

    @property
    def digest(self) -> str:
        """Equal for two files that say the same and tell the same about themselves, spacing aside."""
        words = " ".join(unicodedata.normalize("NFC", self.text).split())
        return sha256(repr((words, sorted(self.metadata.items()))).encode("utf-8", "replace")).hexdigest()[:24]


def told(found: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """What a file tells about itself as metadata: plain values, nulls left out, names of our own set apart.

    Raises `DataError`, which names the key, for what JSON cannot hold.
    """
    metadata: dict[str, Any] = {}
    apart: dict[str, Any] = {}
    for name, value in found.items():
        if not missing(value):
            name = string(name, where, "metadata")
            (apart if name in OURS else metadata)[name] = plain(value, where, name)
    return metadata | ({"given": apart} if apart else {})


def unicode(text: str) -> str:
    """The text with halves of characters, which damaged files give, replaced: it can be stored as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextmanager
def parsing(path: Path, kind: str, *errors: type[Exception]) -> Generator[None]:
    """Say `DataError` for whatever a parser raises over a damaged file; `errors` are its library's own."""
    try:
        yield
    except DataError:
        raise
    except (*_DAMAGED, *errors) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(
            f"{path}: cannot be read as {kind} ({type(error).__name__}: {reason}); open it in its own program, save it "
            "again, or take it out of the folder"
        ) from None
