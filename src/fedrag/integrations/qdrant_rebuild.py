"""New vectors for all documents of a `QdrantStore`, made in the collection's successor.

The successor itself tells which vectors are there. A point in it counts while its payload is that of the point in use:
a document that has been replaced since then wants a new vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from fedrag.errors import StoreError
from fedrag.integrations.qdrant_collection import PAGE, Collection, fitting, named, pages
from fedrag.optional import require
from fedrag.stores.matrix import plain_with_ids
from fedrag.types import Document

require("qdrant_client", extra="qdrant")

from qdrant_client import models  # noqa: E402


class QdrantRebuild:
    """An unfinished rebuild; `QdrantStore.rebuild` makes it. Fulfils the `Rebuild` protocol.

    Args:
        points: the collection in use.
        fingerprint: that of the encoder to come.
        known: returns the points of these documents, in order.
        read: returns the document of a point.
    """

    def __init__(
        self,
        points: Collection,
        fingerprint: str,
        *,
        known: Callable[[Sequence[str]], list[models.Record]],
        read: Callable[[models.Record], Document],
    ) -> None:
        self.fingerprint = fingerprint
        self.closed = False
        self._points = points
        self._name = points.successor()
        self._known, self._read = known, read
        if points.exists(self._name) and points.fingerprint(self._name) != fingerprint:
            points.client.delete_collection(self._name)

    def missing(self, batch_size: int) -> Iterator[list[Document]]:
        """Yield, in batches, the documents that have no new vector yet."""
        return pages(map(self._read, self._waiting()), batch_size)

    def put(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Keep the new `[n, d]` vectors of these documents; searches still see the old ones."""
        vectors = plain_with_ids(vectors, ids)
        made = self._made()
        there = self._known(ids)
        if not there:
            return
        name, dense = self._points.dense(self._name if made else None)
        if not made and self._points.aliased():  # else the new vectors go to the place of the old ones
            dense = dense.model_copy(update={"size": vectors.shape[1]})
        fitting(self._points.name, vectors, dense)
        if not made:
            self._points.make_successor(dense.size, self.fingerprint)
        self._points.put(
            (
                models.PointStruct(id=point.id, payload=point.payload, vector=named(row, name, point.vector))
                for point, row in zip(there, vectors.tolist(), strict=True)
            ),
            self._name,
        )

    def commit(self) -> None:
        """Put the new vectors and their fingerprint in place. Raises `StoreError` while any is missing."""
        made = self._made()
        here = {point.id for point in self._points.in_order()}
        if waiting := sum(1 for _ in self._waiting()):
            raise StoreError(f"{waiting} of {len(here)} documents have no new vector yet; put those of `missing`")
        if made:
            there = [point.id for point in self._points.points(self._name, payload=False, vectors=False)]
            self._points.delete([id for id in there if id not in here], self._name)  # removed in the meantime
            self._points.succeed()
        else:
            self._points.note(self.fingerprint)
        self.closed = True

    def _waiting(self) -> Iterator[models.Record]:
        for page in pages(self._points.in_order(), PAGE):
            done: dict[Any, Any] = {}
            if self._points.exists(self._name):
                made = self._points.some([point.id for point in page], self._name, payload=True, vectors=False)
                done = {point.id: point.payload for point in made}
            yield from (point for point in page if point.id not in done or done[point.id] != point.payload)

    def _made(self) -> bool:
        """Whether the successor is there. Raises `StoreError` when this rebuild is over."""
        made = self._points.exists(self._name)
        if self.closed or (made and self._points.fingerprint(self._name) != self.fingerprint):
            raise StoreError(
                f"the rebuild for {self.fingerprint!r} is finished or replaced; call rebuild() for another"
            )
        return made
