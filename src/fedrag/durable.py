"""Folders that change in one step: the old content or the new one is there after a crash, never a mixture.

A folder holds numbered versions and a pointer file, `CURRENT`, which names the version in use:

    my-store/CURRENT        "v000002"
    my-store/v000002/...    the content

`publish` writes the next version beside the current one, makes every file durable, and then replaces the
pointer, which POSIX promises to do atomically. Whatever a crash leaves behind is removed by the next `publish`.
Two processes that publish at the same time take turns; the later one's version stays. Without POSIX (Windows)
folders can be read; `publish` raises `StoreError`.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp()) / "notes"
>>> for text in ("first", "second"):
...     version = publish(folder, lambda version: replace_text(version / "note.txt", text))
>>> (current(folder) / "note.txt").read_text()
'second'
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from fedrag.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows, where reading works but none of what `publish` promises does
    fcntl = None

_POINTER = "CURRENT"
_VERSION = re.compile(r"v(\d{6,})")


def current(folder: Path) -> Path:
    """Return the folder of the version in use. Raises `StoreError` when there is none."""
    name = _named(folder)
    while not (folder / name).is_dir():
        again = _named(folder)
        if again == name:
            raise StoreError(f"{folder / _POINTER} names {name!r}, which is not there; restore the folder from a copy")
        name = again  # another process published meanwhile and removed the version that was current
    return folder / name


def exists(folder: Path) -> bool:
    """Whether `folder` holds a published version."""
    return (folder / _POINTER).is_file()


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a fresh version folder, then make that version the current one; return it.

    When `write` raises, or the process dies at any point, the version that was current stays so.
    A folder that holds other people's files is refused.
    """
    with _alone(folder):
        check(folder)
        live = current(folder) if exists(folder) else None
        number = 1 + max((int(m[1]) for entry in folder.iterdir() if (m := _VERSION.fullmatch(entry.name))), default=0)
        version = folder / f"v{number:06d}"
        version.mkdir()
        try:
            write(version)
            # the entry of the version in its folder must be there before the pointer names it
            for path in [*version.rglob("*"), version, folder]:
                sync(path)
            replace_text(folder / _POINTER, version.name)
        except BaseException:
            # once the pointer names it, the version stays, even if what comes after failed
            if not exists(folder) or _named(folder) != version.name:
                shutil.rmtree(version, ignore_errors=True)
            raise
        for entry in list(folder.iterdir()):
            if _VERSION.fullmatch(entry.name) and entry not in (version, live):
                shutil.rmtree(entry, ignore_errors=True)
        if live is not None:
            shutil.rmtree(live, ignore_errors=True)
    return version


def check(folder: Path) -> None:
    """Raise `StoreError` where `publish` would refuse a folder for what is there: ask before long work, not after."""
    if folder.exists() and not folder.is_dir():
        raise _no_folder(folder)
    if folder.is_dir() and not exists(folder) and (entries := [e.name for e in folder.iterdir() if not _ours(e.name)]):
        raise StoreError(
            f"{folder} is not empty and was not written by fedrag (it holds {entries[0]!r}); choose another folder"
        )


def replace_text(path: Path, text: str) -> None:
    """Put `text` into `path` so that a reader sees the old or the new content, whole."""
    aside = path.with_name(path.name + ".new")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _ours(name: str) -> bool:
    return name in (_POINTER, _POINTER + ".new") or bool(_VERSION.fullmatch(name))


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of entries, outlive a power cut; without POSIX, nothing."""
    if fcntl is None:
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(folder: Path) -> str:
    pointer = folder / _POINTER
    try:
        name = pointer.read_bytes().decode("utf-8", "replace").strip()
    except FileNotFoundError:
        raise StoreError(
            f"{folder} holds nothing saved by fedrag: there is no {_POINTER} file in it; check the path"
        ) from None
    if not _VERSION.fullmatch(name):
        raise StoreError(f"{pointer} holds {name[:40]!r}, not the name of a version; restore the folder from a copy")
    return name


def _no_folder(path: Path) -> StoreError:
    return StoreError(f"{path} is a file; give the path of a folder, new or written by fedrag")


def _make(folder: Path) -> None:
    """Create a folder and its parents durably."""
    if folder.exists() and not folder.is_dir():
        raise _no_folder(folder)
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Make the folder and wait until no other process publishes into it. The lock ends with the process, however."""
    if fcntl is None:
        raise StoreError(
            f"{folder} cannot be saved on this system: fedrag writes with the file locks of POSIX, which Linux and "
            "macOS have; on Windows run it inside WSL"
        )
    _make(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
