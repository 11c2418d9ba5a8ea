"""PDF files: the text of their pages, and where each page begins, so that a passage knows its page.

Needs pypdf, in the extra `documents`. A page that is a picture has no text; of a file of nothing but pictures, a scan,
the error says so.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedrag.data.text import Text, parsing, told, unicode
from fedrag.errors import DataError
from fedrag.optional import require

require("pypdf", extra="documents")

from pypdf import PdfReader  # noqa: E402
from pypdf.errors import DependencyError, PyPdfError  # noqa: E402

_BETWEEN = "\n\n"


def read(path: Path) -> Text:
    """Read a PDF file; metadata `pages` is how many it has, `title` and `author` are the file's own.

    Raises `DataError` for a file that is damaged, that a password locks, or that has no text at all.
    """
    with parsing(path, "PDF", PyPdfError), _quiet(), path.open("rb") as file:
        reader = PdfReader(file)
        if reader.is_encrypted and not _opens(reader):
            raise DataError(f"{path}: a password locks this PDF; save a copy without it, or take it out of the folder")
        pages: list[tuple[int, int]] = []
        texts: list[str] = []
        length = 0
        for number, page in enumerate(reader.pages, start=1):
            if text := unicode(page.extract_text()).replace("\x00", "").strip():
                pages.append((length, number))
                texts.append(text)
                length += len(text) + len(_BETWEEN)
        count = len(reader.pages)
        about: Any = reader.metadata
        found = {name: _line(about.get(f"/{name.title()}")) for name in ("title", "author")} if about else {}
    if not texts:
        raise DataError(
            f"{path}: its {count} pages hold no text, they may be scanned pictures; run a text recognition such as "
            "ocrmypdf over it, or take it out of the folder"
        )
    metadata = told({name: value for name, value in found.items() if value}, str(path))
    return Text(_BETWEEN.join(texts), metadata | {"pages": count}, tuple(pages))


def _opens(reader: PdfReader) -> bool:
    """Whether the file opens without a password: many only forbid printing."""
    try:
        return bool(reader.decrypt(""))
    except DependencyError:  # AES, which needs the library cryptography
        return False


def _line(value: object) -> str:
    return unicode(" ".join(str(value).split())) if isinstance(value, str) else ""


@contextmanager
def _quiet() -> Generator[None]:
    """Keep pypdf from telling what it mended: the file is read, or an error names it."""
    log = logging.getLogger("pypdf")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
