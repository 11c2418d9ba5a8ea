from __future__ import annotations

import json
import sys
import threading
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedrag.errors import InputError, StoreError
from fedrag.stores.matrix import DType
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document
from stores.contract import StoreContract, brute_force, ids_and_scores, some


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore


class TestReopenedStore(StoreContract):
    """The same promises, from the first change on, for a store that lies on mapped files."""

    @pytest.fixture
    def store(self, tmp_path: Path):
        def make() -> MemoryStore:
            MemoryStore().save(tmp_path / "store")
            return MemoryStore.open(tmp_path / "store")

        return make


class SavesOften(MemoryStore):
    """Writes itself to its folder after every change and goes on from the mapped files."""

    folder: Path

    def add(self, documents, vectors):
        super().add(documents, vectors)
        self.save(self.folder)
        reopened = MemoryStore.open(self.folder)
        self._table, self._matrix, self._row = reopened._table, reopened._matrix, reopened._row


class TestSavedAfterEveryAdd(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path):
        def make() -> MemoryStore:
            made = SavesOften()
            made.folder = tmp_path / f"store{sum(1 for _ in tmp_path.iterdir())}"
            return made

        return make


def saved(folder: Path, count: int = 20) -> tuple[MemoryStore, list[Document], torch.Tensor]:
    documents, vectors = some(count)
    store = MemoryStore()
    store.add(documents, vectors)
    store.fingerprint = "encoder"
    store.save(folder)
    return store, documents, vectors


def version(folder: Path) -> Path:
    return folder / (folder / "CURRENT").read_text()


def test_save_then_open_is_the_identity(tmp_path: Path) -> None:
    store, documents, vectors = saved(tmp_path / "s")
    opened = MemoryStore.open(str(tmp_path / "s"))
    assert opened.fingerprint == "encoder"
    assert list(opened.documents()) == documents
    assert torch.equal(opened.vectors([d.id for d in documents]), vectors)
    assert opened.search(vectors, 5) == store.search(vectors, 5)


def test_a_reopened_store_changes_without_touching_its_files(tmp_path: Path) -> None:
    _, documents, vectors = saved(tmp_path / "s")
    opened = MemoryStore.open(tmp_path / "s")
    opened.update_vectors(["d0"], torch.zeros(1, 8))
    opened.remove(["d1"])
    opened.add([Document("new", "new"), Document("replaced", "d2")], torch.ones(2, 8))
    assert list(MemoryStore.open(tmp_path / "s").documents()) == documents
    assert torch.equal(MemoryStore.open(tmp_path / "s").vectors(["d0"]), vectors[:1])
    opened.save(tmp_path / "s")
    again = MemoryStore.open(tmp_path / "s")
    assert list(again.documents()) == list(opened.documents())
    assert again.search(vectors, 30) == opened.search(vectors, 30)
    assert [d.id for d in again.documents()] == ["d0", *(f"d{i}" for i in range(3, 20)), "new", "d2"]


def test_the_folder_holds_fixed_names_only(tmp_path: Path) -> None:
    store = MemoryStore()
    store.add([Document("x", "../../escape"), Document("y", "CON"), Document("z", "a/b\0c")], torch.eye(3))
    store.save(tmp_path / "s")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    names = ["", "/documents.arrow", "/store.json", "/vectors.bin"]
    assert found == ["s", "s/CURRENT", *(f"s/v000001{name}" for name in names)]
    assert [d.id for d in MemoryStore.open(tmp_path / "s").documents()] == ["../../escape", "CON", "a/b\0c"]


@pytest.mark.parametrize("name", ["vectors.bin", "documents.arrow"])
@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_truncated_file_is_named_with_its_bytes(tmp_path: Path, name: str, cut: int) -> None:
    saved(tmp_path / "s")
    path = version(tmp_path / "s") / name
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(StoreError, match=rf"{name} has {cut} bytes, expected {len(whole)} bytes"):
        MemoryStore.open(tmp_path / "s")
    path.unlink()
    with pytest.raises(StoreError, match=rf"{name} is missing, expected {len(whole)} bytes"):
        MemoryStore.open(tmp_path / "s")


