from __future__ import annotations

import csv
import datetime
import decimal
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrag.data import documents_from, read_documents
from fedrag.errors import ConfigError, DataError, FedRAGError
from fedrag.types import Document

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FILLED = TEXT.filter(lambda text: bool(text.strip()))
NAMES = st.sampled_from(["year", "title", "a b", "é", "meta"])
SCALARS = st.one_of(st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), TEXT)
JSON = st.recursive(
    SCALARS | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


def rows(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows with unique ids."""
    row = st.fixed_dictionaries({"id": FILLED, "text": FILLED}, optional={"year": values, "é": values})
    return st.lists(row, min_size=1, max_size=5, unique_by=lambda row: row["id"])


def expected(found: list[dict[str, Any]]) -> list[Document]:
    return [
        Document(row["text"], row["id"], {k: v for k, v in row.items() if k not in ("id", "text") and v is not None})
        for row in found
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all the files of a fuzzed test: each example overwrites the one before."""
    return tmp_path_factory.mktemp("fuzz")


@given(rows(JSON))
def test_json_lines_round_trip(folder: Path, found: list[dict[str, Any]]) -> None:
    path = folder / "d.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8", newline="\n"
    )
    assert read_documents(path, progress=False) == expected(found)


@given(rows(JSON))
def test_json_round_trip(folder: Path, found: list[dict[str, Any]]) -> None:
    path = folder / "d.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    assert read_documents(path, progress=False) == expected(found)


@given(rows(TEXT.filter(bool)))
def test_csv_round_trip(folder: Path, found: list[dict[str, Any]]) -> None:
    path = folder / "d.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text", "year", "é"])
        writer.writeheader()
        writer.writerows(found)
    read = read_documents(path, progress=False)
    spelt = [Document(d.text, d.id, {k: str(v) for k, v in d.metadata.items()}) for d in read]
    assert spelt == expected(found)


@given(rows(st.integers(-(2**53), 2**53)) | rows(TEXT) | rows(st.lists(st.integers(0, 9))))
def test_parquet_and_datasets_round_trip(folder: Path, found: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(found, schema=_schema(found))
    pq.write_table(table, folder / "d.parquet")
    assert read_documents(folder / "d.parquet", progress=False) == expected(found)
    assert documents_from(datasets.Dataset(table), progress=False) == expected(found)
    assert documents_from(found, progress=False) == expected(found)


def _schema(found: list[dict[str, Any]]) -> pa.Schema:
    names = sorted({name for row in found for name in row})
    return pa.schema([(n, pa.array([row[n] for row in found if n in row]).type) for n in names])


@given(st.dictionaries(st.sampled_from(["a.txt", "b.md", "s/a.txt", "s/t/c.MD", "z z/é.txt"]), TEXT, min_size=1))
def test_a_folder_round_trip(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]) -> None:
    root = tmp_path_factory.mktemp("texts")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8-sig"))
    sources = {name: f"{root.name}/{name}" for name in files}
    wanted = [
        Document(text, f"{sources[name]}#0", {"source": sources[name]})
        for name, text in sorted(files.items())
        if text.strip()
    ]
    if not wanted:
        with pytest.raises(DataError, match="empty"):
            read_documents(root, repeated=True, progress=False)
    else:
        assert read_documents(root, repeated=True, progress=False) == wanted


@pytest.mark.parametrize("suffix", ["txt", "md", "jsonl", "json", "csv", "parquet"])
@given(
    data=st.binary(max_size=60)
    | st.sampled_from([b"PAR1\x00\x00PAR1", b"\xff\xfea\x00", b'{"text":"\\ud800"}', b"\x1a\n"])
)
def test_arbitrary_bytes_raise_nothing_else(folder: Path, suffix: str, data: bytes) -> None:
    _only_our_errors(folder / f"f.{suffix}", data)


