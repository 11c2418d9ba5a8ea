"""A Qdrant collection as a knowledge store: one's own, or one that LlamaIndex, LangChain or Haystack wrote.

rag = from_qdrant(QdrantClient("http://localhost:6333"), "handbook", encoder=SentenceEncoder("all-MiniLM-L6-v2"))
RAGTrainer(Contrastive(rag), train_dataset=train).train()  # the collection now has the tuned encoder's vectors

Documents, ids, payloads and other vectors of a collection stay as they are; tuning replaces the vectors. They are made
in a second collection. Where the name is an alias, it is then pointed there, in one step: so it is for collections
that `QdrantStore` makes. A collection without an alias is written over, page by page, and counts as stale until all
are written. Interrupted, `retriever.refresh()` goes on.

One process may write to a collection at a time; any number may search. Hits are exact: what Qdrant (1.16 or later)
finds is scored again from its vectors, and looked at with the filter again (`qdrant_filters` says why).

>>> store = QdrantStore(QdrantClient(":memory:"), "handbook")
>>> store.add([Document("Paris", "p", {"year": 1}), Document("Rome", "r", {"year": 2})], torch.eye(2))
>>> [(hit.document.text, hit.score) for hit in store.search(torch.tensor([[0.6, 0.8]]), k=2)[0]]
[('Rome', 0.800000011920929), ('Paris', 0.6000000238418579)]
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fedrag.errors import InputError, StoreError
from fedrag.filters import compile_filter
from fedrag.integrations.mirror import SAMPLE, UNKNOWN, wrote
from fedrag.integrations.qdrant_collection import Collection, fitting, named, vector_of
from fedrag.integrations.qdrant_filters import narrow
from fedrag.integrations.qdrant_payloads import LANGCHAIN, Columns, Layout, layout_of, point_ids
from fedrag.integrations.qdrant_rebuild import QdrantRebuild
from fedrag.optional import require
from fedrag.prompts import Prompt
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.stores.matrix import plain, plain_with_ids
from fedrag.stores.table import encode
from fedrag.types import Document, Encoder, Generator, Hit, Where

require("qdrant_client", extra="qdrant")

from qdrant_client import QdrantClient, models  # noqa: E402

_SLACK = 16  # points asked for above k: enough to see that the k-th ties with none


class QdrantStore:
    """Documents and their vectors in a Qdrant collection, which is made with the first documents.

    Args:
        client: for a server, a folder (`path=`) or memory (`":memory:"`).
        collection: the name of a collection, or of an alias.
        vector_name: which vectors are meant, where points have several.
        text_key: the payload key of the text, where no library known here wrote it; all others are metadata.
        exact: compare with every vector. `False` lets Qdrant use its index: sooner in millions, and hits may be missed.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        vector_name: str | None = None,
        text_key: str | None = None,
        exact: bool = True,
    ) -> None:
        self._points = Collection(client, collection, vector_name=vector_name, exact=exact)
        self._layout: Layout | None = Columns(text_key) if text_key is not None else None
        self._order = 0
        self._rebuild: QdrantRebuild | None = None

    def add(self, documents: Sequence[Document], vectors: Tensor) -> None:
        """Insert or replace documents with their `[n, d]` vectors; a replaced one takes its place at the end."""
        ids = [document.id for document in documents]
        vectors = plain_with_ids(vectors, ids)
        if not ids:
            return
        encode(documents)  # refuses what no store keeps
        layout, first = self.layout, max(self._order, time.time_ns())  # above all before, in other processes too
        self._order = first + len(ids)
        payloads = [layout.write(document, first + i) for i, document in enumerate(documents)]
        self._make_room(vectors.shape[1])
        name, dense = self._points.dense()
        fitting(self._points.name, vectors, dense)
        there = self._found(ids)
        self._points.put(
            models.PointStruct(
                id=there[id].id if id in there else point_ids(id)[0], vector=named(row, name), payload=payload
            )
            for id, row, payload in zip(ids, vectors.tolist(), payloads, strict=True)
        )

    def search(self, vectors: Tensor, k: int, where: Where | None = None) -> list[list[Hit]]:
        """Return, per row of `[n, d]`, the k best hits among the documents that match `where`, best first."""
        queries = plain(vectors)
        if k < 1:
            raise InputError(f"k is {k}; ask for at least one hit")
        keep = compile_filter(where) if where is not None else None
        found: list[list[Hit]] = [[] for _ in queries]
        if not found or not self._points.exists():
            return found
        name, dense = self._points.dense()
        if queries.shape[1] != dense.size:
            if not len(self):
                return found
            fitting(self._points.name, queries, dense)
        among = narrow(where, self.layout.paths) if where is not None else None
        waiting, limit = list(range(len(queries))), k + _SLACK
        while waiting:
            asked = self._points.nearest(queries[waiting].tolist(), name, limit, among)
            unsettled: list[int] = []
            for i, points in ((i, points) for i, points in zip(waiting, asked, strict=True) if points):
                rows = torch.tensor([vector_of(point, name) for point in points])  # [m, d]
                # added up in float64, so that equal vectors have equal scores, whatever else is asked with them
                scores: list[float] = (rows.double() * queries[i].double()).sum(-1).float().tolist()
                hits = [Hit(self._read(point), score) for point, score in zip(points, scores, strict=True)]
                hits = [hit for hit in hits if keep is None or keep(hit.document.metadata)]
                found[i] = sorted(hits, key=lambda hit: (-hit.score, hit.document.id))[:k]
                floor = min(scores) + _error(queries[i], rows)  # above it is nothing that Qdrant left out
                if len(points) == limit and (len(found[i]) < k or found[i][-1].score <= floor):
                    unsettled.append(i)
            waiting, limit = unsettled, 4 * limit
        return found

    def get(self, ids: Sequence[str]) -> list[Document]:
        """Return the documents of these ids, in order. An unknown id is an `InputError`."""
        return [self._read(point) for point in self._known(ids)]

    def vectors(self, ids: Sequence[str]) -> Tensor:
        """Return the `[n, d]` float32 vectors of these ids, in order. Raises `StoreError` where there is none."""
        points = self._known(ids, vectors=True)
        if not points:
            return torch.empty((0, 0), device="cpu")
        name, _ = self._points.dense()
        rows = [vector_of(point, name) for point in points]
        if None in rows:
            raise StoreError(f"document {ids[rows.index(None)]!r} has no vector; call retriever.refresh() to make it")
        return torch.tensor(rows, dtype=torch.float32)

    def remove(self, ids: Sequence[str]) -> int:
        """Delete these documents; return how many were there."""
        there = [point.id for point in self._found(ids).values()]
        self._points.delete(there)
        return len(there)

    def documents(self) -> Iterator[Document]:
        """Stream every document, in the order in which they came; those of others first, by the ids of their points."""
        return (self._read(point) for point in self._points.in_order())

    def update_vectors(self, ids: Sequence[str], vectors: Tensor) -> None:
        """Replace the vectors of documents that are there already."""
        vectors = plain_with_ids(vectors, ids)
        if points := self._known(ids):
            fitting(self._points.name, vectors, self._points.dense()[1])
            self._points.replace((point.id, row) for point, row in zip(points, vectors.tolist(), strict=True))

    def rebuild(self, fingerprint: str) -> QdrantRebuild:
        """Start new vectors for all documents, or go on with those that an earlier process left.

        Another width than before wants a name that is an alias.
        """
        if not fingerprint:
            raise InputError("a rebuild needs the fingerprint of the encoder that makes its vectors, got ''")
        if self._rebuild is None or self._rebuild.fingerprint != fingerprint or self._rebuild.closed:
            self._end_rebuild()
            known = partial(self._known, vectors=True)
            self._rebuild = QdrantRebuild(self._points, fingerprint, known=known, read=self._read)
        return self._rebuild

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the document encoder that wrote the vectors, as the collection's metadata has it."""
        return self._points.fingerprint()

    @fingerprint.setter
    def fingerprint(self, value: str) -> None:
        self._points.note(value)

    def __len__(self) -> int:
        return self._points.client.count(self._points.name, exact=True).count if self._points.exists() else 0

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and id in self._found([id])

    @property
    def layout(self) -> Layout:
        """How documents lie in this collection's payloads: as in the first one."""
        if self._layout is None:
            first = next(self._points.points(payload=True, vectors=False), None) if self._points.exists() else None
            if first is None:
                return LANGCHAIN
            self._layout = layout_of(first.payload or {})
        return self._layout

    def sample(self, count: int) -> tuple[list[Document], Tensor]:
        """Return some documents, drawn at random, and their `[n, d]` vectors; none where any has no vector."""
        name, _ = self._points.dense()
        points = self._points.sample(name, count)
        return [self._read(point) for point in points], torch.tensor([vector_of(point, name) for point in points])

    def _read(self, point: models.Record | models.ScoredPoint) -> Document:
        return self.layout.read(point.id, point.payload or {})

    def _found(self, ids: Sequence[str], *, vectors: bool = False) -> dict[str, models.Record]:
        """Return the points of those documents that are there, by the documents' ids."""
        if not ids or not self._points.exists():
            return {}
        wanted = set(ids)
        may = [point for id in wanted for point in point_ids(id)]
        found = {self._read(point).id: point for point in self._points.some(may, payload=True, vectors=vectors)}
        return {id: point for id, point in found.items() if id in wanted}

    def _known(self, ids: Sequence[str], *, vectors: bool = False) -> list[models.Record]:
        """Return the points of these documents, in order. An unknown id is an `InputError`."""
        there = self._found(ids, vectors=vectors)
        for id in ids:
            if id not in there:
                raise InputError(f"no document has the id {id!r} (of {len(self)} in the store); add it first")
        return [there[id] for id in ids]

    def _end_rebuild(self) -> None:
        if self._rebuild is not None:
            self._rebuild.closed = True

    def _make_room(self, width: int) -> None:
        """Make the collection, or one of another width where it is empty and has an alias."""
        if not self._points.exists():
            self._points.create(width)
        elif self._points.dense()[1].size != width and not len(self) and self._points.aliased():
            self._end_rebuild()
            self._points.make_successor(width, self.fingerprint)
            self._points.succeed()


