"""Approximate search in a graph of the vectors (HNSW, by usearch), whose recall is measured before it is trusted.

`MemoryStore.accelerate` builds a `Graph`, asks it for the neighbours of the store's own vectors, compares them with
those of the exact search and turns the search wider until the recall suffices. What the graph finds is scored again
from the matrix, so that scores are true; it only ever proposes rows. One thread builds it, in the order of the rows:
the same vectors give the same graph.

The graph lives in memory, takes half a float32 matrix and some, and is not saved: build it again after opening.

>>> matrix = Matrix("float32", width=4)
>>> matrix.write(0, torch.randn(500, 4, generator=torch.Generator().manual_seed(0)))
>>> graph = built(matrix, 500, None, 0.9, connectivity=16, build_width=128)
>>> graph.measured.recall > 0.9
True
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrag.errors import InputError, StoreError
from fedrag.optional import require
from fedrag.progress import track
from fedrag.stores.matrix import Matrix, plain

require("usearch", extra="accelerated")

from usearch.index import Index  # noqa: E402

_PIECE = 8192  # vectors added at a time
_WIDTHS = (64, 128, 256, 512, 1024)  # of a search, tried in turn
_DEPTH = 10  # of which recall is told
_ASKED = 200  # documents that are asked for their neighbours
_TIMED = 10  # queries over which the exact search is timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceleration:
    """What was measured when the graph was built.

    `recall` is that at 10: the share of the ten best documents that a search finds, over `queries` queries. `seconds`
    is the time of building; `exact_ms` and `graph_ms` are those of one query, with the graph and without.
    """

    recall: float
    queries: int
    documents: int
    seconds: float
    exact_ms: float
    graph_ms: float
    connectivity: int
    build_width: int
    search_width: int

    def __str__(self) -> str:
        return (
            f"recall@{_DEPTH} {self.recall:.3f} over {self.queries} queries of {self.documents:,} documents, "
            f"{self.graph_ms:.1f} ms a query in place of {self.exact_ms:.1f}; built in {self.seconds:.1f} s "
            f"(connectivity {self.connectivity}, build width {self.build_width}, search width {self.search_width})"
        )


class Graph:
    """The first `rows` rows of a matrix as a graph of neighbours by inner product; `built` makes and measures one."""

    measured: Acceleration

    def __init__(self, matrix: Matrix, rows: int, *, connectivity: int, build_width: int) -> None:
        self._matrix = matrix
        self._rows = rows
        self._index = Index(
            ndim=matrix.width, metric="ip", dtype="f16", connectivity=connectivity, expansion_add=build_width
        )
        with track(total=rows, desc="accelerate", unit="doc", delay=2) as bar:
            for part in torch.arange(rows, device="cpu").split(_PIECE):
                # of norm one at most, which half precision holds; a common factor changes no order
                values = matrix.take(part) / (matrix.longest or 1.0)
                self._index.add(part.numpy().astype(np.uint64), values.numpy(), threads=1)
                bar.update(len(part))

    def over(self, matrix: Matrix) -> Graph:
        """Go on with the same rows where they lie now, and with what came after them."""
        self._matrix = matrix
        return self

    def nearest(
        self, queries: Tensor, k: int, *, rows: int, keep: Tensor | None = None
    ) -> Iterator[list[tuple[int, float]]]:
        """As `Matrix.nearest`, but of the first rows what the graph finds; exact where that is less than k, or slow."""
        if 16 * k > self._rows:  # so deep a graph is slower
            yield from self._matrix.nearest(queries, k, rows=rows, keep=keep)
            return
        tail = None if keep is None else keep[self._rows : rows]
        late = rows - self._rows if tail is None else int(tail.sum())  # rows that count and came after the graph
        for query in queries:
            one = query[None]  # [1, d]
            near = self._near(query, k)
            if keep is not None:
                near = near[keep[near]]
            candidates = self._matrix.scored(query, near) if len(near) else []
            if late:
                candidates += next(self._matrix.nearest(one, min(k, late), rows=rows, keep=keep, first=self._rows))
            enough = len(candidates) >= k
            yield candidates if enough else next(self._matrix.nearest(one, k, rows=rows, keep=keep))

    def measure(self, queries: Tensor, own: Sequence[int], floor: float) -> tuple[float, float, float]:
        """Turn the search wider until its recall reaches the floor; return it, and ms a query, exact and here.

        `own` is, per query, the row that it was taken from, which every search finds first and which does not count.
        """
        depth = min(_DEPTH + 1, self._rows)
        began = time.perf_counter()
        for query in queries[:_TIMED]:  # one by one, as people ask
            list(self._matrix.nearest(query[None], depth, rows=self._rows))
        exact_ms = (time.perf_counter() - began) * 1e3 / min(_TIMED, len(queries))
        truth = list(self._matrix.nearest(queries, depth, rows=self._rows))
        best = [_ten(found, row) for found, row in zip(truth, own, strict=True)]
        recall, graph_ms = 0.0, 0.0
        for width in _WIDTHS:
            self._index.expansion_search = width
            began = time.perf_counter()
            found = [
                self._matrix.scored(query, self._near(query, _DEPTH + (row >= 0)))
                for query, row in zip(queries, own, strict=True)
            ]
            graph_ms = (time.perf_counter() - began) * 1e3 / len(queries)
            # by score and not by row: one of several equal documents is as right as another
            right = [
                sum(score >= scores[-1] for score in _ten(candidates, row))
                for candidates, row, scores in zip(found, own, best, strict=True)
                if scores
            ]
            recall = sum(right) / max(1, sum(len(scores) for scores in best)) if right else 1.0
            if recall >= floor:
                break
        return recall, exact_ms, graph_ms

    @property
    def width(self) -> int:
        """How many rows a search keeps in view: the more, the better and slower it is."""
        return int(self._index.expansion_search)

    def _near(self, query: Tensor, k: int) -> Tensor:
        """Return rows `[2 k]` for a query `[d]`: spare ones, for half precision mistakes ranks, and rows may go."""
        length = float(torch.linalg.vector_norm(query)) or 1.0
        found: Any = self._index.search((query / length).numpy(), min(2 * k, self._rows), threads=1)
        return torch.from_numpy(np.asarray(found.keys).astype(np.int64))


def built(
    matrix: Matrix, rows: int, queries: Tensor | None, floor: float, connectivity: int, build_width: int
) -> Graph:
    """Build a graph and measure it. Raises `StoreError` where its recall stays below the floor."""
    if not (0 <= floor <= 1 and connectivity >= 2 and build_width >= 1):
        raise InputError(
            "accelerate() takes a floor from 0 to 1, connectivity >= 2 and build_width >= 1, got "
            f"{floor}, {connectivity} and {build_width}"
        )
    if queries is None:
        chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:_ASKED]
        asked, own = matrix.take(chosen), chosen.tolist()
    else:
        asked, own = plain(queries), [-1] * len(queries)
        matrix.check_width(asked)
    if not len(asked):
        raise InputError("recall is measured with one query at least, got none; leave queries out to use documents")
    began = time.perf_counter()
    graph = Graph(matrix, rows, connectivity=connectivity, build_width=build_width)
    seconds = time.perf_counter() - began
    recall, exact_ms, graph_ms = graph.measure(asked, own, floor)
    if recall < floor:
        raise StoreError(
            f"the accelerated search has a recall@{_DEPTH} of {recall:.3f} over {len(asked)} queries at its widest, "
            f"and {floor} is wanted: search stays exact; raise connectivity and build_width, or accept a lower floor"
        )
    graph.measured = Acceleration(
        recall=recall,
        queries=len(asked),
        documents=rows,
        seconds=seconds,
        exact_ms=exact_ms,
        graph_ms=graph_ms,
        connectivity=connectivity,
        build_width=build_width,
        search_width=graph.width,
    )
    return graph


def _ten(candidates: list[tuple[int, float]], own: int) -> list[float]:
    """The ten best scores of these rows, best first, without that of the query's own row."""
    return sorted((score for row, score in candidates if row != own), reverse=True)[:_DEPTH]
