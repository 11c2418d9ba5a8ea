"""What a folder's files looked like when a system took them in, so that unchanged ones need not be read again.

A file `sources.json` lies beside the versions of a saved system. It holds, for each file, its size, its time of change,
how many passages it gave and a digest of what it says; of a table, the ids of its rows; no text. It is believed for the
version of the system that it names, for the same settings, and no longer: a system that was saved by others in between,
or restored, is read anew, which costs time and nothing else.

>>> import os, tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> keys = File(folder / "keys.md", "docs/keys.md")
>>> _ = keys.path.write_text("Keys are rotated.")
>>> os.utime(keys.path, (1, 1))
>>> manifest = Manifest.read(folder, "v000001", "200 20", "docs")
>>> manifest.note(keys, manifest.look(keys), passages=1, digest="d1")
>>> manifest.write(folder, "v000001")
>>> Manifest.read(folder, "v000001", "200 20", "docs").unchanged(keys).passages
1
>>> Manifest.read(folder, "v000002", "200 20", "docs").unchanged(keys) is None
True
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedrag.data.files import KINDS, File
from fedrag.durable import replace_text

_NAME = "sources.json"
_FORMAT = 1
"""Raised whenever a file would be read into other passages than before."""
_SETTLED = 2_000_000_000
"""Nanoseconds: a file that changed so shortly before it was read may change again and look the same."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as it was. `changed` is its time of change in nanoseconds, 0 where the file is to be read again.

    `rows` are the ids that a table gave.
    """

    size: int
    changed: int
    passages: int = 0
    digest: str = ""
    rows: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Manifest:
    """The files of one folder; those of a system's other folders are kept as they are."""

    settings: str
    folder: str
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    made: dict[str, Any] = field(default_factory=dict[str, Any])
    """The options that the system was made with."""
    _others: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def read(cls, system: Path, version: str, settings: str, folder: str | Path) -> Manifest:
        """What is known; nothing where there is no such file, or none that this fedrag wrote."""
        name = sha256(os.path.abspath(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        try:
            found = json.loads((system / _NAME).read_text(encoding="utf-8"))
            if found["format"] != _FORMAT:
                return cls(settings, name)
            folders: dict[str, Any] = found["folders"]
            own = folders.pop(name, {"settings": "", "files": {}})
            for other in folders.values():
                _ = {source: Entry(**entry) for source, entry in other["files"].items()}
            entries = {source: Entry(**entry) for source, entry in own["files"].items()}
            if found["version"] != version or own["settings"] != settings:
                entries = {source: replace(entry, changed=0) for source, entry in entries.items()}
            if found["version"] != version:
                for other in folders.values():
                    other["settings"] = ""
            return cls(settings, name, entries, made_with(system, version), folders)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(settings, name)

    def write(self, system: Path, version: str) -> None:
        """Put it beside the versions of a saved system, for the version that it describes."""
        own = {"settings": self.settings, "files": {source: asdict(entry) for source, entry in self.entries.items()}}
        folders = {**self._others, self.folder: own}
        told = {"format": _FORMAT, "version": version, "made": self.made, "folders": folders}
        replace_text(system / _NAME, json.dumps(told))

    def look(self, file: File) -> Entry:
        """The state of a file, to be taken before it is read. Of one that is gone, a state that no file has."""
        try:
            state = file.path.stat()
        except OSError:
            return Entry(-1, 0)
        settled = time.time_ns() - state.st_mtime_ns > _SETTLED
        return Entry(state.st_size, state.st_mtime_ns if settled else 0)

    def unchanged(self, file: File) -> Entry | None:
        """What is known of a file that still looks as it did."""
        known, now = self.entries.get(file.source), self.look(file)
        if known is None or not known.changed:
            return None
        return known if (known.size, known.changed) == (now.size, now.changed) else None

    def note(self, file: File, state: Entry, *, passages: int, digest: str, rows: Iterable[str] = ()) -> None:
        """Remember what a file gave."""
        self.entries[file.source] = Entry(state.size, state.changed, passages, digest, list(rows))

    def rows(self, file: File) -> list[str]:
        """The ids that a table gave before; they grow in place while it is read again, and it is not believed yet."""
        known = self.entries.get(file.source)
        self.entries[file.source] = under_way = Entry(0, 0, rows=known.rows if known else [])
        return under_way.rows

    def elsewhere(self, file: File) -> set[str]:
        """The ids that the system's other tables gave."""
        own = (entry.rows for source, entry in self.entries.items() if source != file.source)
        others = (entry.get("rows", ()) for other in self._others.values() for entry in other["files"].values())
        return {id for rows in (*own, *others) for id in rows}

    def absent(self, files: Sequence[File]) -> list[str]:
        """The sources that the folder gave once and has no more; a table, which a folder does not give, is none."""
        gone = self.entries.keys() - {file.source for file in files}
        return sorted(source for source in gone if source.lower().endswith(KINDS))

    def forget(self, source: str) -> None:
        """Know nothing of a file any more."""
        self.entries.pop(source, None)


def made_with(system: Path, version: str) -> dict[str, Any]:
    """The options that a system was made with; nothing where that is not known, or others saved it since."""
    try:
        found = json.loads((system / _NAME).read_text(encoding="utf-8"))
        return dict(found["made"]) if found["version"] == version else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