def from_qdrant(
    client: QdrantClient,
    collection: str,
    *,
    encoder: Encoder,
    generator: Generator | None = None,
    prompt: Prompt | None = None,
    top_k: int = 5,
    vector_name: str | None = None,
    text_key: str | None = None,
    exact: bool = True,
) -> RAGSystem:
    """Return a system over a collection that is there; `vector_name`, `text_key`, `exact` are those of `QdrantStore`.

    What wrote its vectors stands nowhere at first. So some of its documents are embedded again: where the vectors
    agree, the encoder is taken to be the one that wrote them, and noted in the collection's metadata. Where they do
    not, queries raise `StaleIndexError` until `rag.retriever.refresh()`.
    """
    if not client.collection_exists(collection):
        there = sorted(found.name for found in client.get_collections().collections)
        raise InputError(f"there is no collection {collection!r}; there are {there}: QdrantStore makes a new one")
    store = QdrantStore(client, collection, vector_name=vector_name, text_key=text_key, exact=exact)
    retriever = DenseRetriever(encoder, store)
    if len(store) and store.fingerprint in ("", UNKNOWN, encoder.fingerprint):
        store.fingerprint = encoder.fingerprint if wrote(encoder, *store.sample(SAMPLE)) else UNKNOWN
    return RAGSystem(retriever=retriever, generator=generator, prompt=prompt, top_k=top_k)


def _error(query: Tensor, rows: Tensor) -> float:
    """Twice the worst error of Qdrant's float32 products of a query `[d]` with `[m, d]` vectors."""
    return (len(query) + 2) * 2.0**-22 * float(query.norm()) * float(rows.norm(dim=1).max())
