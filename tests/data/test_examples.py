from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrag.data import examples_from, read_examples
from fedrag.errors import DataError, FedRAGError
from fedrag.types import Example

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FILLED = TEXT.filter(lambda text: bool(text.strip()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
EXAMPLES = st.lists(
    st.builds(
        Example,
        FILLED,
        st.lists(FILLED, max_size=2),
        st.lists(FILLED, max_size=2),
        st.lists(FILLED, max_size=2),
        st.fixed_dictionaries({"page": st.integers(0, 9)}),
    ),
    min_size=1,
    max_size=4,
)


def row(example: Example) -> dict[str, Any]:
    lists = {name: list(getattr(example, name)) for name in ("answers", "positives", "negatives")}
    return {"question": example.question, **lists, **example.metadata}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@given(EXAMPLES)
def test_round_trip(folder: Path, examples: list[Example]) -> None:
    rows = [row(example) for example in examples]
    (folder / "e.json").write_text(json.dumps(rows))
    (folder / "e.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in rows))
    with (folder / "e.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows([{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows])
    strings = pa.list_(pa.string())
    names = ("answers", "positives", "negatives")
    schema = pa.schema([("question", pa.string()), *((name, strings) for name in names), ("page", pa.int64())])
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, folder / "e.parquet")
    for suffix in ("json", "jsonl", "csv", "parquet"):
        assert read_examples(folder / f"e.{suffix}", progress=False) == examples, suffix
    assert examples_from(datasets.Dataset(table), progress=False) == examples
    inner = [{k: v for k, v in r.items() if k != "page"} | {"metadata": {"page": r["page"]}} for r in rows]
    assert examples_from(inner, progress=False) == examples


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "txt"])
@given(data=st.binary(max_size=60))
def test_arbitrary_bytes_raise_nothing_else(folder: Path, suffix: str, data: bytes) -> None:
    only_our_errors(folder / f"f.{suffix}", data)


NAMES = ["question", "answers", "answer", "positives", "metadata", "x"]


@given(st.lists(JSON | st.dictionaries(st.sampled_from(NAMES), JSON), max_size=4))
def test_arbitrary_json_raises_nothing_else(folder: Path, values: list[Any]) -> None:
    only_our_errors(folder / "f.jsonl", "\n".join(map(json.dumps, values)).encode())
    only_our_errors(folder / "f.json", json.dumps(values).encode())


@given(st.lists(st.lists(st.text(max_size=5), min_size=2, max_size=2), max_size=3))
def test_arbitrary_csv_raises_nothing_else(folder: Path, cells: list[list[str]]) -> None:
    lines = ["question,answers", *(",".join(f'"{c}"' for c in line) for line in cells)]
    only_our_errors(folder / "f.csv", "\n".join(lines).encode("utf-8", "surrogatepass"))


def only_our_errors(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        read_examples(path, progress=False)
    except FedRAGError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("columns", "answers"),
    [
        ({"answers": ["a", "b"]}, ("a", "b")),
        ({"answers": ("a",)}, ("a",)),
        ({"answers": np.array(["a"])}, ("a",)),
        ({"answers": []}, ()),
        ({"answers": {"text": ["a"], "answer_start": [3]}}, ("a",)),
        ({"answers": {"text": [], "answer_start": []}}, ()),
        ({"answer": "a"}, ("a",)),
        ({"answer": ""}, ()),
        ({"answer": None, "answers": ["a"]}, ("a",)),
    ],
)
def test_forms_of_answers(columns: dict[str, Any], answers: tuple[str, ...]) -> None:
    assert examples_from([{"question": "q", **columns}]) == [Example("q", answers)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no column 'answers'"),
        ({"response": "a"}, "did you mean 'response'"),
        ({"anwsers": ["a"]}, "did you mean 'anwsers'"),
        ({"answers": None}, "the answer is null.*has the answers"),
        ({"answer": float("nan")}, "the answer is null"),
        ({"answers": "a"}, "takes a list, got str 'a'; for one string, call it 'answer'"),
        ({"answer": ["a"]}, "takes one string, got list; for a list, call it 'answers'"),
        ({"answer": 3}, "takes one string, got int 3"),
        ({"answer": "a", "answers": ["a"]}, "both 'answer' and 'answers'"),
        ({"answers": [""]}, "'answers' is empty"),
        ({"answers": [3]}, "'answers' takes a string, got int 3"),
        ({"answers": {"texts": []}}, "did you mean 'texts'"),
        ({"answers": {"text": "a"}}, "takes a list, got str 'a'"),
        ({"answers": [], "positives": "d1"}, "'positives' takes a list, got str 'd1'"),
        ({"answers": [], "positives": [1.5]}, "'positives' takes ids"),
        ({"answers": [], "positive": ["d1"]}, "did you mean 'positives' by the column 'positive'"),
        ({"answers": [], "question": " "}, "'question' is empty"),
        ({"answers": [], "question": 3}, "'question' takes a string, got int 3"),
    ],
)
def test_bad_rows_are_named(columns: dict[str, Any], message: str) -> None:
    good = {"question": "q", "answers": []}
    with pytest.raises(DataError, match=r"^rows\[1\].*" + message):
        examples_from([good, {"question": "q", **columns}])


def test_whole_numbers_are_ids() -> None:
    assert examples_from([{"question": "q", "answers": [], "positives": [7, np.int64(8)]}])[0].positives == ("7", "8")


def test_the_question_column_is_guessed() -> None:
    with pytest.raises(
        DataError, match="no column 'question', the columns are 'query', 'answer'; did you mean 'query'"
    ):
        examples_from([{"query": "q", "answer": "a"}])


def test_a_missing_or_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"e\.jsonl: no such file"):
        read_examples(tmp_path / "e.jsonl")
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(DataError, match=r"e\.jsonl: there is no row"):
        read_examples(tmp_path / "e.jsonl")


def test_csv_answers_are_json_and_an_empty_answer_is_none(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("question,answers\nq,Paris\n")
    with pytest.raises(DataError, match=r"line 2, 'answers', column 1: not valid JSON.*Paris"):
        read_examples(path)
    path.write_text("question,answer,page\n12,7,1\nq,,2\n")
    assert read_examples(path) == [Example("12", ["7"], metadata={"page": 1}), Example("q", [], metadata={"page": 2})]
