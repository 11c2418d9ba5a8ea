"""Another library's index as a knowledge store: searched here, exactly; written there, under the same ids.

`mirror` reads the index once. Searches and training run on what it read; whatever is added, removed or embedded anew
goes to the index too, so that after `rag.retriever.refresh()`, which the trainer calls at its end, the index holds the
tuned encoder's vectors, written once all of them are made. Interrupted, `refresh()` again goes on. What others have
changed or deleted in the index meanwhile stays as they left it, and is told.

What wrote the vectors in an index stands nowhere. So some of its documents are embedded again: where the vectors agree,
the encoder is taken to be the one that wrote them; where they do not, the store is stale until `refresh()`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedrag.errors import InputError
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.matrix import Matrix
from fedrag.stores.memory import MemoryStore
from fedrag.types import Document, Encoder

UNKNOWN = "unknown"
"""The fingerprint of vectors that another encoder than the one at hand wrote."""
SAMPLE = 16
"""Documents that are embedded again to see who wrote an index."""
_AGREE = 2e-3  # difference as a share of the vector's length: an index may keep half precision
_log = logging.getLogger(__name__)


class Outside(Protocol):
    """The index of another library, as it is read and written. A document's text is what the library embeds."""

    def read(self) -> Iterable[tuple[Document, Sequence[float] | None]]:
        """Yield every document with its vector; `None` where the library does not give it."""
        ...

    def insert(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert documents with their `[n, d]` vectors, in the place of those of their ids."""
        ...

    def update(self, documents: Sequence[Document], vectors: Tensor) -> int:
        """Give documents new `[n, d]` vectors, and change nothing else of them; return how many were passed over.

        That is those that are gone, or have another text by now, which the vectors are not of.
        """
        ...

    def remove(self, ids: Sequence[str]) -> None:
        """Delete the documents of these ids, one at least, those that are there."""
        ...


class Mirror(MemoryStore):
    """A `MemoryStore` whose changes reach an index of another library too; `mirror` fills it.

    What the index refuses is not kept here either.
    """

    def __init__(self, outside: Outside) -> None:
        super().__init__()
        self.outside = outside

    def add(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert or replace documents with their `[n, d]` vectors."""
        replaced = [document.id for document in documents if document.id in self]
        before = self.get(replaced), self.vectors(replaced)
        super().add(documents, vectors)  # first, for it looks at what it is given
        try:
            if replaced:
                self.outside.remove(replaced)
            self.outside.insert(documents, vectors)
        except BaseException:
            ids = [document.id for document in documents]
            super().remove(ids)
            if replaced:
                super().add(*before)
            self.outside.remove(ids)
            if replaced:
                self.outside.insert(*before)
            raise

    def remove(self, ids: Sequence[str]) -> int:
        """Delete these documents; return how many were there."""
        if there := [id for id in dict.fromkeys(ids) if id in self]:
            self.outside.remove(there)
        return super().remove(ids)

    def update_vectors(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Replace the vectors of documents that are there already."""
        before = self.vectors(ids)
        super().update_vectors(ids, vectors)
        try:
            self._update(self.get(ids), vectors)
        except BaseException:
            super().update_vectors(ids, before)
            raise

    def _swap(self, fingerprint: str, matrix: Matrix | None, place: dict[str, int]) -> None:
        documents = list(self.documents())
        if matrix is not None and all(document.id in place for document in documents):
            self._update(documents, matrix.take(torch.tensor([place[document.id] for document in documents])))
        super()._swap(fingerprint, matrix, place)

    def _update(self, documents: Sequence[Document], vectors: Tensor) -> None:
        if passed := self.outside.update(documents, vectors):
            _log.warning(
                "%d of %d documents have changed in the index or left it, and were passed over; take it again",
                passed,
                len(documents),
            )


def mirror(outside: Outside, encoder: Encoder) -> Mirror:
    """Read an index, and find out whether this encoder wrote its vectors.

    Raises:
        InputError: if two of its documents have one id.
    """
    store = Mirror(outside)
    documents: dict[str, Document] = {}
    rows: list[Sequence[float] | None] = []
    for document, vector in outside.read():
        if document.id in documents:
            raise InputError(f"the index holds the id {document.id!r} twice; give each of its documents its own")
        documents[document.id] = document
        rows.append(vector)
    if documents:
        known = all(row is not None for row in rows)
        vectors = torch.tensor(rows if known else [[0.0]] * len(rows), dtype=torch.float32)
        MemoryStore.add(store, list(documents.values()), vectors)
        first, *others = documents.values()
        # one that broke off while it was written has the old vectors at its one end and the new ones at the other
        sample = [first, *random.Random(0).sample(others, min(SAMPLE, len(others))), *others[-1:]]
        there = store.vectors([document.id for document in sample])
        store.fingerprint = encoder.fingerprint if known and wrote(encoder, sample, there) else UNKNOWN
    return store


def wrote(encoder: Encoder, documents: Sequence[Document], vectors: Tensor) -> bool:
    """Whether the encoder gives these documents the `[n, d]` vectors that they have; of none it cannot be known."""
    if not documents:
        return False
    made = DenseRetriever(encoder, MemoryStore()).embed_documents(documents).float().cpu()
    if made.shape != vectors.shape:
        return False
    return bool(((made - vectors).norm(dim=1) <= _AGREE * made.norm(dim=1)).all())
