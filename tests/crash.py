"""Run work in a forked process that dies, or meets a full disk or Ctrl-C, at its n-th change of the file system.

for at in itertools.count():
    end, steps = run(work, at, "kill")
    ...check what is left...
    if at >= len(steps):
        break
"""

from __future__ import annotations

import errno
import io
import json
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

How = Literal["kill", "full", "interrupt"]
Step = tuple[str, str]  # what was done, to which path
_DONE, _KILLED, _RAISED, _BROKEN = 0, 9, 3, 4


def run(work: Callable[[], object], at: float, how: How) -> tuple[str, list[Step]]:
    """Return how the work ended ("done", "killed" or "raised") and the steps it tried. Step number `at` goes wrong.

    A kill or a full disk in the middle of a write leaves the first half of it.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        code = _BROKEN
        try:
            code = _guarded(work, at, how, writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        steps = [tuple(json.loads(line)) for line in pipe.read().splitlines()]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {_DONE: "done", _KILLED: "killed", _RAISED: "raised"}[code], steps


def _guarded(work: Callable[[], object], at: float, how: How, report: int) -> int:
    count = 0

    def step(name: str, path: Any, half: Callable[[], object] = lambda: None) -> None:
        nonlocal count
        count += 1
        os.write(report, json.dumps([name, os.fspath(path)]).encode() + b"\n")
        if count - 1 != at:
            return
        if how == "interrupt":
            raise KeyboardInterrupt
        half()
        if how == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        os._exit(_KILLED)

    class File(io.FileIO):
        def write(self, data: Any) -> int:
            view = memoryview(data).cast("B")
            step("write", self.name, lambda: super(File, self).write(view[: len(view) // 2]))
            return super().write(view)

        def truncate(self, size: int | None = None) -> int:
            step("truncate", self.name)
            return super().truncate(size)

    plain_open = io.open

    def counted_open(file: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
        if not set(mode) & set("wax+"):
            return plain_open(file, mode, *args, **settings)
        step("open", file)
        raw = File(file, mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    def counted(name: str) -> None:
        original = getattr(os, name)

        def call(target: Any, *args: Any, **settings: Any) -> Any:
            step(name, os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target)
            return original(target, *args, **settings)

        setattr(os, name, call)

    io.open = counted_open
    for name in ("fsync", "replace", "rename", "link", "mkdir", "unlink", "remove", "rmdir"):
        counted(name)
    try:
        work()
    except (OSError, KeyboardInterrupt):
        return _RAISED
    return _DONE


def names(steps: list[Step]) -> set[str]:
    return {name for name, _ in steps}


def fsynced(steps: list[Step], path: Path) -> bool:
    """Whether the last change of this path was followed by an fsync of it."""
    found = [name for name, where in steps if Path(where) == path]
    return bool(found) and found[-1] == "fsync"
