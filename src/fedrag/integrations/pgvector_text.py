"""Texts that PostgreSQL cannot hold, escaped behind a mark: those with a NUL character, and those that begin so.

>>> escaped(r"C:\\keys"), escaped("a\\0b") == MARK + r"a\\0b", plainly(escaped("a\\0b")) == "a\\0b"
('C:\\\\keys', True, True)
"""

from __future__ import annotations

import re

MARK = "\ue000"  # the first character, of those for private use, of an escaped text or id


def holdable(text: str) -> bool:
    """Whether PostgreSQL can hold a text: no NUL is in it, and no half of a character."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def escaped(text: str) -> str:
    """Return a text that PostgreSQL keeps, a different one for each; nearly always the text itself."""
    if "\0" not in text and not text.startswith(MARK):
        return text
    return MARK + text.replace("\\", "\\\\").replace("\0", "\\0")


def plainly(text: str) -> str:
    """Undo `escaped`."""
    if not text.startswith(MARK):
        return text
    return re.sub(r"\\(.)", lambda found: "\0" if found[1] == "0" else found[1], text[1:])
