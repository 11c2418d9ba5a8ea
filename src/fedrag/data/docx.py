"""Word files: paragraphs, headings and tables in the order in which they stand.

Needs python-docx, in the extra `documents`. Blocks are set apart by an empty line, the cells of a row by bars.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from fedrag.data.text import Text, parsing, told, unicode
from fedrag.errors import DataError
from fedrag.optional import require

require("docx", extra="documents")

import docx  # noqa: E402
from docx.opc.exceptions import OpcError  # noqa: E402
from docx.table import Table  # noqa: E402

_LARGEST = 1 << 29
"""Bytes that a file may unpack to: a few kilobytes can be made to hold gigabytes of nothing."""
_DEEPEST = 20  # tables in tables


def read(path: Path) -> Text:
    """Read a `.docx` file; `title`, `author` and `keywords` are what its properties say.

    Raises `DataError` for a file that is damaged or unpacks to more than 512 MiB.
    """
    with parsing(path, "Word (.docx)", OpcError), path.open("rb") as file:
        with ZipFile(file) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size > _LARGEST:
            raise DataError(f"{path}: unpacks to {size:,} bytes, at most {_LARGEST:,} are read; split the file")
        file.seek(0)
        document = docx.Document(file)
        text = unicode("\n\n".join(block for block in _blocks(document) if block.strip()))
        about = document.core_properties
        found = {name: " ".join(str(getattr(about, name)).split()) for name in ("title", "author", "keywords")}
    return Text(text, told({name: unicode(value) for name, value in found.items() if value}, str(path)))


def _blocks(holder: Any, depth: int = 0) -> Iterator[str]:
    """Paragraphs and tables of a document or of a cell."""
    for block in holder.iter_inner_content():
        if isinstance(block, Table):
            if depth < _DEEPEST:
                yield "\n".join(line for line in (_row(row, depth) for row in block.rows) if line)
        else:
            yield block.text


def _row(row: Any, depth: int) -> str:
    seen: list[Any] = []
    cells: list[str] = []
    for cell in row.cells:
        if cell._tc not in seen:  # a cell that spans columns comes once for each
            seen.append(cell._tc)
            cells.append(" ".join(" ".join(_blocks(cell, depth + 1)).split()))
    return " | ".join(cells) if any(cells) else ""
