"""The log of a server: what went wrong and where in the code, never what was asked or found.

>>> import sys
>>> try:
...     int("a question")
... except ValueError:
...     text = Discreet().formatException(sys.exc_info())
>>> "a question" in text, text.splitlines()[0]
(False, 'ValueError')
"""

from __future__ import annotations

import copy
import logging
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


class Discreet(logging.Formatter):
    """Exceptions by class and place in the code, without what they say.

    The message of such a record stays a template: what is filled in may be what was asked for.
    """

    def format(self, record: logging.LogRecord) -> str:
        """A record as text; others see it unchanged, and how others write its exception is not used."""
        if record.exc_info:
            record = copy.copy(record)
            record.args, record.exc_text = (), None
        return super().format(record)

    def formatException(self, ei: Any) -> str:
        """The places and the class of an exception, and of those that it came from."""
        error: BaseException | None = ei[1]
        lines: list[str] = []
        seen: set[int] = set()  # an error may come from itself
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            places = traceback.extract_tb(error.__traceback__)
            lines += [
                type(error).__qualname__,
                *(f"  {place.filename}:{place.lineno} {place.name}" for place in places),
            ]
            error = error.__cause__ or error.__context__
        return "\n".join(lines)


def log_to_stderr() -> None:
    """Write warnings and errors to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Discreet("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


@contextmanager
def log_unchanged() -> Generator[None]:
    """Take away the handlers that a library gives the root logger meanwhile: a program's log is its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in [one for one in root.handlers if one not in handlers]:
            root.removeHandler(handler)
        root.setLevel(level)
