"""A site: what its file says, where its data is, and what it keeps for itself."""

from __future__ import annotations

import gc
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrag import Document, Example, MemoryStore
from fedrag.errors import ConfigError, DataError, InputError, StoreError
from fedrag.federated import Site
from fedrag.federated.site import is_name

ROWS = [Example("Which key has clerk 1 ?", ["3"])]


def write(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def rows(path: Path) -> None:
    path.write_text(json.dumps({"question": "Which key has clerk 1 ?", "answers": ["3"]}) + "\n")


def test_a_file_says_where_the_data_is(tmp_path: Path) -> None:
    rows(tmp_path / "questions.jsonl")
    store = MemoryStore()
    store.add([Document("The key of clerk 1 is 3 .", id="d1")], torch.ones(1, 2))
    store.save(tmp_path / "documents")
    site = Site.open(
        write(
            tmp_path,
            'name = "north"\nstore = "documents"\nstate = "private"\n'
            '[examples]\ntrain = "questions.jsonl"\n[settings]\ndevice = "cpu"\n',
        )
    )
    assert (site.name, site.settings, site.state) == ("north", {"device": "cpu"}, tmp_path / "private")
    assert site.examples("train") == ROWS
    assert [document.id for document in site.store().documents()] == ["d1"]


def test_a_folder_is_a_site(tmp_path: Path) -> None:
    rows(tmp_path / "train.jsonl")
    assert Site("north", tmp_path).examples("train") == ROWS
    assert Site.local(tmp_path).name == "local"
    write(tmp_path, 'name = "south"')
    assert Site.local(tmp_path).name == "south"
    assert Site.local(tmp_path).examples("train") == ROWS
    with pytest.raises(StoreError):
        Site.local(tmp_path).store()


def test_what_is_in_memory_needs_no_file() -> None:
    store = MemoryStore()
    site = Site("north", data={"train": ROWS, "store": store})
    assert site.examples("train") == ROWS
    assert site.examples("train") is not site.examples("train")
    assert site.store() is store


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "not valid TOML"),
        ("", "name is missing"),
        ('name = "a/b"', "no name for a site"),
        ('name = ".."', "no name for a site"),
        ('name = ""', "no name for a site"),
        ("name = 3", "name must be a text, got 3"),
        ('name = "a"\nstroe = "x"', "unknown key 'stroe'"),
        ('name = "a"\nstore = 3', "store must be a text"),
        ('name = "a"\nstate = ""', "state must be a path"),
        ('name = "a"\nstore = "a\\u0000b"', "store must be a path"),
        ('name = "a"\nexamples = "x"', "examples must be a table"),
        ('name = "a"\n[examples]\ntrain = 3', "examples.train must be a path, got 3"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Site.open(path)
    assert complaint in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            Site.open(path)
    (tmp_path / "site.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="not valid TOML"):
        Site.open(tmp_path / "site.toml")


@pytest.mark.parametrize("name", ["", "a b", "../a", "-a", "a" * 65, "a\n", 3, None, "ä"])
def test_a_name_that_could_not_travel(name: object) -> None:
    assert not is_name(name)
    with pytest.raises(ConfigError, match="no name for a site"):
        Site(name)  # type: ignore[arg-type]


def test_examples_that_are_not_there_are_told_with_what_is(tmp_path: Path) -> None:
    site = Site("north", tmp_path, data={"train": ROWS})
    with pytest.raises(InputError, match=r"no examples named 'test': it knows \['train'\]"):
        site.examples("test")
    (tmp_path / "test.jsonl").write_text("{")
    with pytest.raises(DataError):
        site.examples("test")


def test_what_a_site_keeps_is_for_its_owner_alone(tmp_path: Path) -> None:
    site = Site("north", tmp_path / "north")
    assert not (tmp_path / "north").exists()  # nothing is made before it is asked for
    assert site.state == tmp_path / "north" / "state"
    assert site.state.stat().st_mode & 0o777 == 0o700


def test_what_a_site_in_memory_keeps_ends_with_it() -> None:
    site = Site("north")
    folder = site.state
    assert folder == site.state
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "kept").write_text("x")
    del site
    gc.collect()
    assert not folder.exists()


def test_copies_in_other_processes_keep_in_the_same_place() -> None:
    site = Site("north", data={"train": ROWS}, settings={"index": 3})
    one, other = (pickle.loads(pickle.dumps(site)) for _ in range(2))
    assert one.state == other.state == site.state
    assert (one.name, one.settings, one.examples("train")) == ("north", {"index": 3}, ROWS)
    folder = site.state
    del one, other
    gc.collect()
    assert folder.exists()


WORDS = st.text(max_size=12)
VALUES = st.one_of(WORDS, st.integers(-9, 9), st.booleans(), st.lists(WORDS, max_size=2))
KEYS = st.sampled_from(["name", "store", "state", "examples", "settings", "nmae"])
NAMES = st.one_of(st.sampled_from(["north", "a.b-c", "x" * 64]), WORDS)


@given(st.dictionaries(KEYS, st.one_of(NAMES, VALUES, st.dictionaries(st.sampled_from(["train", "n"]), VALUES))))
def test_any_file_makes_a_site_or_says_why_not(
    tmp_path_factory: pytest.TempPathFactory, raw: dict[str, object]
) -> None:
    lines, tables = [], []
    for key, value in raw.items():
        if isinstance(value, dict):
            tables += [f"[{key}]", *(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())]
        else:
            lines.append(f"{key} = {json.dumps(value, ensure_ascii=False)}")
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join([*lines, *tables]), encoding="utf-8")
    complaint = ""
    try:
        site = Site.open(path)
    except ConfigError as error:
        complaint = str(error)
    if complaint:
        assert str(path) in complaint
        return
    assert site.name == raw["name"]
    assert is_name(site.name)
    with pytest.raises((InputError, StoreError)):
        site.examples("test")


@given(st.text(max_size=60))
def test_any_text_is_told_why_it_is_no_site(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "text.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        Site.open(path)
