r"""Documents from a folder of texts, from a table, or from rows.

| path                                  | one document is | its id                  | metadata             |
| ------------------------------------- | --------------- | ----------------------- | -------------------- |
| a folder, or one `.txt` or `.md` file | a file          | its source, `#`, chunk  | `source`: see below  |
| `.jsonl` `.json` `.csv` `.parquet`    | a row           | column `id`, or a hash  | every other column   |

A text's source is its path from the folder on, the folder's own name first. It is the same on every machine, and two
folders in one store may each have a `readme.md`; folders of the same name are taken for one, so give them different
names. Of a text file read alone the folder is the one that it lies in.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp()) / "handbook"
>>> folder.mkdir()
>>> _ = (folder / "keys.md").write_text("Keys are rotated every month.\n")
>>> [(document.id, dict(document.metadata)) for document in read_documents(folder)]
[('handbook/keys.md#0', {'source': 'handbook/keys.md'})]
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrag.data.chunking import check_settings, chunk
from fedrag.data.fields import filled, identifier, metadata, missing, required, string
from fedrag.data.rows import SUFFIXES, Row, read_rows, read_text, rows_of
from fedrag.errors import ConfigError, DataError
from fedrag.progress import track
from fedrag.types import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)
_TEXT = (".txt", ".md")


def read_documents(
    path: str | Path,
    *,
    chunk_tokens: int | None = None,
    overlap: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    id_column: str = "id",
    progress: bool = True,
) -> list[Document]:
    """Read every document of a folder or file, in a stable order.

    Of a folder, all `.txt` and `.md` files at any depth are read; hidden ones are skipped, empty ones too, and
    counted in the log. Their ids begin with the folder's name: `docs/keys/rotate.md#0`. A table's columns are the
    ones `documents_from` takes.

    Args:
        path: the folder or file.
        chunk_tokens: cut the documents into chunks of at most so many tokens; see `fedrag.data.chunk`.
        overlap: tokens that neighbouring chunks share.
        tokenizer: a fast HuggingFace tokenizer; by default words and marks are counted.
        text_column: a table's column with the texts.
        id_column: a table's column with the ids.
        progress: whether to show a progress bar when it takes longer than a second.

    Raises:
        DataError: names the file and line: no such path, no document, an empty text, a missing column, a repeated id,
            text that is not UTF-8, malformed JSON, CSV or parquet, a link that leaves the folder.
    """
    _check_chunking(chunk_tokens, overlap, tokenizer)
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        documents = _read_texts(path, _text_files(path), progress)
    elif not path.is_file():
        raise DataError(f"{path}: no such file or folder; check the path, the working directory is {Path.cwd()}")
    elif suffix in _TEXT:
        documents = _read_texts(path.parent, [path], progress)
    elif suffix in SUFFIXES:
        rows = read_rows(path, texts=(text_column, id_column), json_cells=("metadata",))
        documents = _documents(rows, str(path), text_column, id_column, progress)
    else:
        raise DataError(
            f"{path}: cannot read {suffix or 'a file without suffix'}; wanted one of {', '.join(_TEXT + SUFFIXES)}"
        )
    if chunk_tokens is not None:
        return chunk(documents, chunk_tokens=chunk_tokens, overlap=overlap, tokenizer=tokenizer, progress=progress)
    if path.is_dir() or suffix in _TEXT:
        return [replace(document, id=f"{document.id}#0") for document in documents]
    return documents


def documents_from(
    rows: Iterable[Mapping[str, Any]],
    *,
    chunk_tokens: int | None = None,
    overlap: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    id_column: str = "id",
    progress: bool = True,
) -> list[Document]:
    """Take documents from a HuggingFace dataset, or from any iterable of dicts.

    The column `text` is required. Without an `id` (a string or a whole number) a document is known by its text, and
    equal rows are one document. Every other column, and every key of a column `metadata`, becomes metadata;
    nulls are left out. The settings and errors are those of `read_documents`.
    """
    _check_chunking(chunk_tokens, overlap, tokenizer)
    documents = _documents(rows_of(rows), "rows", text_column, id_column, progress)
    if chunk_tokens is None:
        return documents
    return chunk(documents, chunk_tokens=chunk_tokens, overlap=overlap, tokenizer=tokenizer, progress=progress)


def _check_chunking(chunk_tokens: int | None, overlap: int, tokenizer: object) -> None:
    if chunk_tokens is not None:
        check_settings(chunk_tokens, overlap, tokenizer)
    elif overlap or tokenizer is not None:
        raise ConfigError("overlap and tokenizer are for chunks: set chunk_tokens as well, or leave them out")


def _documents(rows: Iterable[Row], source: str, text: str, id: str, progress: bool) -> list[Document]:
    found: dict[str, tuple[Document, str]] = {}
    equal = 0
    for row in track(rows, desc="read", unit="row", disable=not progress, delay=1.0):
        document, named = _document(row, text, id)
        if document.id not in found:
            found[document.id] = document, row.where
            continue
        other, place = found[document.id]
        if named:
            raise DataError(f"{row.where}: the id {document.id!r} was given before, in {place}; make ids unique")
        if other != document:
            raise DataError(
                f"{row.where}: the same text as in {place}, but other metadata, and no id to tell them apart; "
                f"add a column {id!r}"
            )
        equal += 1
    if not found:
        raise DataError(f"{source}: there is no row, wanted at least one document")
    if equal:
        _log.warning("%s: %d rows repeat another row and are kept once", source, equal)
    return [document for document, _ in found.values()]


def _document(row: Row, text: str, id: str) -> tuple[Document, bool]:
    body = filled(required(row.values, row.where, text, setting="text_column"), row.where, text)
    given = row.values.get(id)
    named = not missing(given)
    if id not in row.values and id != "id":
        required(row.values, row.where, id, setting="id_column")
    name = identifier(given, row.where, id) if named else ""
    return Document(body, name, metadata(row.values, row.where, (text, id))), named


def _read_texts(folder: Path, paths: Sequence[Path], progress: bool) -> list[Document]:
    documents: list[Document] = []
    root = Path(os.path.abspath(folder)).name  # of ".", too
    for path in track(paths, desc="read", unit="file", disable=not progress, delay=1.0):
        name = string((Path(root) / path.relative_to(folder)).as_posix(), repr(str(path)), "name of the file")
        text = read_text(path)
        if text.strip():
            documents.append(Document(text, name, {"source": name}))
    empty = len(paths) - len(documents)
    if not documents:
        many = f"all {empty} files in {folder} are empty"
        raise DataError(f"{many if empty > 1 else f'{paths[0]} is empty'}; wanted some text")
    if empty:
        _log.warning("%s: skipped %d empty files of %d", folder, empty, len(paths))
    return documents


def _text_files(folder: Path) -> list[Path]:
    texts: list[Path] = []
    others = 0
    for path in _walk(folder):
        if path.suffix.lower() in _TEXT:
            texts.append(path)
        else:
            others += 1
    if not texts:
        more = f"; there are {others} files of other kinds: pass a table by its own path" if others else ""
        raise DataError(f"{folder}: no {' or '.join(_TEXT)} file in the folder or below{more}")
    if others:
        _log.info("%s: left aside %d files that are neither %s", folder, others, " nor ".join(_TEXT))
    return sorted(texts, key=lambda path: path.relative_to(folder).as_posix())


def _walk(folder: Path) -> Iterator[Path]:
    """Regular files, hidden ones aside; links to folders inside are not followed, as their files come anyway."""
    root = os.path.realpath(folder)
    for where, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*folders, *names]:
            path = Path(where, name)
            if name.startswith(".") or (name in folders and not path.is_symlink()):
                continue
            target = os.path.realpath(path)
            if path.is_symlink() and os.path.commonpath([root, target]) != root:
                raise DataError(f"{path}: links to {target}, outside of the folder; copy it in or remove the link")
            if path.is_symlink() and not path.exists():
                raise DataError(f"{path}: links to {target}, which does not exist; remove the link")
            if path.is_file():
                yield path


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}")
