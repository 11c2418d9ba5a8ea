"""Documents on their way into a saved system: what is new is embedded, what is gone leaves, and all is saved in time.

A pass over a folder reads only files that changed since the last one (`fedrag.data.manifest`). Passages that the store
holds already, text and metadata alike, cost no embedding. Saving happens at most once a minute, and takes about a tenth
of the time at most, however large the store has become.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrag import durable
from fedrag.data.documents import checked_cutter, passages, stream_documents
from fedrag.data.files import KINDS, File, Files, OnError
from fedrag.data.manifest import Manifest
from fedrag.errors import DataError, MissingExtraError, StoreError
from fedrag.progress import Bar, track

if TYPE_CHECKING:
    from fedrag.rag import RAGSystem
    from fedrag.types import Document

_SAVE_EVERY = 60.0  # seconds of indexing between two saves, at least
_SAVE_SHARE = 10.0  # times as long as the last save took


@dataclass(slots=True)
class Counts:
    """What a pass did: passages embedded, found unchanged, removed; files by what became of them."""

    embedded: int = 0
    unchanged: int = 0
    removed: int = 0
    files: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(slots=True)
class Indexing:
    """One system and what goes into it.

    Args:
        rag: the system.
        system: its folder.
        chunk_tokens: tokens of a passage; `None` cuts nothing.
        overlap: tokens that passages share.
        repeated: whether files that say the same are all kept.
        made: the options that a new system is made with, to be known again.
    """

    rag: RAGSystem
    system: Path
    chunk_tokens: int | None
    overlap: int
    repeated: bool = False
    made: Mapping[str, Any] = field(default_factory=dict[str, Any])
    counts: Counts = field(default_factory=Counts)
    _waiting: list[Document] = field(default_factory=list["Document"])
    _then: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    _changed: bool = False
    _saved: float = field(default_factory=time.monotonic)
    _pause: float = _SAVE_EVERY
    _version: str = ""

    def __post_init__(self) -> None:
        self._version = self._current()

    def go(self, path: Path, *, on_error: OnError = "raise") -> Counts:
        """Take in a folder or a file, and save. When that is stopped, what is done is saved, and the error raised."""
        self._check_alone()
        self.counts = Counts()
        folder = path if path.is_dir() else path.parent
        manifest = Manifest.read(self.system, self._version, f"{self.chunk_tokens} {self.overlap}", folder)
        manifest.made = manifest.made or dict(self.made)
        with track(desc="index", unit="passage") as bar:
            try:
                if path.is_dir() or (path.is_file() and path.suffix.lower() in KINDS):
                    self._files(Files(path, on_error, self.repeated), manifest, bar)
                else:
                    self._table(path, manifest, bar)
                self._flush(manifest, bar)
            except (KeyboardInterrupt, DataError, MissingExtraError):
                self._waiting.clear()
                self._then.clear()
                self._save(manifest)
                raise
        if not len(self.rag.dense.store):
            raise DataError(f"{path}: its files are all empty, wanted some text")
        self._save(manifest)
        return self.counts

    def _files(self, files: Files, manifest: Manifest, bar: Bar) -> None:
        listed, unchanged = files.all(), 0
        cut = checked_cutter(self.chunk_tokens, self.overlap, None)
        for file in listed:
            known, state = manifest.unchanged(file), manifest.look(file)
            again = known is not None and files.repeats(file, known.digest)
            if known is not None and (not known.digest or again == (known.passages == 0)):
                unchanged += 1
                self.counts.unchanged += known.passages
                continue
            refused = len(files.unreadable)
            try:
                text = files.text(file)
            except (DataError, MissingExtraError) as error:
                raise type(error)(f"{error}; or leave such files out with --skip-unreadable") from None
            if len(files.unreadable) > refused:
                continue  # what it gave before stays
            digest, count = "" if text is None else text.digest, 0
            if text is not None and not (files.repeats(file, digest) if known is None else again):
                count = self._put(passages(file, text, cut), manifest, bar)
            self._leave(file.source, count)
            self._then.append(partial(manifest.note, file, state, passages=count, digest=digest))
        if files.path.is_dir():
            for source in manifest.absent(listed):
                self._leave(source, 0)
                self._then.append(partial(manifest.forget, source))
        files.tell()
        self.counts.files = {
            "read": files.read,
            "unchanged": unchanged,
            "empty": files.empty,
            "same": files.same,
            "unreadable": files.unreadable,
            "aside": sum(files.aside.values()),
        }

    def _table(self, path: Path, manifest: Manifest, bar: Bar) -> None:
        file = File(path, path.name)
        known, state, total = manifest.unchanged(file), manifest.look(file), 0
        if known is not None:
            self.counts.unchanged += known.passages
            return
        cut = checked_cutter(self.chunk_tokens, self.overlap, None)
        rows = manifest.rows(file)
        before, now = set(rows), dict[str, None]()
        for row in stream_documents(path, progress=False):
            now[row.id] = None
            if row.id not in before:
                rows.append(row.id)
            count = self._put(iter([row]) if cut is None else cut(row), manifest, bar)
            # what the row gave when it was cut otherwise, or was longer
            self._leave(row.id, 0 if cut is None else count)
            if cut is not None and row.id in self.rag.dense.store:
                self._then.append(partial(self._remove, [row.id]))
            total += count
        if gone := before - now.keys():
            for id in sorted(gone - manifest.elsewhere(file)):
                self._leave(id, 0)
                self._then.append(partial(self._remove, [id]))
        self._then.append(partial(manifest.note, file, state, passages=total, digest="", rows=now))

    def _put(self, documents: Iterator[Document], manifest: Manifest, bar: Bar) -> int:
        """Let passages wait for their embedding, those that the store lacks; return how many there are."""
        count = 0
        store, size = self.rag.dense.store, 16 * self.rag.dense.batch_size
        for document in documents:
            count += 1
            if document.id in store and store.get([document.id])[0] == document:
                self.counts.unchanged += 1
                continue
            self._waiting.append(document)
            if len(self._waiting) >= size:
                self._flush(manifest, bar)
        return count

    def _leave(self, whole: str, first: int) -> None:
        """Let the passages of a text from the number `first` on leave the store, once its others are there."""
        store, ids = self.rag.dense.store, list[str]()
        while (id := f"{whole}#{first + len(ids)}") in store and _is_piece(store.get([id])[0], whole):
            ids.append(id)
        if ids:
            self._then.append(partial(self._remove, ids))

    def _remove(self, ids: Sequence[str]) -> None:
        self._changed = True
        self.counts.removed += self.rag.dense.store.remove(ids)

    def _flush(self, manifest: Manifest, bar: Bar) -> None:
        """Embed what waits, then do what was to be done after it, and save when it is time."""
        if self._waiting:
            self._changed = True
            self.rag.add(self._waiting, progress=False)
            self.counts.embedded += len(self._waiting)
            bar.update(len(self._waiting))
            self._waiting.clear()
        for act in self._then:
            act()
        self._then.clear()
        if time.monotonic() - self._saved > self._pause:
            self._save(manifest)

    def _save(self, manifest: Manifest) -> None:
        if not self._version and not len(self.rag.dense.store):
            return
        self._check_alone()
        began = time.monotonic()
        if self._changed:
            self.rag.save(self.system)
            self._version, self._changed = self._current(), False
        manifest.write(self.system, self._version)
        self._saved = time.monotonic()
        self._pause = max(_SAVE_EVERY, _SAVE_SHARE * (self._saved - began))

    def _check_alone(self) -> None:
        if self._current() != self._version:
            raise StoreError(f"{self.system} was saved by another process meanwhile; start again, to go on from there")

    def _current(self) -> str:
        return durable.current(self.system).name if durable.exists(self.system) else ""


def _is_piece(document: Document, whole: str) -> bool:
    return {"start", "end"} <= document.metadata.keys() or document.metadata.get("source") == whole
