"""A Qdrant collection under a name that may be an alias: its vectors, its points, and its successor.

The successor of `handbook` is `handbook--1`, then `handbook--2`: made with the settings of the one in use, filled, and
put in its place by `succeed`. The fingerprint of the encoder that wrote the vectors is in a collection's metadata, so
that it changes hands with the alias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedrag.errors import InputError
from fedrag.integrations.qdrant_local import guarded, is_local
from fedrag.integrations.qdrant_payloads import KEY, PointId
from fedrag.optional import require

require("qdrant_client", extra="qdrant")

from qdrant_client import QdrantClient, models  # noqa: E402

PAGE = 256  # points in a request
_REQUESTS = 64  # queries in a request
PARTIAL = "partial"
"""The fingerprint of vectors that were being written over when it ended: some are new, some are not."""
_UNIT = 1e-3  # what a vector's norm may differ from 1 in a collection that makes it 1

T = TypeVar("T")


class Collection:
    """Points and their vectors; `vector_name` is needed where a point has several of them."""

    def __init__(self, client: QdrantClient, name: str, *, vector_name: str | None, exact: bool) -> None:
        self.client = guarded(client)
        self.name = name
        self._vector_name = vector_name
        self._seen = False
        self._how: models.SearchParams | None = None  # a client that is the database itself is always exact
        if exact and not is_local(client):
            self._how = models.SearchParams(exact=True, quantization=models.QuantizationSearchParams(ignore=True))
        self._noted = ""  # of a collection that is still to be made

    def exists(self, name: str | None = None) -> bool:
        """Whether there is a collection, or an alias, of this name."""
        if name is not None:
            return self.client.collection_exists(name)
        self._seen = self._seen or self.client.collection_exists(self.name)
        return self._seen

    def dense(self, name: str | None = None) -> tuple[str | None, models.VectorParams]:
        """Return the name of the vectors, `None` for the unnamed ones, and their settings."""
        found = self.client.get_collection(name or self.name).config.params.vectors
        if isinstance(found, models.VectorParams):
            return None, _comparable(self.name, found)
        named = found or {}
        which = self._vector_name or (next(iter(named)) if len(named) == 1 else None)
        if which is None or which not in named:
            raise InputError(
                f"the collection {self.name!r} has the vectors {sorted(named)}, got vector_name={self._vector_name!r}: "
                "name one of them"
            )
        return which, _comparable(self.name, named[which])

    def fingerprint(self, name: str | None = None) -> str:
        """Return the fingerprint of the document encoder that wrote the vectors; empty when it is not there."""
        if not self.exists(name):
            return self._noted
        return str((self.client.get_collection(name or self.name).config.metadata or {}).get(KEY, ""))

    def note(self, fingerprint: str) -> None:
        """Write down who wrote the vectors."""
        self._noted = fingerprint
        if self.exists():
            self.client.update_collection(self.name, metadata={KEY: fingerprint})

    def live(self) -> str:
        """Return the collection that the name stands for: itself, or what it is an alias of."""
        aliases = {alias.alias_name: alias.collection_name for alias in self.client.get_aliases().aliases}
        return aliases.get(self.name, self.name)

    def aliased(self) -> bool:
        """Whether the name is an alias, so that another collection can take the place of this one in one step."""
        return self.live() != self.name

    def create(self, width: int) -> None:
        """Make the collection, with an alias of its name."""
        first = self._after(0)
        if self.exists(first):  # a process died before it got its alias
            self.client.delete_collection(first)
        dense = models.VectorParams(size=width, distance=models.Distance.DOT)
        self.client.create_collection(first, vectors_config=dense, metadata={KEY: self._noted})
        self._point_to(first)

    def successor(self) -> str:
        """Return the name that the successor has, or will have."""
        return self._after(self._number())

    def make_successor(self, width: int, fingerprint: str) -> None:
        """Make an empty collection with the settings of this one, in the place of one left by somebody."""
        if self.exists(self.successor()):
            self.client.delete_collection(self.successor())
        info = self.client.get_collection(self.name)
        params, (name, dense) = info.config.params, self.dense()
        dense = dense.model_copy(update={"size": width})
        others = params.vectors if isinstance(params.vectors, dict) else {}
        self.client.create_collection(
            self.successor(),
            vectors_config=dense if name is None else {**others, name: dense},
            sparse_vectors_config=params.sparse_vectors,
            shard_number=params.shard_number,
            replication_factor=params.replication_factor,
            write_consistency_factor=params.write_consistency_factor,
            on_disk_payload=params.on_disk_payload,
            hnsw_config=models.HnswConfigDiff(**info.config.hnsw_config.model_dump()),
            quantization_config=info.config.quantization_config,
            metadata={**(info.config.metadata or {}), KEY: fingerprint},
        )
        for field, index in info.payload_schema.items():
            self.client.create_payload_index(self.successor(), field, field_schema=index.params or index.data_type)

    def succeed(self) -> None:
        """Put the successor in the place of the collection: by its alias, or by copying the vectors."""
        successor, live = self.successor(), self.live()
        if live != self.name:
            self._point_to(successor)
            if self._number(live):  # one that somebody else made under a name of its own is kept
                self.client.delete_collection(live)
            return
        which, _ = self.dense()
        self.note(PARTIAL)
        made = self.points(successor, payload=False, vectors=True)
        self.replace((point.id, vector_of(point, which) or []) for point in made)
        self.note(self.fingerprint(successor))
        self.client.delete_collection(successor)

    def points(self, name: str | None = None, *, payload: bool | list[str], vectors: bool) -> Iterator[models.Record]:
        """Stream all points, by id."""
        offset: Any = None
        while True:
            page, offset = self.client.scroll(
                name or self.name, limit=PAGE, offset=offset, with_payload=payload, with_vectors=vectors
            )
            yield from page
            if offset is None:
                return

    def some(
        self, ids: Iterable[PointId], name: str | None = None, *, payload: bool, vectors: bool
    ) -> list[models.Record]:
        """Return the points of these ids, those that are there, in any order."""
        found: list[models.Record] = []
        for page in pages(ids, PAGE):
            found += self.client.retrieve(name or self.name, page, with_payload=payload, with_vectors=vectors)
        return found

    def in_order(self) -> Iterator[models.Record]:
        """Stream all points with their payloads, in the order of their documents."""
        if not self.exists():
            return
        orders: list[tuple[int, int, Any]] = []
        for i, point in enumerate(self.points(payload=[f"{KEY}.order"], vectors=False)):
            orders.append((((point.payload or {}).get(KEY) or {}).get("order", 0), i, point.id))
        for page in pages([id for _, _, id in sorted(orders)], PAGE):
            there = {point.id: point for point in self.some(page, payload=True, vectors=False)}
            yield from (there[id] for id in page if id in there)

    def nearest(
        self, queries: list[list[float]], which: str | None, limit: int, among: models.Filter | None
    ) -> Iterator[list[models.ScoredPoint]]:
        """Yield what Qdrant finds best for each query, with payloads and vectors."""
        wanted = [which] if which else True
        for page in pages(queries, _REQUESTS):
            requests = [
                models.QueryRequest(
                    query=query, using=which or None, limit=limit, filter=among, params=self._how, with_payload=True,
                    with_vector=wanted,
                )
                for query in page
            ]  # fmt: skip
            for found in self.client.query_batch_points(self.name, requests):
                yield found.points

    def sample(self, which: str | None, count: int) -> list[models.ScoredPoint]:
        """Return some whole points, drawn at random; none when there are points without a vector."""
        has = models.Filter(must=[models.HasVectorCondition(has_vector=which or "")])
        if self.client.count(self.name, count_filter=has).count < self.client.count(self.name).count:
            return []
        drawn = models.SampleQuery(sample=models.Sample.RANDOM)
        return self.client.query_points(
            self.name, query=drawn, limit=count, with_payload=True, with_vectors=True
        ).points

    def put(self, points: Iterable[models.PointStruct], name: str | None = None) -> None:
        """Insert or replace points."""
        for page in pages(points, PAGE):
            self.client.upsert(name or self.name, page)

    def replace(self, vectors: Iterable[tuple[Any, list[float]]]) -> None:
        """Give points, which are there, other vectors."""
        which, _ = self.dense()
        rows = (models.PointVectors(id=id, vector=named(row, which)) for id, row in vectors)
        for page in pages(rows, PAGE):
            self.client.update_vectors(self.name, page)

    def delete(self, ids: Iterable[Any], name: str | None = None) -> None:
        """Delete points."""
        for page in pages(ids, PAGE):
            self.client.delete(name or self.name, page)

    def _after(self, number: int) -> str:
        """Return the next name that is free, or that of a collection made here which no alias stands for."""
        taken = {alias.collection_name for alias in self.client.get_aliases().aliases}
        name = f"{self.name}--{number + 1}"
        if not self.exists(name):
            return name
        ours = KEY in (self.client.get_collection(name).config.metadata or {})
        return name if ours and name not in taken else self._after(number + 1)

    def _number(self, name: str | None = None) -> int:
        """Which of the successors this is; 0 for a collection that is none."""
        match = re.fullmatch(re.escape(self.name) + r"--(\d+)", name or self.live())
        return int(match[1]) if match else 0

    def _point_to(self, name: str) -> None:
        forget = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=self.name))
        create = models.CreateAliasOperation(
            create_alias=models.CreateAlias(collection_name=name, alias_name=self.name)
        )
        self.client.update_collection_aliases([forget, create] if self.exists() else [create])


def pages(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of this size, the last one as long as what is left."""
    waiting = iter(items)
    while page := list(islice(waiting, size)):
        yield page


