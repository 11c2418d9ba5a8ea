from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from crash import fsynced, run
from fedrag.durable import current, exists, publish, replace_text
from fedrag.errors import StoreError


def note(text: str):
    def write(version: Path) -> None:
        (version / "sub").mkdir()
        (version / "sub" / "note.txt").write_text(text)

    return write


def read(folder: Path) -> str:
    return (current(folder) / "sub" / "note.txt").read_text()


def test_publish_replaces_and_cleans(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert not exists(folder)
    with pytest.raises(StoreError, match="nothing saved by fedrag"):
        current(folder)
    for text in ("one", "two", "three"):
        assert publish(folder, note(text)) == current(folder)
        assert read(folder) == text
        assert sorted(entry.name for entry in folder.iterdir()) == ["CURRENT", current(folder).name]
    assert exists(folder)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("mine")])
def test_a_failing_write_leaves_the_current_version(tmp_path: Path, error: BaseException) -> None:
    def fail(version: Path) -> None:
        note("half")(version)
        raise error

    with pytest.raises(type(error)):
        publish(tmp_path, fail)
    assert list(tmp_path.iterdir()) == []
    publish(tmp_path, note("one"))
    with pytest.raises(type(error)):
        publish(tmp_path, fail)
    assert read(tmp_path) == "one"
    assert len(list(tmp_path.iterdir())) == 2


def test_leftovers_of_a_crash_are_cleared(tmp_path: Path) -> None:
    publish(tmp_path, note("one"))
    (tmp_path / "v000007").mkdir()
    (tmp_path / "v000007" / "half").write_text("x")
    (tmp_path / "CURRENT.new").write_text("v0000")
    assert read(tmp_path) == "one"
    assert publish(tmp_path, note("two")).name == "v000008"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["CURRENT", "v000008"]


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        publish(tmp_path, note("one"))
    with pytest.raises(StoreError, match="is a file"):
        publish(tmp_path / "thesis.tex", note("one"))
    (tmp_path / "CURRENT").write_text("MANIFEST-000004\n")  # as LevelDB has it
    with pytest.raises(StoreError, match="MANIFEST-000004"):
        publish(tmp_path, note("one"))
    assert (tmp_path / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("name", ["", "../elsewhere", "v1", "v000001/..", "v000009", "\0"])
def test_a_pointer_to_nowhere_is_named(tmp_path: Path, name: str) -> None:
    publish(tmp_path, note("one"))
    (tmp_path / "CURRENT").write_text(name)
    with pytest.raises(StoreError, match="CURRENT"):
        current(tmp_path)
    with pytest.raises(StoreError, match="CURRENT"):
        publish(tmp_path, note("two"))


def test_current_follows_a_publish_that_comes_in_between(tmp_path: Path) -> None:
    # a reader that read the pointer just before it moved finds the old version gone and looks again
    publish(tmp_path, lambda version: None)

    def keep_publishing() -> None:
        for _ in range(60):
            publish(tmp_path, lambda version: None)

    writer = threading.Thread(target=keep_publishing)
    writer.start()
    while writer.is_alive():
        assert current(tmp_path).name.startswith("v")
    writer.join()


def test_publishers_take_turns(tmp_path: Path) -> None:
    inside: list[str] = []

    def write(name: str):
        def slowly(version: Path) -> None:
            inside.append(name)
            time.sleep(0.05)
            note(name)(version)
            inside.append(name)

        return slowly

    publishers = [threading.Thread(target=publish, args=(tmp_path, write(name))) for name in "abcd"]
    for each in publishers:
        each.start()
    for each in publishers:
        each.join()
    assert inside[::2] == inside[1::2]
    assert read(tmp_path) == inside[-1]


def test_everything_is_durable_before_the_pointer_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    publish(folder, note("one"))
    end, steps = run(lambda: publish(folder, note("two")), float("inf"), "kill")
    assert end == "done"
    moved = [name for name, _ in steps].index("replace")
    version = current(folder)
    for path in (version / "sub" / "note.txt", version / "sub", version, folder, folder / "CURRENT.new"):
        assert fsynced(steps[:moved], path), path
    assert steps[moved + 1] == ("fsync", str(folder))  # and the move itself before anything is removed


def test_replace_text(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("first", "", "dritte ü"):
        replace_text(path, text)
        assert path.read_text(encoding="utf-8") == text
        assert list(tmp_path.iterdir()) == [path]
    for at in range(6):
        for how in ("kill", "full", "interrupt"):
            run(lambda: replace_text(path, "new"), at, how)
            assert path.read_text(encoding="utf-8") in ("dritte ü", "new")
            replace_text(path, "dritte ü")


WITHOUT_POSIX = """
import sys
sys.modules["fcntl"] = None  # an import of it now fails, as on Windows
from pathlib import Path
from fedrag.durable import current, publish, replace_text
from fedrag.errors import StoreError
folder = Path(sys.argv[1])
print((current(folder) / "sub" / "note.txt").read_text())
replace_text(folder.parent / "report.json", "{}")
try:
    publish(folder.parent / "new", lambda version: None)
except StoreError as error:
    print(error)
print((folder.parent / "new").exists())
"""


def test_without_posix_folders_can_be_read_and_writing_says_what_is_wanting(tmp_path: Path) -> None:
    publish(tmp_path / "old", note("one"))
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, str(tmp_path / "old")], capture_output=True, text=True, check=True
    )
    text, complaint, made = child.stdout.splitlines()
    assert (text, made) == ("one", "False")
    assert "cannot be saved on this system" in complaint
    assert (tmp_path / "report.json").read_text() == "{}"
