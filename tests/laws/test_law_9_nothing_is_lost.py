"""Law 9: a kill at every write, fsync and rename of a save leaves the old state or the new one, never a mixture."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crash import How, fsynced, names, run
from fedrag.durable import exists
from fedrag.errors import StoreError
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document

State = tuple[str, list[Document], list[list[float]]]


def filled(name: str, count: int, width: int = 4) -> MemoryStore:
    store = MemoryStore()
    documents = [Document(f"{name} text {i} " * 20, f"d{i}", {"from": name}) for i in range(count)]
    store.add(documents, torch.arange(count * width).view(count, width) + float(len(name)))
    store.fingerprint = name
    return store


def state(store: MemoryStore) -> State:
    documents = list(store.documents())
    return store.fingerprint, documents, store.vectors([d.id for d in documents]).tolist()


def enumerate_ends(
    folder: Path, work: Callable[[], object], how: How, prepare: Callable[[], object], check: Callable[[str], object]
) -> set[str]:
    """Let the work end at each of its steps in turn, and check what it leaves; return the kinds of steps met."""
    for at in itertools.count():
        shutil.rmtree(folder, ignore_errors=True)
        prepare()
        end, steps = run(work, at, how)
        check(end)
        if at >= len(steps):
            assert end == "done"
            return names(steps)
    raise AssertionError("unreachable")


@pytest.mark.parametrize("how", ["kill", "full", "interrupt"])
def test_a_save_over_a_save(tmp_path: Path, how: How) -> None:
    folder = tmp_path / "store"
    old, new, third = filled("old", 3), filled("newer", 5), filled("third one", 2)
    seen: list[State] = []

    def check(end: str) -> None:
        seen.append(state(MemoryStore.open(folder)))
        assert seen[-1] in (state(old), state(new))
        if end == "done":
            assert seen[-1] == state(new)
        third.save(folder)  # the next save works, and clears what was left behind
        assert state(MemoryStore.open(folder)) == state(third)
        assert len(list(folder.iterdir())) == 2

    met = enumerate_ends(folder, lambda: new.save(folder), how, lambda: old.save(folder), check)
    assert met >= {"mkdir", "open", "write", "fsync", "replace", "unlink", "rmdir"}
    assert state(old) in seen
    assert seen.index(state(new)) > 15
    assert all(each == state(new) for each in seen[seen.index(state(new)) :])


@pytest.mark.parametrize("how", ["kill", "full", "interrupt"])
def test_the_first_save(tmp_path: Path, how: How) -> None:
    folder = tmp_path / "below" / "store"
    new = filled("new", 3)

    def check(end: str) -> None:
        if exists(folder):
            assert state(MemoryStore.open(folder)) == state(new)
        else:
            assert end != "done"
            with pytest.raises(StoreError, match="nothing saved"):
                MemoryStore.open(folder)
        new.save(folder)
        assert state(MemoryStore.open(folder)) == state(new)

    enumerate_ends(folder.parent, lambda: new.save(folder), how, lambda: None, check)


@pytest.mark.parametrize("how", ["kill"])
def test_a_store_that_lies_on_the_files_it_replaces(tmp_path: Path, how: How) -> None:
    folder = tmp_path / "store"
    old = filled("old", 20)
    changed = filled("old", 20)

    def change(store: MemoryStore) -> MemoryStore:
        store.remove([f"d{i}" for i in range(0, 20, 3)])
        store.add([Document("added", "added")], torch.ones(1, 4))
        return store

    new = state(change(changed))

    def work() -> None:
        change(MemoryStore.open(folder)).save(folder)

    def check(end: str) -> None:
        assert state(MemoryStore.open(folder)) in ([new] if end == "done" else [state(old), new])

    enumerate_ends(folder, work, how, lambda: old.save(folder), check)


@pytest.mark.parametrize("how", ["kill", "full", "interrupt"])
def test_a_rebuild(tmp_path: Path, how: How) -> None:
    folder = tmp_path / "store"
    old = filled("old", 5)
    vectors = torch.arange(15.0).view(5, 3)
    rows = {f"d{i}": i for i in range(5)}
    new = ("new", list(old.documents()), vectors.tolist())
    waiting: list[int] = []

    def go_on() -> None:
        store = MemoryStore.open(folder)
        if store.fingerprint == "new":
            return
        rebuild = store.rebuild("new")
        for batch in rebuild.missing(2):
            rebuild.put([d.id for d in batch], vectors[[rows[d.id] for d in batch]])
        rebuild.commit()
        store.save(folder)

    def check(end: str) -> None:
        store = MemoryStore.open(folder)
        assert state(store) in ([new] if end == "done" else [state(old), new])
        if store.fingerprint == "old":
            waiting.append(sum(len(batch) for batch in store.rebuild("new").missing(100)))
        go_on()
        assert state(MemoryStore.open(folder)) == new
        shutil.rmtree(folder)

    met = enumerate_ends(folder, go_on, how, lambda: old.save(folder), check)
    assert met >= {"open", "write", "fsync", "replace"}
    assert waiting == sorted(waiting, reverse=True)  # the later it ends, the less is left to do
    assert set(waiting) == {5, 3, 1, 0}


def test_a_failed_put_leaves_the_rebuild_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    filled("old", 4).save(folder)

    def work() -> None:
        rebuild = MemoryStore.open(folder).rebuild("new")
        rebuild.put(["d0"], torch.ones(1, 3))
        try:
            rebuild.put(["d1"], torch.ones(1, 3))
        except OSError:
            assert [d.id for batch in rebuild.missing(9) for d in batch] == ["d1", "d2", "d3"]
            rebuild.put(["d2"], torch.ones(1, 3))  # the disk has room again
            resumed = MemoryStore.open(folder).rebuild("new")
            assert [d.id for batch in resumed.missing(9) for d in batch] == ["d1", "d3"]

    _, steps = run(work, math.inf, "full")
    assert fsynced(steps, folder / "REBUILD")
    opened = [i for i, (name, path) in enumerate(steps) if name == "open" and path.endswith("REBUILD")]
    for at in range(opened[3], opened[3] + 4):  # opened to begin, for the head, for d0, for d1
        shutil.rmtree(folder)
        filled("old", 4).save(folder)
        assert run(work, at, "full")[0] == "done"