@given(st.lists(JSON | st.dictionaries(st.sampled_from(["text", "id", "metadata", "x"]), JSON), max_size=4))
def test_arbitrary_json_raises_nothing_else(folder: Path, values: list[Any]) -> None:
    _only_our_errors(folder / "f.jsonl", "\n".join(map(json.dumps, values)).encode())
    _only_our_errors(folder / "f.json", json.dumps(values).encode())


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_parquet_file_raises_nothing_else(folder: Path, place: int, byte: int) -> None:
    path = folder / "damaged.parquet"
    pq.write_table(pa.table({"text": ["Paris", "Rome"], "day": [datetime.date(2020, 1, 1), None]}), path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    _only_our_errors(path, bytes(data))
    _only_our_errors(path, bytes(data[: place % len(data)]))


def _only_our_errors(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        read_documents(path, progress=False)
    except FedRAGError as error:
        assert str(path) in str(error)  # noqa: PT017


WRITERS: dict[str, Callable[[Path], None]] = {
    "absent.txt": lambda path: None,
    "empty.txt": lambda path: path.write_bytes(b" \n") and None,
    "latin.txt": lambda path: path.write_bytes("a\nb\né".encode("latin-1")) and None,
    "utf16.md": lambda path: path.write_bytes("é".encode("utf-16")) and None,
    "table.xlsx": lambda path: path.write_bytes(b"x") and None,
    "empty.jsonl": lambda path: path.write_bytes(b"\n\n") and None,
    "bad.jsonl": lambda path: path.write_bytes(b'{"text": "a"}\n\n{"text": b}\n') and None,
    "nan.jsonl": lambda path: path.write_bytes(b'{"text": "a", "x": NaN}\n') and None,
    "deep.jsonl": lambda path: path.write_bytes(b"[" * 100_000) and None,
    "list.jsonl": lambda path: path.write_bytes(b'["text"]\n') and None,
    "object.json": lambda path: path.write_bytes(b'{"data": []}') and None,
    "short.csv": lambda path: path.write_bytes(b'text,year\n"a\nb",1\nc\n') and None,
    "quote.csv": lambda path: path.write_bytes(b'text\n"a"b\n') and None,
    "twice.csv": lambda path: path.write_bytes(b"text,text\na,b\n") and None,
    "near.csv": lambda path: path.write_bytes(b"txet\na\n") and None,
    "other.csv": lambda path: path.write_bytes(b"content\na\n") and None,
    "blank.csv": lambda path: path.write_bytes(b"id,text\n1,a\n2,\n") and None,
    "meta.csv": lambda path: path.write_bytes(b"text,metadata\na,b\n") and None,
    "bytes.parquet": lambda path: path.write_bytes(b"PAR1dfsdfPAR1") and None,
    "int.parquet": lambda path: pq.write_table(pa.table({"text": [1]}), path),
    "null.parquet": lambda path: pq.write_table(pa.table({"text": ["a", None]}), path),
    "binary.parquet": lambda path: pq.write_table(pa.table({"text": ["a"], "x": [b"\xff"]}), path),
    "ids.parquet": lambda path: pq.write_table(pa.table({"text": ["a", "b"], "id": [7, 7]}), path),
}
MESSAGES = {
    "absent.txt": "no such file or folder",
    "empty.txt": "empty.txt is empty",
    "latin.txt": "line 3: byte 0xe9 is not UTF-8",
    "utf16.md": "UTF-16",
    "table.xlsx": r"cannot read \.xlsx; wanted one of \.txt, \.md, \.html, .*\.jsonl",
    "empty.jsonl": "there is no row",
    "bad.jsonl": "line 3, column 10: not valid JSON",
    "nan.jsonl": "line 1: not valid JSON .NaN is not a JSON number",
    "deep.jsonl": "line 1: not valid JSON",
    "list.jsonl": "line 1: wanted one JSON object a line, got list",
    "object.json": "wanted a list of objects, got dict",
    "short.csv": "line 4: 1 cells, wanted 2 as in line 1",
    "quote.csv": "line 2: not valid CSV",
    "twice.csv": "line 1: the column 'text' stands there twice",
    "near.csv": "did you mean 'txet'. Pass text_column='txet'",
    "other.csv": "did you mean 'content'",
    "blank.csv": "line 3: the column 'text' is empty",
    "meta.csv": "line 2, 'metadata', column 1: not valid JSON",
    "bytes.parquet": "cannot be read as parquet",
    "int.parquet": r"rows\[0\]: the column 'text' takes a string, got int 1",
    "null.parquet": r"rows\[1\]: the column 'text' is null",
    "binary.parquet": "the column 'x' holds bytes",
    "ids.parquet": r"rows\[1\]: the id '7' was given before, in .*rows\[0\]",
}


@pytest.mark.parametrize("name", WRITERS)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    with pytest.raises(DataError, match=MESSAGES[name]) as caught:
        read_documents(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "there is no row"),
        ("text", "rows are an iterable of dicts"),
        (3, "rows are an iterable of dicts"),
        (["text"], r"rows\[0\]: a row is a dict of columns, got str"),
        (datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]})), r"pass one of its splits"),
        ([{"text": "a", "id": True}], "takes ids, strings or whole numbers, got bool"),
        ([{"text": "a", "id": ""}], "column 'id' is empty"),
        ([{"text": "a", "id": 1}, {"text": "b", "id": "1"}], r"rows\[1\]: the id '1' was given before, in rows\[0\]"),
        ([{"text": "a", "x": 1}, {"text": "a", "x": 2}], "same text as in .*add a column 'id'"),
        ([{"text": "a\ud800"}], "half a surrogate pair at character 1"),
        ([{"text": "a", "x": "\ud800"}], "half a surrogate pair"),
        ([{"text": "a", 3: "x"}], "takes a string, got int 3"),
        ([{"text": "a", "x": {1, 2}}], "the column 'x' holds set, which JSON cannot"),
        ([{"text": "a", "x": [float("nan")]}], "which JSON cannot"),
        ([{"text": "a", "metadata": {"x": 1}, "x": 2}], "'x' is both a column and a key"),
        ([{"text": "a", "metadata": 3}], "column 'metadata' takes an object, got int 3"),
    ],
)
def test_bad_rows_are_named(found: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        documents_from(found)


def test_keys_of_metadata_may_be_called_like_columns() -> None:
    row = {"text": "a", "metadata": {"text": 1, "metadata": 2}}
    assert documents_from([row]) == [Document("a", metadata={"text": 1, "metadata": 2})]


def test_a_cycle_is_refused() -> None:
    row: dict[str, Any] = {"text": "a"}
    row["x"] = [row]
    with pytest.raises(DataError, match="nested more than"):
        documents_from([row])


def test_values_become_plain() -> None:
    row = {
        "text": np.str_("a"),
        "key": np.int64(7),
        "array": np.array([1.5, 2.5]),
        "day": datetime.date(2020, 5, 1),
        "moment": np.datetime64("2020-05-01T10:00:00.000000001"),
        "price": decimal.Decimal("1.5"),
        "gone": [float("nan"), None, pd.NaT][0],
        "never": pd.NaT,
        "null": None,
        "metadata": {"deep": {"x": (1, 2)}},
    }
    (document,) = documents_from([row], id_column="key")
    wanted = {"array": [1.5, 2.5], "day": "2020-05-01", "moment": "2020-05-01T10:00:00.000000001", "price": 1.5}
    assert document == Document("a", "7", {**wanted, "deep": {"x": [1, 2]}})
    assert type(document.text) is str
    assert json.loads(json.dumps(document.metadata)) == document.metadata


def test_csv_numbers_only_when_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,year,zip,version,share,nan\n7,2020,007,1.10,0.5,nan\n8,1" + "0" * 400 + ",1,1.2,2.0,1.0\n")
    first, second = read_documents(path)
    assert (first.text, first.metadata) == (
        "7",
        {"year": 2020, "zip": "007", "version": "1.10", "share": 0.5, "nan": "nan"},
    )
    assert second.metadata == {"year": 10**400, "zip": "1", "version": "1.2", "share": 2.0, "nan": "1.0"}


def test_csv_with_long_texts_and_the_limit_as_it_was(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = tmp_path / "d.csv"
    path.write_text("text\n" + "a" * (limit + 1) + "\n")
    assert len(read_documents(path)[0].text) == limit + 1
    assert csv.field_size_limit() == limit


def test_mapped_columns() -> None:
    (document,) = documents_from([{"body": "a", "key": "k", "text": "t", "id": 3}], text_column="body", id_column="key")
    assert document == Document("a", "k", {"text": "t", "id": 3})
    with pytest.raises(DataError, match=r"no column 'kye'.*did you mean 'key'. Pass id_column='key'"):
        documents_from([{"text": "a", "key": "k"}], id_column="kye")


def test_equal_rows_without_id_are_one_document(caplog: pytest.LogCaptureFixture) -> None:
    assert documents_from([{"text": "secret"}, {"text": "b"}, {"text": "secret"}]) == [
        Document("secret"),
        Document("b"),
    ]
    assert "1 rows repeat another row" in caplog.text
    assert "secret" not in caplog.text


def test_a_folder_skips_hidden_and_counts_empty_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = tmp_path / "docs"
    for name in (".hidden.txt", ".git/a.txt", "b.txt", "a/z.md", "data.jsonl", "e.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("" if name == "e.md" else name)
    assert [document.id for document in read_documents(root)] == ["docs/a/z.md#0", "docs/b.txt#0"]
    assert "skipped 1 empty files: docs/e.md" in caplog.text
    assert "left aside 1 files of other kinds: 1 of .jsonl" in caplog.text


def test_a_folder_without_texts(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("{}")
    with pytest.raises(
        DataError, match=r"no \.txt, \.md, .* or \.docx file.*1 files of other kinds: pass a table by its own path"
    ):
        read_documents(tmp_path)


@pytest.mark.parametrize(("link", "message"), [("x.txt", "outside"), ("folder", "outside"), ("broken.md", "not exist")])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, link: str, message: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "root2"  # one name begins with the other
    root.mkdir()
    outside.mkdir()
    (outside / "x.txt").write_text("outside")
    (root / "in.txt").write_text("inside")
    target = {"x.txt": outside / "x.txt", "folder": outside, "broken.md": root / "gone.md"}[link]
    (root / link).symlink_to(target)
    with pytest.raises(DataError, match=message):
        read_documents(root)


def test_links_inside_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    (root / "a").mkdir(parents=True)
    (root / "a" / "x.txt").write_text("inside")
    (root / "y.txt").symlink_to(root / "a" / "x.txt")
    (root / "loop").symlink_to(root)
    assert [document.id for document in read_documents(root, repeated=True)] == ["docs/a/x.txt#0", "docs/y.txt#0"]


def test_a_text_file_alone_and_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "x.txt"
    path.parent.mkdir()
    path.write_bytes(b"\xef\xbb\xbfone two\r\nthree")
    source = {"source": "docs/x.txt"}
    assert read_documents(path) == [Document("one two\r\nthree", "docs/x.txt#0", source)]
    first, second = read_documents(path, chunk_tokens=2)
    assert first == Document("one two\r\n", "docs/x.txt#0", {**source, "start": 0, "end": 9})
    assert second == Document("three", "docs/x.txt#1", {**source, "start": 9, "end": 14})


def test_ids_are_the_same_however_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("docs", "more"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "readme.md").write_text(folder)
    expected = read_documents(tmp_path / "docs")
    assert [document.id for document in expected] == ["docs/sub/readme.md#0"]
    assert [document.id for document in read_documents(tmp_path / "more")] == ["more/sub/readme.md#0"]
    monkeypatch.chdir(tmp_path / "docs")
    for path in (".", "../docs", "../docs/", "sub/.."):
        assert read_documents(path) == expected


def test_chunk_settings_without_chunks_are_refused() -> None:
    with pytest.raises(ConfigError, match="set chunk_tokens as well"):
        documents_from([{"text": "a"}], overlap=1)
