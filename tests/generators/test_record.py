import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrag.errors import StoreError
from fedrag.generators.record import Record, read_record, write_record

RECORD = Record(
    dtype="bfloat16",
    tunable=False,
    base_tunable=("model.norm.weight",),
    quantization={"quant_method": "bitsandbytes"},
    max_new_tokens=7,
    stop=("\n", "Ü"),
    chat=True,
    max_length=300,
    batch_tokens=99,
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def test_what_is_read_is_what_was_written(tmp_path: Path):
    for record in (RECORD, replace(RECORD, quantization=None, stop=(), tunable=True)):
        write_record(tmp_path, record)
        assert read_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["fedrag_generator.json"]


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path):
    write_record(tmp_path, RECORD)
    path = tmp_path / "fedrag_generator.json"
    whole = path.read_bytes()
    for end in range(len(whole.rstrip())):
        path.write_bytes(whole[:end])
        with pytest.raises(StoreError, match=r"fedrag_generator\.json is damaged.*copy"):
            read_record(tmp_path)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dtype", "float33"),
        ("dtype", "int64"),
        ("dtype", "nn"),
        ("dtype", None),
        ("tunable", 1),
        ("base_tunable", [1]),
        ("quantization", []),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("stop", "x"),
        ("stop", [1]),
        ("stop", [""]),
        ("chat", None),
        ("max_length", 1.5),
        ("batch_tokens", "9"),
        ("format", "1"),
        ("another", 1),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, wrong: Any, tmp_path: Path):
    write_record(tmp_path, RECORD)
    path = tmp_path / "fedrag_generator.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: wrong}))
    with pytest.raises(StoreError, match=name):
        read_record(tmp_path)


def test_the_first_format_is_read(tmp_path: Path):
    write_record(tmp_path, RECORD)
    path = tmp_path / "fedrag_generator.json"
    written = json.loads(path.read_text())
    del written["base_tunable"]
    path.write_text(json.dumps({**written, "format": 1}))
    assert read_record(tmp_path) == replace(RECORD, base_tunable=())
    path.write_text(json.dumps({**written, "format": 3}))
    with pytest.raises(StoreError, match=r"format 3.*update fedrag"):
        read_record(tmp_path)


def test_every_member_is_needed(tmp_path: Path):
    write_record(tmp_path, RECORD)
    path = tmp_path / "fedrag_generator.json"
    written = json.loads(path.read_text())
    for name in written:
        path.write_text(json.dumps({key: value for key, value in written.items() if key != name}))
        with pytest.raises(StoreError, match=name):
            read_record(tmp_path)


@given(content=ANYTHING.map(lambda value: json.dumps(value).encode()) | st.binary())
def test_anything_else_in_its_place_is_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("record")
    (folder / "fedrag_generator.json").write_bytes(content)
    with pytest.raises(StoreError):
        read_record(folder)


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="holds no fedrag_generator"):
        read_record(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="holds no fedrag_generator"):
        read_record(tmp_path / "file")
