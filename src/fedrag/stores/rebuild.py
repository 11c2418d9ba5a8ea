"""New vectors for all documents of a `MemoryStore`, made beside the ones in use and swapped in at the end.

Vectors are kept by document id, so that documents may come and go in the meantime; one that is replaced needs a new
vector again. In a store that lives in a folder a journal there keeps them as well (`stores.journal`), and a later
process goes on where this one stops.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fedrag.errors import StoreError
from fedrag.stores.journal import Journal, Record, digest
from fedrag.stores.matrix import DType, Matrix, plain_with_ids
from fedrag.types import Document, KnowledgeStore


class MemoryRebuild:
    """An unfinished rebuild; `MemoryStore.rebuild` makes it. Fulfils the `Rebuild` protocol."""

    def __init__(
        self,
        store: KnowledgeStore,
        fingerprint: str,
        *,
        dtype: DType,
        folder: Path | None,
        lock: AbstractContextManager[bool],
        swap: Callable[[str, Matrix | None, dict[str, int]], None],
    ) -> None:
        self.fingerprint = fingerprint
        self._store = store
        self._dtype: DType = dtype
        self._lock = lock
        self._swap = swap
        self._matrix: Matrix | None = None
        self._rows = 0
        self._place: dict[str, int] = {}  # document id to row of the new matrix
        self._open = True
        self._journal: Journal | None = None
        if folder is not None and os.access(folder, os.W_OK):  # one that may only be read has no journal
            self._journal = self._resumed(folder)

    def missing(self, batch_size: int) -> Iterator[list[Document]]:
        """Yield, in batches, the documents that have no new vector yet."""
        waiting = (document for document in self._store.documents() if document.id not in self._place)
        while batch := list(islice(waiting, batch_size)):
            yield batch

    def put(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Keep the new `[n, d]` vectors of these documents; searches still see the old ones."""
        vectors = plain_with_ids(vectors, ids)
        with self._lock:
            self._check_open()
            record = self._record(ids, vectors)
            if not ids:
                return
            if self._matrix is not None:
                self._matrix.check_width(vectors)
            if self._journal is not None:
                self._journal.append(record)
            self._keep(ids, vectors)

    def commit(self) -> None:
        """Swap the new vectors and their fingerprint in. Raises `StoreError` while any is missing."""
        with self._lock:
            self._check_open()
            self._swap(self.fingerprint, self._matrix, self._place)
            self.close()

    def forget(self, ids: Sequence[str]) -> None:
        """Drop the new vectors of documents that are being replaced: they were made from other texts."""
        for id in ids:
            self._place.pop(id, None)

    def move(self, folder: Path) -> None:
        """Keep the journal in another folder from now on, beginning with what there is."""
        journal = Journal.start(folder, self.fingerprint)
        waiting = iter(list(self._place))
        while ids := list(islice(waiting, 4096)):
            rows = torch.tensor([self._place[id] for id in ids], dtype=torch.int64, device="cpu")
            if self._matrix is not None:
                journal.append(self._record(ids, self._matrix.take(rows)))
        self._journal = journal

    def close(self) -> None:
        """Refuse whatever comes: the rebuild is finished, or another took its place."""
        self._open = False

    def _record(self, ids: Sequence[str], vectors: Tensor) -> Record:
        return Record(ids, [digest(document.text) for document in self._store.get(ids)], vectors)

    def _keep(self, ids: Sequence[str], vectors: Tensor) -> None:
        if self._matrix is None:
            self._matrix = Matrix(self._dtype, vectors.shape[1])
        self._matrix.write(self._rows, vectors)
        start = self._rows
        self._rows += len(ids)
        self._place.update(zip(ids, range(start, self._rows), strict=True))

    def _resumed(self, folder: Path) -> Journal:
        found = Journal.resume(folder, self.fingerprint)
        if found is None:
            return Journal.start(folder, self.fingerprint)
        journal, records = found
        for record in records:
            fresh = [
                i
                for i, id in enumerate(record.ids)
                if id in self._store and digest(self._store.get([id])[0].text) == record.digests[i]
            ]
            if fresh:
                self._keep([record.ids[i] for i in fresh], record.vectors[fresh])
        return journal

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(
                f"the rebuild for {self.fingerprint!r} is finished or replaced; call rebuild() for another"
            )
