"""An exact knowledge store: a matrix in memory or mapped from files, searched whole.

Exact search needs no parameters, returns the same hits on every machine and, up to some hundred thousand documents,
answers in the time that it takes to read the matrix once; `accelerate` is for more. Documents lie beside it as Arrow
columns (`stores.table`); every change is whole, to other threads, after an interrupt and after a crash.

>>> import torch
>>> store = MemoryStore()
>>> store.add([Document("Paris", "p", {"year": 1}), Document("Rome", "r", {"year": 2})], torch.eye(2))
>>> [(hit.document.text, hit.score) for hit in store.search(torch.tensor([[0.6, 0.8]]), k=2)[0]]
[('Rome', 0.800000011920929), ('Paris', 0.6000000238418579)]
>>> early = {"field": "year", "operator": "<", "value": 2}
>>> [hit.document.id for hit in store.search(torch.tensor([[0.6, 0.8]]), k=2, where=early)[0]]
['p']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedrag.errors import InputError, StoreError
from fedrag.filters import compile_filter
from fedrag.stores import files
from fedrag.stores.about import Saved
from fedrag.stores.journal import Journal
from fedrag.stores.matrix import STORED, DType, Matrix, plain, plain_with_ids
from fedrag.stores.rebuild import MemoryRebuild
from fedrag.stores.table import Table, encode
from fedrag.types import Document, Hit, Where

if TYPE_CHECKING:
    from fedrag.stores.accelerated import Acceleration, Graph


class MemoryStore:
    """Documents and their vectors, kept in `float32` or, for half the memory, `bfloat16`.

    Scores are inner products, computed from the vectors as stored, the same for one query or many; ties go to the
    smaller id. A document that is added again takes its place at the end. One instance serves several threads.
    """

    def __init__(self, *, dtype: DType = "float32") -> None:
        if dtype not in STORED:
            raise InputError(f"a MemoryStore keeps vectors as {' or '.join(STORED)}, got dtype={dtype!r}")
        self._dtype: DType = dtype
        self._fingerprint, self._lock = "", RLock()
        self._table = Table()
        self._matrix: Matrix | None = None
        # the one place that says which rows count: a row that no id points to is dead and waits to be cleared
        self._row: dict[str, int] = {}
        self._known_living: tuple[tuple[Table, int, int], Tensor] | None = None
        self._rebuild: MemoryRebuild | None = None
        self._folder: Path | None = None
        self._saved: Saved | None = None  # files that hold the first rows as they are here
        self._graph: Graph | None = None

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> MemoryStore:
        """Map a saved store; changes stay in memory until `save`. Raises `StoreError` for a damaged or newer one.

        Missing and cut files are always found; `verify=True` reads every byte (2 GB a second) and finds changed bits.
        """
        folder = Path(path)
        content = files.read_current(folder, verify=verify)
        store = cls(dtype=content.dtype)
        store._table, store._matrix, store._fingerprint = content.table, content.matrix, content.fingerprint
        store._row = dict(zip(content.table.ids(), range(content.table.rows), strict=True))
        store._folder, store._saved = folder, content.saved
        return store

    def save(self, path: str | Path) -> None:
        """Write everything into a folder, in one step: after a crash the old content is there or the new.

        Where documents were only added, only these are written; in its first folder the store then maps its files.
        """
        folder = Path(path)
        with self._lock:
            held = files.Content(self._table, self._matrix, self._dtype, self._fingerprint, self._living(), self._saved)
            held = files.save(folder, held, self._folder)
            self._table, self._matrix, self._saved = held.table, held.matrix, held.saved
            if self._rebuild is None:
                # also where the store came from: its new vectors are safe here, and that folder keeps its old ones
                for place in {folder, self._folder or folder}:
                    Journal.finish(place, self._fingerprint)
            elif folder != self._folder:
                self._rebuild.move(folder)
            self._folder = folder

    def add(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert or replace documents with their `[n, d]` vectors, which are copied."""
        ids = [document.id for document in documents]
        vectors = plain_with_ids(vectors, ids)
        if not ids:
            return
        batch = encode(documents)
        with self._lock:
            self._clear_dead()
            if self._matrix is None:
                self._matrix = Matrix(self._dtype, vectors.shape[1])
            start = self._table.rows
            self._matrix.write(start, vectors)
            self._table.append(batch)
            if self._rebuild is not None:
                self._rebuild.forget(ids)
            # until here the new rows are dead; this one step brings them to life, and the replaced ones to death
            self._row.update(zip(ids, range(start, start + len(ids)), strict=True))

    def search(self, vectors: Tensor, k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return, per row of `[n, d]`, the k best hits among the documents that match `where`, best first."""
        queries = plain(vectors)
        if k < 1:
            raise InputError(f"k is {k}; ask for at least one hit")
        test = compile_filter(where) if where is not None else None
        with self._lock, torch.no_grad():
            if self._matrix is not None:
                self._matrix.check_width(queries)
            keep = self._living()
            if test is not None:
                matching = torch.from_numpy(self._table.matching(test))
                keep = matching if keep is None else matching & keep
            k = min(k, len(self) if keep is None else int(keep.sum()))
            if not k or not len(queries) or self._matrix is None:
                return [[] for _ in queries]
            searched = self._matrix if self._graph is None or test is not None else self._graph.over(self._matrix)
            found = searched.nearest(queries, k, rows=self._table.rows, keep=keep)
            return [self._table.hits(candidates, k) for candidates in found]

    def accelerate(
        self, *, floor: float = 0.9, queries: Tensor | None = None, connectivity: int = 16, build_width: int = 128
    ) -> Acceleration:
        """Build a graph of the vectors for approximate search (extra `accelerated`) and return its measured recall.

        Recall@10 is that of `queries` `[n, d]`, vectors of real questions, or without these of 200 of the documents.
        A search then may miss hits, at the rate told; their scores are true, and there are k whenever k documents
        are there. With a filter, and among what was added since, search is exact; once vectors are changed, a quarter
        is removed or the store is opened again, all of it is, until this is called again. Other calls wait for it.
        Raises `StoreError` where the recall stays below `floor`: search then stays exact.
        """
        from fedrag.stores.accelerated import built

        with self._lock, torch.no_grad():
            self._clear_dead(all_of_them=True)
            if self._matrix is None or not self._row:
                raise InputError("an empty store has nothing to accelerate; add documents first")
            self._graph = None
            self._graph = built(self._matrix, self._table.rows, queries, floor, connectivity, build_width)
            return self._graph.measured

    @property
    def acceleration(self) -> Acceleration | None:
        """What `accelerate` measured; None while every search is exact."""
        return self._graph.measured if self._graph is not None else None

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents of these ids, in order. An unknown id is an `InputError`."""
        with self._lock:
            return [self._table.document(row) for row in self._rows(ids).tolist()]

    def vectors(self, ids: Sequence[str]) -> Tensor:
        """Return a float32 copy `[n, d]` of the vectors of these ids, in order."""
        with self._lock:
            rows = self._rows(ids)
            return self._matrix.take(rows) if self._matrix else torch.empty((0, 0), device="cpu")

    def remove(self, ids: Sequence[str]) -> int:
        """Delete these documents; return how many were there."""
        with self._lock:
            removed = sum(self._row.pop(id, None) is not None for id in ids)
            self._clear_dead()
            return removed

    def documents(self) -> Iterator[Document]:
        """Stream every document, in the order in which they came, as the store was when the stream began."""
        with self._lock:
            table, living = Table(self._table.batches()), self._living()
        rows = range(table.rows) if living is None else living.nonzero()[:, 0].tolist()
        return (table.document(row) for row in rows)

    def update_vectors(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Replace the vectors of documents that are there already; the order stays."""
        vectors = plain_with_ids(vectors, ids)
        with self._lock:
            rows = self._rows(ids)
            if self._matrix is not None and len(rows):
                self._saved = self._graph = None
                self._matrix.replace(rows, vectors)

    def rebuild(self, fingerprint: str) -> MemoryRebuild:
        """Start new vectors, possibly of another width, for all documents, or go on with those of an earlier call.

        When the store lives in a folder (opened or saved there), vectors that were put are kept there, too, and a
        later process goes on with them. `commit` changes the store in memory; `save` afterwards as after any change.
        """
        if not fingerprint:
            raise InputError("a rebuild needs the fingerprint of the encoder that makes its vectors, got ''")
        with self._lock:
            if self._rebuild is None or self._rebuild.fingerprint != fingerprint:
                if self._rebuild is not None:
                    self._rebuild.close()
                self._rebuild = MemoryRebuild(
                    self, fingerprint, dtype=self._dtype, folder=self._folder, lock=self._lock, swap=self._swap
                )
            return self._rebuild

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the document encoder that wrote the vectors; empty when nothing was written."""
        return self._fingerprint

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        self._fingerprint = value

    @property
    def version(self) -> tuple[object, ...]:
        """Equal as long as the store holds the same documents; vectors may be others."""
        with self._lock:  # rows are only ever added to a table, and ids only leave while none is added
            return (self._table, self._table.rows, len(self._row))

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, id: object) -> bool:
        return id in self._row

    def __repr__(self) -> str:
        width = self._matrix.width if self._matrix else 0
        return f"MemoryStore({len(self)} documents x {width} {self._dtype})"

    def _living(self) -> Tensor | None:
        """Return which rows count, as booleans `[m]`; None when all do."""
        if len(self._row) == self._table.rows:
            return None
        # rows are only ever added to a table, and ids only leave while none is added: the two counts tell all states
        state = (self._table, self._table.rows, len(self._row))
        if self._known_living is None or self._known_living[0] != state:
            living = np.zeros(self._table.rows, np.bool_)
            living[np.fromiter(self._row.values(), np.int64, len(self._row))] = True
            self._known_living = (state, torch.from_numpy(living))
        return self._known_living[1]

    def _rows(self, ids: Sequence[str]) -> Tensor:
        for id in ids:
            if id not in self._row:
                raise InputError(f"no document has the id {id!r} (of {len(self)} in the store); add it first")
        return torch.tensor([self._row[id] for id in ids], dtype=torch.int64, device="cpu")

    def _clear_dead(self, *, all_of_them: bool = False) -> None:
        """Drop the dead rows when they are many beside the living; this copies the matrix."""
        dead = self._table.rows - len(self._row)
        if not dead or (self._row and dead <= len(self._row) // 4 + 16 and not all_of_them):
            return
        living = self._living()
        table = Table(self._table.batches(living))
        matrix = None
        if self._matrix is not None and living is not None and self._row:
            matrix = self._matrix.taken(living.nonzero()[:, 0])
        self._saved = self._graph = None
        row = dict(zip(table.ids(), range(table.rows), strict=True))
        self._table, self._matrix, self._row = table, matrix, row

    def _swap(self, fingerprint: str, matrix: Matrix | None, place: dict[str, int]) -> None:
        """Take the vectors of a rebuild; `place` says in which row of `matrix` a document has its own."""
        if missing := sum(id not in place for id in self._row):
            raise StoreError(f"{missing} of {len(self)} documents have no new vector yet; put those of `missing`")
        self._clear_dead(all_of_them=True)
        order = [place[id] for id in self._table.ids()]
        if not order:
            matrix = None
        if matrix is not None and order != list(range(len(order))):
            matrix = matrix.taken(torch.tensor(order, dtype=torch.int64, device="cpu"))
        self._saved = self._graph = None
        self._matrix, self._fingerprint, self._rebuild = matrix, fingerprint, None
