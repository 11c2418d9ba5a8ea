"""Saving a store again: what was added is written, what is there is linked, and every change is still whole."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crash import run
from fedrag.durable import current, publish
from fedrag.errors import StoreError
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document
from stores.contract import brute_force, ids_and_scores, some

DOCUMENTS, VECTORS = some(400)


def added(store: MemoryStore, start: int, end: int) -> MemoryStore:
    store.add(DOCUMENTS[start:end], VECTORS[start:end])
    return store


def files(folder: Path) -> dict[str, int]:
    """Names in the current version, and their inodes."""
    return {path.name: path.stat().st_ino for path in current(folder).iterdir()}


def check(folder: Path, documents: list[Document], vectors: torch.Tensor) -> None:
    store = MemoryStore.open(folder, verify=True)
    assert list(store.documents()) == documents
    assert torch.equal(store.vectors([document.id for document in documents]), vectors)
    assert ids_and_scores(store.search(VECTORS[:1], 7)[0]) == brute_force(documents, vectors, VECTORS[0], 7)


@pytest.mark.parametrize("reopened", [False, True])
def test_only_what_was_added_is_written(tmp_path: Path, reopened: bool) -> None:
    store = added(MemoryStore(), 0, 300)
    store.save(tmp_path / "s")
    before = files(tmp_path / "s")
    if reopened:
        store = MemoryStore.open(tmp_path / "s")
    added(store, 300, 400).save(tmp_path / "s")
    after = files(tmp_path / "s")
    assert set(after) - set(before) == {"vectors.1.bin", "documents.1.arrow"}
    assert {name for name in before if after[name] == before[name]} == {"vectors.bin", "documents.arrow"}
    assert (current(tmp_path / "s") / "vectors.1.bin").stat().st_size == 100 * 8 * 4
    check(tmp_path / "s", DOCUMENTS, VECTORS)
    store.save(tmp_path / "s")  # nothing came
    assert {name for name, inode in files(tmp_path / "s").items() if after[name] == inode} >= set(after) - {
        "store.json"
    }
    check(tmp_path / "s", DOCUMENTS, VECTORS)


def test_a_system_around_the_store_is_saved_the_same_way(tmp_path: Path) -> None:
    store = added(MemoryStore(), 0, 300)
    inodes = []
    for end in (300, 310, 320):
        if end > 300:
            added(store, end - 10, end)
        version = publish(tmp_path / "system", lambda version: store.save(version / "store"))
        inodes.append(files(version / "store")["vectors.bin"])
        check(version / "store", DOCUMENTS[:end], VECTORS[:end])
    assert len(set(inodes)) == 1


@pytest.mark.parametrize(
    "change", ["removed", "replaced", "moved", "rebuilt", "elsewhere", "file gone", "file changed"]
)
def test_what_is_no_longer_as_it_was_is_written_whole(tmp_path: Path, change: str) -> None:
    store = added(MemoryStore(), 0, 300)
    store.save(tmp_path / "s")
    before, documents, vectors = files(tmp_path / "s"), DOCUMENTS[:300], VECTORS[:300].clone()
    target = tmp_path / "s"
    if change == "removed":
        store.remove(["d0"])
        documents, vectors = documents[1:], vectors[1:]
    elif change == "replaced":
        added(store, 0, 1)
        documents, vectors = [*documents[1:], documents[0]], torch.cat([vectors[1:], vectors[:1]])
    elif change == "moved":
        store.update_vectors(["d0"], torch.ones(1, 8))
        vectors[0] = 1
    elif change == "rebuilt":
        vectors = -vectors
        store.rebuild("new").put([document.id for document in documents], vectors)
        store.rebuild("new").commit()
    elif change == "elsewhere":
        target = tmp_path / "copy"
    elif change == "file gone":
        shutil.rmtree(current(target))
        (target / "CURRENT").unlink()
    else:  # by another process, under the same name
        path = current(target) / "vectors.bin"
        os.replace(shutil.copy(path, tmp_path / "another"), path)
    store.save(target)
    assert set(files(target)) == set(before)
    if change != "file gone":  # whose number may be taken again
        assert not set(files(target).values()) & set(before.values())
    check(target, documents, vectors)
    added(store, 300, 310).save(target)
    check(target, [*documents, *DOCUMENTS[300:310]], torch.cat([vectors, VECTORS[300:310]]))


def test_many_saves_make_few_files_and_write_little(tmp_path: Path) -> None:
    store, written, inodes = MemoryStore(), 0, set[int]()
    for end in range(2, 401, 2):
        added(store, end - 2, end).save(tmp_path / "s")
        new = {name: inode for name, inode in files(tmp_path / "s").items() if name.endswith(".bin")}
        written += sum((current(tmp_path / "s") / name).stat().st_size for name in new if new[name] not in inodes)
        inodes = set(new.values())
        assert len(new) <= 8
    assert written <= 8 * 400 * 32  # whole saves would have written 100 times the vectors
    check(tmp_path / "s", DOCUMENTS, VECTORS)


def test_a_missing_or_cut_part_is_named(tmp_path: Path) -> None:
    added(MemoryStore(), 0, 300).save(tmp_path / "s")
    added(MemoryStore.open(tmp_path / "s"), 300, 400).save(tmp_path / "s")
    for name in ("vectors.1.bin", "documents.1.arrow"):
        path = current(tmp_path / "s") / name
        whole = path.read_bytes()
        path.unlink()
        with pytest.raises(StoreError, match=f"{name} is missing"):
            MemoryStore.open(tmp_path / "s")
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StoreError, match=f"{name} is damaged"):
            MemoryStore.open(tmp_path / "s", verify=True)
        path.write_bytes(whole)
    check(tmp_path / "s", DOCUMENTS, VECTORS)


def test_a_kill_while_what_was_added_is_saved_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    added(MemoryStore(), 0, 30).save(tmp_path / "kept")
    seen = []

    def work() -> None:
        added(MemoryStore.open(tmp_path / "s"), 30, 40).save(tmp_path / "s")

    for at in itertools.count():
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        shutil.copytree(tmp_path / "kept", tmp_path / "s")
        end, steps = run(work, at, "kill")
        seen.append(len(MemoryStore.open(tmp_path / "s", verify=True)))
        check(tmp_path / "s", DOCUMENTS[: seen[-1]], VECTORS[: seen[-1]])
        work()  # the same again, as after a restart
        check(tmp_path / "s", DOCUMENTS[:40], VECTORS[:40])
        if at >= len(steps):
            assert end == "done"
            break
    assert seen == sorted(seen)
    assert set(seen) == {30, 40}
    assert seen.count(30) > 10


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "add", "save", "save", "reopen", "remove", "update"]), st.integers(0, 59)),
        max_size=25,
    )
)
def test_any_history_saves_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder, store = tmp_path_factory.mktemp("any") / "s", MemoryStore()
    store.save(folder)
    truth: dict[str, torch.Tensor] = {}
    for step, (what, at) in enumerate(steps):
        id = f"d{at}"
        if what == "add":
            for row in range(at, at + 1 + at % 7):
                truth.pop(f"d{row}", None)
                truth[f"d{row}"] = VECTORS[row] + step
            store.add(DOCUMENTS[at : at + 1 + at % 7], VECTORS[at : at + 1 + at % 7] + step)
        elif what == "remove":
            store.remove([id])
            truth.pop(id, None)
        elif what == "update" and id in truth:
            truth[id] = VECTORS[step]
            store.update_vectors([id], VECTORS[step : step + 1])
        elif what in ("save", "reopen"):
            store.save(folder)
            if what == "reopen":
                store = MemoryStore.open(folder)
    store.save(folder)
    opened = MemoryStore.open(folder, verify=True)
    assert [document.id for document in opened.documents()] == list(truth)
    if truth:
        assert torch.equal(opened.vectors(list(truth)), torch.stack(list(truth.values())))


def test_what_is_saved_at_home_leaves_memory(tmp_path: Path) -> None:
    """In a process of its own: 200 MB, resident until they are saved."""
    code = """
import sys, torch
from pathlib import Path
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document
resident = lambda: int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
store, found = MemoryStore(), []
for start in range(0, 51_000, 1000):
    if start in (1000, 50_000):
        found.append(resident())
    store.add([Document("text", str(id)) for id in range(start, start + 1000)], torch.full((1000, 1000), start + 0.0))
store.save(sys.argv[1])
found.append(resident())
print((found[1] - found[0]) / 196e6, (found[2] - found[0]) / 196e6, *store.vectors(["1", "50999"])[:, 0].tolist())
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], capture_output=True, text=True, check=True)
    before, after, *values = [float(value) for value in run.stdout.split()]
    assert before > 0.9
    assert after < 0.5
    assert values == [0.0, 50_000.0]
