"""The text files of a folder, of whatever kind, each with a name that is the same on every machine.

| files               | kind                                                                    |
| ------------------- | ----------------------------------------------------------------------- |
| `.txt` `.md`        | text in UTF-8, with or without a front matter                           |
| `.html` `.htm`      | web pages; the extra `documents`                                        |
| `.pdf`              | PDF; the extra `documents`                                              |
| `.docx`             | Word; the extra `documents`                                             |

One file that cannot be read stops all (`on_error="raise"`), or is left out, counted and named (`"skip"`). Of files
that say the same, the first in the order of their names is kept.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedrag.data import front_matter
from fedrag.data.fields import string
from fedrag.data.text import Text
from fedrag.errors import ConfigError, DataError, MissingExtraError

_log = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
_NAMED = 10  # files that a message names, of as many as there are


def _html(path: Path) -> Text:
    from fedrag.data import html

    return html.read(path)


def _pdf(path: Path) -> Text:
    from fedrag.data import pdf

    return pdf.read(path)


def _docx(path: Path) -> Text:
    from fedrag.data import docx

    return docx.read(path)


_READERS: dict[str, Callable[[Path], Text]] = {
    ".txt": front_matter.read,
    ".md": front_matter.read,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".docx": _docx,
}
KINDS = tuple(_READERS)
"""The suffixes of files that are read as texts."""


@dataclass(frozen=True, slots=True)
class File:
    """A file and its name in the store: its path from the folder on, the folder's own name first."""

    path: Path
    source: str


@dataclass(slots=True)
class Files:
    """The files of a folder, or one file, in the order of their names; what was left out of them, and why.

    Args:
        path: a folder, or one text file.
        on_error: what becomes of a file that cannot be read.
        repeated: whether files that say the same are all kept.
    """

    path: Path
    on_error: OnError = "raise"
    repeated: bool = False
    read: int = 0
    empty: list[str] = field(default_factory=list[str])
    same: list[str] = field(default_factory=list[str])
    unreadable: list[str] = field(default_factory=list[str])
    aside: Counter[str] = field(default_factory=Counter[str])
    _digests: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error is 'raise' or 'skip', got {self.on_error!r}")

    def all(self) -> list[File]:
        """List them. Raises `DataError` where there is none, and for a link that leaves the folder."""
        folder = self.path if self.path.is_dir() else self.path.parent
        root = Path(os.path.abspath(folder)).name  # of ".", too
        paths: list[Path] = []
        self.aside.clear()
        for path in _walk(self.path, self._refuse) if self.path.is_dir() else [self.path]:
            if path.suffix.lower() in _READERS:
                paths.append(path)
            else:
                self.aside[path.suffix.lower() or "no suffix"] += 1
        if not paths:
            others = sum(self.aside.values())
            more = f"; there are {others} files of other kinds: pass a table by its own path" if others else ""
            raise DataError(f"{self.path}: no {', '.join(KINDS[:-1])} or {KINDS[-1]} file in the folder or below{more}")
        files: list[File] = []
        for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
            try:
                name = (Path(root) / path.relative_to(folder)).as_posix()
                files.append(File(path, string(name, repr(str(path)), "name of the file")))
            except DataError as error:
                self._refuse(error)
        return files

    def text(self, file: File) -> Text | None:
        """Read one; `None` for one that is empty or left out.

        Raises `DataError`, which names it, and `MissingExtraError` for a kind whose library is not installed.
        """
        try:
            text = _READERS[file.path.suffix.lower()](file.path)
        except MissingExtraError as error:
            self._refuse(MissingExtraError(f"{file.path}: {error}"))
            return None
        except DataError as error:
            self._refuse(error)
            return None
        if not text.text.strip():
            self.empty.append(file.source)
            return None
        self.read += 1
        return text

    def repeats(self, file: File, digest: str) -> bool:
        """Whether a file before this one said the same, and this one is to be left out."""
        if self.repeated or not digest:
            return False
        if digest not in self._digests:
            self._digests.add(digest)
            return False
        self.same.append(file.source)
        return True

    def nothing(self) -> str:
        """Why there is no text, of one file or of all."""
        if self.unreadable:
            return f"has no file that can be read: {self.unreadable[0]}"
        return "is empty" if self.path.is_file() else f"holds {len(self.empty)} files, which are all empty"

    def tell(self) -> None:
        """Log what was left out."""
        for what, names in (
            ("skipped %d empty files: %s", self.empty),
            ("left out %d files that say the same as another: %s", self.same),
            ("left out %d files that cannot be read: %s", self.unreadable),
        ):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                _log.warning(f"%s: {what}%s", self.path, len(names), ", ".join(names[:_NAMED]), more)
        if self.aside:
            kinds = ", ".join(f"{count} of {suffix}" for suffix, count in sorted(self.aside.items()))
            _log.warning("%s: left aside %d files of other kinds: %s", self.path, sum(self.aside.values()), kinds)

    def _refuse(self, error: DataError | MissingExtraError) -> None:
        if self.on_error == "raise":
            raise error
        self.unreadable.append(str(error))


def _walk(folder: Path, refuse: Callable[[DataError], None]) -> Iterator[Path]:
    """Regular files, hidden ones aside; links to folders inside are not followed, as their files come anyway."""
    root = os.path.realpath(folder)

    def closed(error: OSError) -> None:
        refuse(DataError(f"{error.filename}: cannot be read: {error.strerror}"))

    for where, folders, names in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*folders, *names]:
            path = Path(where, name)
            if name.startswith(".") or (name in folders and not path.is_symlink()):
                continue
            target = os.path.realpath(path)
            if path.is_symlink() and os.path.commonpath([root, target]) != root:
                refuse(DataError(f"{path}: links to {target}, outside of the folder; copy it in or remove the link"))
            elif path.is_symlink() and not path.exists():
                refuse(DataError(f"{path}: links to {target}, which does not exist; remove the link"))
            elif path.is_file():
                yield path
