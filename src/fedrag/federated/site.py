"""A site: a name, and where its own data is. Nothing of it travels but the name.

    site = Site.open("north/site.toml")
    store = site.store()                # the site's private documents
    train = site.examples("train")

A site is a folder with a `site.toml`, whose paths are relative to it, or just a folder in which `examples("train")` is
`train.jsonl` (or json, csv, parquet) and the store is `store`; in a notebook it may hold its data itself:

```toml
name = "north"
store = "store"          # what `MemoryStore.save` or `fedrag index` wrote
state = "state"          # what the site keeps between rounds; made when needed

[examples]
train = "questions.jsonl"

[settings]
device = "cuda"
```

>>> from fedrag.types import Example
>>> Site("north", data={"train": [Example("Which key has clerk 1 ?", ["3"])]}).examples("train")[0].answers
('3',)
"""

from __future__ import annotations

import re
import tempfile
import tomllib
import weakref
from collections.abc import Mapping
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, cast

from fedrag.errors import ConfigError, InputError

if TYPE_CHECKING:
    from fedrag.types import Example, KnowledgeStore

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEYS = ("name", "store", "state", "examples", "settings")
_ENDINGS = ("jsonl", "json", "csv", "parquet")


class Site:
    """A site's name and data.

    Args:
        name: how the others know it: letters, digits, `_`, `.` and `-`. It travels.
        folder: where its files are; the current folder if `None`.
        store: the folder of its knowledge store, relative to `folder`.
        examples: files of examples by name, relative to `folder`.
        settings: whatever else `build` wants to know: a device, a batch size.
        state: folder of what the site keeps between rounds; `None` with a `folder` is its `state`, and without one a
            temporary folder, which ends with the process.
        data: what is in memory already: examples by name, and a knowledge store as "store".
    """

    def __init__(
        self,
        name: str,
        folder: str | Path | None = None,
        *,
        store: str = "store",
        examples: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        state: str | Path | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        if not is_name(name):
            raise ConfigError(f"{name!r} is no name for a site: take letters, digits, '_', '.' and '-', 64 at most")
        self.name = name
        self.folder = Path(folder or ".")
        self.settings = dict(settings or {})
        self._store = store
        self._examples = dict(examples or {})
        self._data = dict(data or {})
        self._state = Path(state) if state else self.folder / "state" if folder else None

    @classmethod
    def local(cls, folder: str | Path = ".") -> Site:
        """The site of a centralized run: this folder, with its `site.toml` where there is one."""
        path = Path(folder) / "site.toml"
        return cls.open(path) if path.is_file() else cls("local", folder)

    @classmethod
    def open(cls, path: str | Path) -> Site:
        """Read a `site.toml`. Raises `ConfigError`, which names what is wrong in it."""
        path = Path(path)
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a site.toml") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        if unknown := sorted(set(raw) - set(_KEYS)):
            raise ConfigError(f"{path}: unknown key {unknown[0]!r}; known keys are {', '.join(_KEYS)}")
        for key, kind in (("name", str), ("store", str), ("state", str), ("examples", dict), ("settings", dict)):
            if not isinstance(raw.get(key, kind()), kind):
                raise ConfigError(f"{path}: {key} must be a {'table' if kind is dict else 'text'}, got {raw[key]!r}")
        if "name" not in raw:
            raise ConfigError(f'{path}: name is missing, as in name = "north"')
        if not is_name(raw["name"]):
            raise ConfigError(
                f"{path}: {raw['name']!r} is no name for a site: take letters, digits, '_', '.' and '-', 64 at most"
            )
        examples = cast(dict[str, Any], raw.get("examples", {}))
        paths = {key: raw[key] for key in ("store", "state") if key in raw}
        paths |= {f"examples.{name}": value for name, value in examples.items()}
        if wrong := [key for key, value in paths.items() if not isinstance(value, str) or not value or "\0" in value]:
            raise ConfigError(f"{path}: {wrong[0]} must be a path, got {paths[wrong[0]]!r}")
        folder = path.parent
        return cls(
            raw["name"],
            folder,
            store=raw.get("store", "store"),
            examples=examples,
            settings=raw.get("settings"),
            state=folder / raw.get("state", "state"),
        )

    def store(self) -> KnowledgeStore:
        """The site's knowledge store."""
        from fedrag.stores.memory import MemoryStore

        return cast("KnowledgeStore", self._data["store"]) if "store" in self._data else MemoryStore.open(self.path())

    def path(self) -> Path:
        """The folder of the knowledge store."""
        return self.folder / self._store

    def examples(self, name: str) -> list[Example]:
        """The examples of that name, as `train`. Raises `InputError` where there are none."""
        from fedrag.data import read_examples

        if name in self._data:
            return list(self._data[name])
        if name in self._examples:
            return read_examples(self.folder / self._examples[name])
        for ending in _ENDINGS:
            if (path := self.folder / f"{name}.{ending}").is_file():
                return read_examples(path)
        known = sorted({*self._data, *self._examples} - {"store"})
        raise InputError(
            f"site {self.name!r} has no examples named {name!r}: it knows {known}, and there is no {name}.jsonl in its "
            "folder; name the file under [examples] in its site.toml"
        )

    @property
    def state(self) -> Path:
        """The folder of what the site keeps between rounds, made when it is first asked for, for its owner alone."""
        if self._state is None:
            self._state = Path(tempfile.mkdtemp(prefix="fedrag-site-"))
            weakref.finalize(self, rmtree, self._state, ignore_errors=True)
        self._state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._state

    def __getstate__(self) -> dict[str, Any]:
        """Copies in other processes, as a simulation makes them for every message, share the folder of the state."""
        return {**vars(self), "_state": self.state}

    def __repr__(self) -> str:
        return f"Site({self.name!r})"


def is_name(name: object) -> bool:
    """Whether a site may be called so; the name travels, and is shown."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
