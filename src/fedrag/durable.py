"""Folders that change in one step: the old content or the new one is there after a crash, never a mixture.

A folder holds numbered versions and a pointer file, `CURRENT`, which names the version in use:

    my-store/CURRENT        "v000002"
    my-store/v000002/...    the content

`publish` writes the next version beside the current one, makes every file durable, and then replaces the
pointer, which POSIX promises to do atomically. Whatever a crash leaves behind is removed by the next `publish`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from fedrag.errors import StoreError

_POINTER = "CURRENT"
_VERSION = re.compile(r"v(\d{6,})")


def current(folder: Path) -> Path:
    """Return the folder of the version in use. Raises `StoreError` when there is none."""
    pointer = folder / _POINTER
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise StoreError(f"{folder} holds nothing saved by fedrag: there is no {_POINTER} file in it; check the path") from None
    if not _VERSION.fullmatch(name) or not (folder / name).is_dir():
        raise StoreError(f"{pointer} names {name!r}, which is not a version in {folder}; restore the folder from a copy")
    return folder / name


def exists(folder: Path) -> bool:
    """Whether `folder` holds a published version."""
    return (folder / _POINTER).is_file()


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a fresh version folder, then make that version the current one; return it.

    When `write` raises, or the process dies at any point, the version that was current stays so.
    A folder that holds other people's files is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [entry.name for entry in folder.iterdir() if not _ours(entry.name)]
    if foreign and not exists(folder):
        raise StoreError(f"{folder} is not empty and was not written by fedrag (it holds {foreign[0]!r}); choose another folder")
    live = current(folder).name if exists(folder) else ""
    number = 1 + max((int(m[1]) for entry in folder.iterdir() if (m := _VERSION.fullmatch(entry.name))), default=0)
    version = folder / f"v{number:06d}"
    version.mkdir()
    try:
        write(version)
        for path in [*version.rglob("*"), version]:
            _sync(path)
        replace_text(folder / _POINTER, version.name)
    except BaseException:
        if not exists(folder) or current(folder) != version:
            shutil.rmtree(version, ignore_errors=True)
        raise
    for entry in folder.iterdir():
        if _VERSION.fullmatch(entry.name) and entry.name not in (version.name, live):
            shutil.rmtree(entry, ignore_errors=True)
    if live:
        shutil.rmtree(folder / live, ignore_errors=True)
    return version


def replace_text(path: Path, text: str) -> None:
    """Put `text` into `path` so that a reader sees the old or the new content, whole."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    os.replace(aside, path)
    _sync(path.parent)


def _ours(name: str) -> bool:
    return name in (_POINTER, _POINTER + ".new") or bool(_VERSION.fullmatch(name))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