def test_a_newer_format_says_upgrade(tmp_path: Path) -> None:
    saved(tmp_path / "s")
    about = version(tmp_path / "s") / "store.json"
    about.write_text(json.dumps({"format": 4, "something": "new"}))
    with pytest.raises(StoreError, match=r"format 4; .* up to 3: upgrade fedrag"):
        MemoryStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [
        {"width": 9},
        {"documents": 19},
        {"dtype": "float8"},
        {"longest": None},
        {"fingerprint": 3},
        {"files": {}},
        {"crc32": {}},
        {"crc32": ["vectors.bin", "documents.arrow"]},
        {"format": 1},
        {"width": -8, "documents": -20},
        {"surplus": 1},
    ],
)
def test_a_description_that_cannot_be_true(tmp_path: Path, change: dict) -> None:
    saved(tmp_path / "s")
    about = version(tmp_path / "s") / "store.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    with pytest.raises(StoreError, match=r"restore .* from a copy"):
        MemoryStore.open(tmp_path / "s")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"3", b'{"format": 1}'])
def test_a_description_that_is_none(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path / "s")
    (version(tmp_path / "s") / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.json"):
        MemoryStore.open(tmp_path / "s")


@pytest.mark.parametrize("name", ["vectors.bin", "documents.arrow"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_changed_bit_is_found_when_asked_for(tmp_path: Path, name: str, dtype: DType) -> None:
    documents, vectors = some(20)
    store = MemoryStore(dtype=dtype)
    store.add(documents, vectors)
    store.remove(["d3"])
    store.save(tmp_path / "s")
    assert list(MemoryStore.open(tmp_path / "s", verify=True).documents()) == list(store.documents())
    path = version(tmp_path / "s") / name
    whole = path.read_bytes()
    assert f"{zlib.crc32(whole):08x}" in (path.parent / "store.json").read_text()
    for place in (0, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StoreError, match=rf"{name} is damaged: .* restore the store from a copy or build it again"):
            MemoryStore.open(tmp_path / "s", verify=True)


def test_an_empty_store_has_checksums(tmp_path: Path) -> None:
    MemoryStore().save(tmp_path / "s")
    assert len(MemoryStore.open(tmp_path / "s", verify=True)) == 0


def test_a_store_of_the_first_format_opens(tmp_path: Path) -> None:
    store, documents, vectors = saved(tmp_path / "s")
    about = version(tmp_path / "s") / "store.json"
    said = json.loads(about.read_text()) | {"format": 1}
    del said["crc32"]
    about.write_text(json.dumps(said))
    opened = MemoryStore.open(tmp_path / "s")
    assert list(opened.documents()) == documents
    assert opened.search(vectors, 5) == store.search(vectors, 5)
    with pytest.raises(StoreError, match=r"store\.json holds no checksums .* save it again"):
        MemoryStore.open(tmp_path / "s", verify=True)
    opened.save(tmp_path / "s")
    assert MemoryStore.open(tmp_path / "s", verify=True).search(vectors, 5) == store.search(vectors, 5)


def test_documents_that_are_no_arrow_file(tmp_path: Path) -> None:
    saved(tmp_path / "s")
    path = version(tmp_path / "s") / "documents.arrow"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(StoreError, match=r"documents\.arrow is damaged"):
        MemoryStore.open(tmp_path / "s")


@given(data=st.data())
def test_a_damaged_folder_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "s"
    _, documents, vectors = saved(folder)
    names = ["store.json", "vectors.bin", "documents.arrow", "../CURRENT"]
    path = version(folder) / data.draw(st.sampled_from(names))
    content = bytearray(path.read_bytes())
    # a changed bit in a mapped file is looked for when asked: that is to read all of it
    verify = path.suffix in (".bin", ".arrow") and data.draw(st.booleans())
    if (path.suffix in (".bin", ".arrow") and not verify) or data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
            content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        store = MemoryStore.open(folder, verify=verify)
        found = list(store.documents())
    except StoreError as error:
        assert str(folder) in str(error)  # noqa: PT017
        return
    assert found == documents
    assert torch.equal(store.vectors([d.id for d in documents]), vectors)


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="CURRENT"):
        MemoryStore.open(tmp_path / "absent")
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"letter\.txt"):
        MemoryStore().save(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        MemoryStore().save(tmp_path / "letter.txt")
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_bfloat16_halves_the_vectors_and_searches_what_is_stored(tmp_path: Path) -> None:
    documents, vectors = some(300)
    store = MemoryStore(dtype="bfloat16")
    store.add(documents, vectors)
    rounded = vectors.bfloat16().float()
    assert torch.equal(store.vectors([d.id for d in documents]), rounded)
    store.save(tmp_path / "s")
    assert (version(tmp_path / "s") / "vectors.bin").stat().st_size == 300 * 8 * 2
    for each in (store, MemoryStore.open(tmp_path / "s")):
        each.update_vectors(["d7"], vectors[7:8])
        for query, hits in zip(vectors[:5], each.search(vectors[:5], 9), strict=True):
            assert ids_and_scores(hits) == brute_force(documents, rounded, query, 9)
    with pytest.raises(InputError, match="float16"):
        MemoryStore(dtype="float16")


def test_search_is_exact_under_autocast() -> None:
    documents, vectors = some(400, 32)
    store = MemoryStore()
    store.add(documents, vectors)
    expected = store.search(vectors[:3], 50)
    with torch.autocast("cpu", torch.bfloat16):
        assert store.search(vectors[:3], 50) == expected


@pytest.mark.parametrize("came", ["added", "replaced", "reopened", "after others went", "rebuilt"])
def test_vectors_of_very_different_length_are_ranked_exactly(came: str, tmp_path: Path) -> None:
    # float32 products of these err by more than the scores differ, so that the first candidates do not suffice
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2000, 16, generator=generator)
    vectors[:, 0] = 1e6
    documents = [Document("x", f"{i:04}") for i in range(2000)]
    ids = [document.id for document in documents]
    store = MemoryStore()
    store.add(documents, torch.zeros(2000, 16) if came in ("replaced", "rebuilt") else vectors)
    if came == "replaced":
        store.update_vectors(ids, vectors)
    elif came == "rebuilt":
        store.rebuild("new").put(ids, vectors)
        store.rebuild("new").commit()
    elif came == "reopened":
        store.save(tmp_path / "s")
        store = MemoryStore.open(tmp_path / "s")
    elif came == "after others went":
        store.remove(ids[1000:])
        documents, vectors = documents[:1000], vectors[:1000]
    queries = torch.randn(40, 16, generator=generator) * 0.1
    queries[:, 0] = 1
    for query, hits in zip(queries, store.search(queries, 5), strict=True):
        assert ids_and_scores(hits) == brute_force(documents, vectors, query, 5)


def test_a_rebuild_outlives_the_process(tmp_path: Path) -> None:
    _, documents, vectors = saved(tmp_path / "s")
    first = MemoryStore.open(tmp_path / "s")
    first.rebuild("new").put([d.id for d in documents[:12]], vectors[:12, :3])
    second = MemoryStore.open(tmp_path / "s")  # as after a crash of the first
    assert second.fingerprint == "encoder"
    second.add([Document("changed", "d3")], torch.ones(1, 8))
    second.save(tmp_path / "s")
    third = MemoryStore.open(tmp_path / "s")
    waiting = [d.id for batch in third.rebuild("new").missing(3) for d in batch]
    assert waiting == [*(f"d{i}" for i in range(12, 20)), "d3"]
    third.rebuild("new").put(waiting, torch.zeros(9, 3))
    third.rebuild("new").commit()
    assert (tmp_path / "s" / "REBUILD").is_file()  # until its vectors are saved
    third.save(tmp_path / "s")
    assert not (tmp_path / "s" / "REBUILD").exists()
    done = MemoryStore.open(tmp_path / "s")
    assert done.fingerprint == "new"
    assert torch.equal(
        done.vectors(["d0", "d11", "d3"]), torch.stack([vectors[0, :3], vectors[11, :3], torch.zeros(3)])
    )


def test_a_rebuild_follows_its_store_into_another_folder(tmp_path: Path) -> None:
    store, _, vectors = saved(tmp_path / "s")
    rebuild = store.rebuild("new")
    rebuild.put(["d0", "d1"], vectors[:2, :3])
    store.save(tmp_path / "other")
    rebuild.put(["d2"], vectors[2:3, :3])
    resumed = MemoryStore.open(tmp_path / "other").rebuild("new")
    assert sum(len(batch) for batch in resumed.missing(50)) == 17


def test_a_store_saved_elsewhere_leaves_no_journal_where_it_came_from(tmp_path: Path) -> None:
    _, documents, vectors = saved(tmp_path / "s")
    before = sorted(path.name for path in (tmp_path / "s").iterdir())
    store = MemoryStore.open(tmp_path / "s")
    for fingerprint in ("new", "newer"):  # as a training run does that refreshes twice
        store.rebuild(fingerprint).put([d.id for d in documents], vectors[:, :3])
        store.rebuild(fingerprint).commit()
    store.save(tmp_path / "tuned")
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == before
    assert MemoryStore.open(tmp_path / "s").fingerprint == "encoder"
    assert MemoryStore.open(tmp_path / "tuned").fingerprint == "newer"


def test_a_store_saved_elsewhere_leaves_the_journal_of_another_rebuild(tmp_path: Path) -> None:
    _, _, vectors = saved(tmp_path / "s")
    MemoryStore.open(tmp_path / "s").rebuild("another").put(["d0"], vectors[:1])
    MemoryStore.open(tmp_path / "s").save(tmp_path / "copy")
    assert sum(len(batch) for batch in MemoryStore.open(tmp_path / "s").rebuild("another").missing(50)) == 19


@pytest.mark.parametrize("order", ["first begins", "second begins"])
def test_two_rebuilds_in_one_folder_never_take_each_others_vectors(tmp_path: Path, order: str) -> None:
    _, documents, _ = saved(tmp_path / "s")
    rebuilds = {name: MemoryStore.open(tmp_path / "s").rebuild(name) for name in ("one", "two")}
    for document in documents[:6]:
        for name in sorted(rebuilds, reverse=order == "second begins"):
            rebuilds[name].put([document.id], torch.full((1, 3), float(len(name) if name == "one" else 7)))
    for name, wrong in (("one", 7.0), ("two", 3.0)):
        store = MemoryStore.open(tmp_path / "s")
        resumed = store.rebuild(name)
        for batch in resumed.missing(50):
            resumed.put([d.id for d in batch], torch.zeros(len(batch), 3))
        resumed.commit()
        assert wrong not in store.vectors([d.id for d in documents])


def test_a_damaged_journal_loses_its_tail_only(tmp_path: Path) -> None:
    _, documents, vectors = saved(tmp_path / "s")
    rebuild = MemoryStore.open(tmp_path / "s").rebuild("new")
    journal = tmp_path / "s" / "REBUILD"
    ends = [journal.stat().st_size]
    for document, vector in zip(documents[:3], vectors, strict=False):
        rebuild.put([document.id], vector[None])
        ends.append(journal.stat().st_size)
    whole = journal.read_bytes()
    for size in [0, 5, ends[0], ends[0] + 1, ends[1], ends[2] - 1, ends[2] + 12, ends[3]]:
        kept = max(0, sum(end <= size for end in ends) - 1)
        for tail in (b"", b"\xff" * 30, b"\0" * 30):
            journal.write_bytes(whole[:size] + tail)
            resumed = MemoryStore.open(tmp_path / "s").rebuild("new")
            assert sum(len(batch) for batch in resumed.missing(50)) == 20 - kept
            resumed.put(["d9"], vectors[9:10])
            again = MemoryStore.open(tmp_path / "s").rebuild("new")
            assert sum(len(batch) for batch in again.missing(50)) == 19 - kept


def test_searches_from_other_threads_see_whole_adds() -> None:
    store = MemoryStore()
    stop, sizes = threading.Event(), set()

    def ask() -> None:
        while not stop.is_set():
            sizes.add(len(store.search(torch.ones(1, 4), 10_000)[0]) % 100)

    asking = threading.Thread(target=ask)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        asking.start()
        for start in range(0, 3000, 100):
            store.add([Document("t", str(i)) for i in range(start, start + 100)], torch.ones(100, 4))
            store.remove([str(i) for i in range(start, start + 100)] if start % 300 else [])
    finally:
        stop.set()
        asking.join()
        sys.setswitchinterval(usual)
    assert sizes == {0}


def test_repeated_replacing_does_not_grow_the_store() -> None:
    documents, vectors = some(50)
    store = MemoryStore()
    for _ in range(20):
        store.add(documents, vectors)
    assert len(store) == 50
    assert store._table.rows <= 2 * 50 + 16
    assert ids_and_scores(store.search(vectors[:1], 60)[0]) == brute_force(documents, vectors, vectors[0], 60)
