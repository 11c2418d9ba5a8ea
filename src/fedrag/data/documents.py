r"""Documents from a folder of texts, from a table, or from rows; all at once, or one by one.

| path                                          | one document is | its id                  | metadata            |
| --------------------------------------------- | --------------- | ----------------------- | ------------------- |
| a folder, or one file of a kind in `files`    | a file          | its source, `#`, chunk  | `source`: see below |
| `.jsonl` `.json` `.csv` `.parquet`            | a row           | column `id`, or a hash  | every other column  |

A text's source is its path from the folder on, the folder's own name first. It is the same on every machine, and two
folders in one store may each have a `readme.md`; folders of the same name are taken for one, so give them different
names. Of a text file read alone the folder is the one that it lies in.

What a file says about itself (a front matter, a page's title, a document's properties) is metadata, too. A passage of
a PDF has the number of the `page` on which it begins.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp()) / "handbook"
>>> folder.mkdir()
>>> _ = (folder / "keys.md").write_text("Keys are rotated every month.\n")
>>> [(document.id, dict(document.metadata)) for document in read_documents(folder)]
[('handbook/keys.md#0', {'source': 'handbook/keys.md'})]
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrag.data.chunking import cutter
from fedrag.data.fields import filled, identifier, metadata, missing, required
from fedrag.data.files import KINDS, File, Files, OnError
from fedrag.data.rows import SUFFIXES, Row, read_rows, rows_of
from fedrag.data.text import Text
from fedrag.errors import ConfigError, DataError
from fedrag.progress import track
from fedrag.types import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

Cut = Callable[[Document], Iterator[Document]]


def read_documents(
    path: str | Path,
    *,
    chunk_tokens: int | None = None,
    overlap: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    id_column: str = "id",
    on_error: OnError = "raise",
    repeated: bool = False,
    progress: bool = True,
) -> list[Document]:
    """Read every document of a folder or file, in a stable order.

    Of a folder, all text files at any depth are read; `fedrag.data.files` has their kinds. Hidden ones are skipped,
    empty ones too, and counted in the log. Their ids begin with the folder's name: `docs/keys/rotate.md#0`. A table's
    columns are the ones `documents_from` takes.

    Args:
        path: the folder or file.
        chunk_tokens: cut the documents into chunks of at most so many tokens; see `fedrag.data.chunk`.
        overlap: tokens that neighbouring chunks share.
        tokenizer: a fast HuggingFace tokenizer; by default words and marks are counted.
        text_column: a table's column with the texts.
        id_column: a table's column with the ids.
        on_error: "skip" leaves out files of a folder that cannot be read, and names them in the log.
        repeated: keep every one of a folder's files that say the same (and the same about themselves), spacing aside;
            by default the first is kept, and the log names the others.
        progress: whether to show a progress bar when it takes longer than a second.

    Raises:
        DataError: names the file and line: no such path, no document, an empty text, a missing column, a repeated id,
            text that is not UTF-8, malformed JSON, CSV or parquet, a front matter that is not YAML, a PDF that is
            damaged, locked or a scan, a link that leaves the folder.
        MissingExtraError: names a file whose kind needs the extra `documents`, which is not installed.
    """
    return list(
        stream_documents(
            path,
            chunk_tokens=chunk_tokens,
            overlap=overlap,
            tokenizer=tokenizer,
            text_column=text_column,
            id_column=id_column,
            on_error=on_error,
            repeated=repeated,
            progress=progress,
        )
    )


def stream_documents(
    path: str | Path,
    *,
    chunk_tokens: int | None = None,
    overlap: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_column: str = "text",
    id_column: str = "id",
    on_error: OnError = "raise",
    repeated: bool = False,
    progress: bool = True,
) -> Iterator[Document]:
    """`read_documents` one by one, for more than memory holds: a file or a few rows at a time, and the ids.

    Settings are checked now; errors of a file or a row come when it is its turn. A `.json` file is read whole.
    """
    path = Path(path)
    cut = checked_cutter(chunk_tokens, overlap, tokenizer)
    suffix = path.suffix.lower()
    if path.is_dir() or (path.is_file() and suffix in KINDS):
        return _texts(Files(path, on_error, repeated), cut, progress)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; check the path, the working directory is {Path.cwd()}")
    if suffix not in SUFFIXES:
        wanted = ", ".join(KINDS + SUFFIXES)
        raise DataError(f"{path}: cannot read {suffix or 'a file without suffix'}; wanted one of {wanted}")
    rows = read_rows(path, texts=(text_column, id_column), json_cells=("metadata",))
    return _pieces(_documents(rows, str(path), text_column, id_column, progress), cut)


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
    cut = checked_cutter(chunk_tokens, overlap, tokenizer)
    documents = _documents(rows_of(rows), "", text_column, id_column, progress)
    return list(_pieces(documents, cut))


def checked_cutter(chunk_tokens: int | None, overlap: int, tokenizer: PreTrainedTokenizerBase | None) -> Cut | None:
    """What cuts documents into chunks; `None` where they stay whole. Raises `ConfigError` for impossible settings."""
    if chunk_tokens is not None:
        return cutter(chunk_tokens, overlap, tokenizer)
    if overlap or tokenizer is not None:
        raise ConfigError("overlap and tokenizer are for chunks: set chunk_tokens as well, or leave them out")
    return None


def passages(file: File, text: Text, cut: Cut | None) -> Iterator[Document]:
    """The passages of one file, numbered from 0; those of a file with pages know on which page they begin."""
    whole = Document(text.text, file.source, {**text.metadata, "source": file.source})
    if cut is None:
        yield replace(whole, id=f"{whole.id}#0")
        return
    starts = [start for start, _ in text.pages]
    for piece in cut(whole):
        if starts:
            _, page = text.pages[bisect_right(starts, piece.metadata["start"]) - 1]
            piece = replace(piece, metadata={**piece.metadata, "page": page})
        yield piece


def _texts(files: Files, cut: Cut | None, progress: bool) -> Iterator[Document]:
    for file in track(files.all(), desc="read", unit="file", disable=not progress, delay=1.0):
        if (text := files.text(file)) is not None and not files.repeats(file, text.digest):
            yield from passages(file, text, cut)
    files.tell()
    if not files.read:
        raise DataError(f"{files.path} {files.nothing()}; wanted some text")


def _pieces(documents: Iterable[Document], cut: Cut | None) -> Iterator[Document]:
    return iter(documents) if cut is None else (piece for document in documents for piece in cut(document))


def _documents(rows: Iterable[Row], source: str, text: str, id: str, progress: bool) -> Iterator[Document]:
    """Documents of rows. Of each that came, the id and the number of its row are kept, and no more."""
    places: dict[str, int] = {}
    unnamed: dict[str, int] = {}  # of those without an id: the hash of their metadata
    equal = 0
    for row in track(rows, desc="read", unit="row", disable=not progress, delay=1.0):
        document, named = _document(row, text, id)
        about = 0 if named else hash(json.dumps(document.metadata, sort_keys=True))
        first = places.setdefault(document.id, row.number)
        if first == row.number:
            if not named:
                unnamed[document.id] = about
            yield document
        elif named or document.id not in unnamed:
            raise DataError(
                f"{row.where}: the id {document.id!r} was given before, in {row.at(first)}; make ids unique"
            )
        elif unnamed[document.id] != about:
            raise DataError(
                f"{row.where}: the same text as in {row.at(first)}, but other metadata, and no id to tell them apart; "
                f"add a column {id!r}"
            )
        else:
            equal += 1
    if not places:
        raise DataError(f"{source or 'rows'}: there is no row, wanted at least one document")
    if equal:
        _log.warning("%s: %d rows repeat another row and are kept once", source or "rows", equal)


def _document(row: Row, text: str, id: str) -> tuple[Document, bool]:
    body = filled(required(row.values, row.where, text, setting="text_column"), row.where, text)
    given = row.values.get(id)
    named = not missing(given)
    if id not in row.values and id != "id":
        required(row.values, row.where, id, setting="id_column")
    name = identifier(given, row.where, id) if named else ""
    return Document(body, name, metadata(row.values, row.where, (text, id))), named