def vector_of(point: models.Record | models.ScoredPoint, name: str | None) -> list[float] | None:
    """Return the vector of a point, if it has one."""
    found: Any = point.vector
    return found if isinstance(found, list) else (found or {}).get(name or "")  # a lone vector comes without its name


def named(row: list[float], name: str | None, others: Any = None) -> Any:
    """Return the vectors of a point as they are written."""
    beside: dict[str, Any] = others if isinstance(others, dict) else {}
    return {**beside, name or "": row} if name or beside else row


def fitting(collection: str, vectors: Tensor, dense: models.VectorParams) -> None:
    """Raise `InputError` for `[n, d]` vectors that the collection would not keep as they are."""
    if len(vectors) and vectors.shape[1] != dense.size:
        raise InputError(
            f"the vectors are {vectors.shape[1]} wide, those of the store {dense.size}: use the encoder that filled "
            "the store, or re-embed it with the new one (rebuild)"
        )
    off = (torch.linalg.vector_norm(vectors, dim=1) - 1).abs()
    if dense.distance == models.Distance.COSINE and bool((off > _UNIT).any()):
        raise InputError(
            f"the collection {collection!r} compares by cosine and would make unit vectors of all, got one of norm "
            f"{float(vectors[off.argmax()].norm()):.4g}: use an encoder that ends in normalisation, or a collection of "
            "distance Dot"
        )


def _comparable(collection: str, dense: models.VectorParams) -> models.VectorParams:
    if dense.distance not in (models.Distance.DOT, models.Distance.COSINE) or dense.multivector_config is not None:
        kind = "several vectors a point" if dense.multivector_config is not None else dense.distance.value
        raise InputError(
            f"the collection {collection!r} compares by {kind}; retrieval is by inner product: make a collection of "
            "distance Dot or Cosine"
        )
    return dense
