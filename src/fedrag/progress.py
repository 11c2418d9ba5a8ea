"""Progress of long work: a bar on a terminal or in a notebook, plain lines now and then in a log.

>>> import io
>>> log = io.StringIO()
>>> with track(total=200, desc="index", unit="doc", file=log) as shown:
...     _ = shown.update(200)
>>> log.getvalue().splitlines()[-1]
'index: 200/200 doc'
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import std
from tqdm.auto import tqdm

_SECONDS = 20.0
"""Between two lines of a log."""


if TYPE_CHECKING:
    Bar = std.tqdm[Any]
else:
    Bar = std.tqdm


class _Lines(Bar):
    """A bar for where nothing can be drawn over: each state is a line of its own, the last one always."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "mininterval": _SECONDS, "maxinterval": _SECONDS, "miniters": 1})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the state as a line, but none before anything is done."""
        if self.n > self.initial:
            total = "" if self.total is None else f"/{self.total:,}"
            told = f", {self.postfix}" if self.postfix else ""
            self.fp.write(f"{self.desc or 'done'}: {self.n:,}{total} {self.unit}{told}\n")

    def close(self) -> None:
        """Write the last state, once; none of what was over before its delay."""
        if not self.disable:
            self.disable = True
            self._decr_instances(self)  # pyright: ignore[reportAttributeAccessIssue]
            if time.time() >= self.start_t + self.delay:
                self.display()


def track(items: Iterable[Any] | None = None, *, file: TextIO | None = None, **settings: Any) -> Bar:
    """A `tqdm` over `items`, or one moved on by `update`; `settings` are tqdm's (`total`, `desc`, `unit`, ...)."""
    stream = file or sys.stderr
    kind = tqdm if _draws(stream) else _Lines
    return kind(items, file=file, **settings)


def _draws(stream: TextIO) -> bool:
    return stream.isatty() or "ipykernel" in sys.modules
