"""A matrix of vectors that grows by whole parts, and the exact search in it.

Growing adds a part and never copies one that is there, so that a store built batch by batch, or opened and added to,
needs no second copy at its peak; memory that is reserved and not yet written costs nothing. A part may also lie on a
file mapped copy-on-write: replaced rows then live in memory and the file stays as it is.

`nearest` finds candidates with one float32 product, all that its rounding error may have kept from the k best, and then
scores these again in float64, rounded to float32 at the end. A score therefore depends on its two vectors only, not on
the batch or the place in the matrix, and equal vectors have equal scores.

>>> import torch
>>> matrix = Matrix("float32", width=2)
>>> matrix.write(0, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
>>> [sorted(found) for found in matrix.nearest(torch.tensor([[0.0, 2.0]]), 2, rows=3)]
[[(1, 2.0), (2, 1.600000023841858)]]
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedrag.errors import InputError

DType = Literal["float32", "bfloat16"]
STORED: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<u2")}
"""How the values of each dtype lie in memory and in files; NumPy has no bfloat16, so its bits go as uint16."""

_GROUP = 64  # products whose maximum is taken first, so that 64 times fewer values are partitioned
_QUERIES = 64  # that go over the matrix together
_HELD = 8_000_000  # products held at a time: 32 MB
_TINY = np.float32(2.0**-125)  # the worst error by underflow, twice
_LOWEST = np.finfo(np.float32).min  # of what counts: -inf does not
_BLOCK = 8192  # rows converted at a time
_PART = 1 << 26  # bytes of a part, at most, unless more come at a time
_SHARED = 1 << 20  # bytes of a part that is not worth a copy
_FIRST = 256  # rows of the first part, at least
_LONGEST = 1e18  # norms up to here cannot overflow a float32 inner product


def plain(vectors: Tensor) -> Tensor:
    """Return `[n, d]` vectors as float32 on the CPU, without gradient. Raises `InputError` for NaN and infinity."""
    if vectors.dim() != 2 or (len(vectors) and not vectors.shape[1]):
        raise InputError(f"vectors have the shape {list(vectors.shape)}; give a matrix [n, d], one row per text")
    found = vectors.detach().to("cpu", torch.float32)
    norms = torch.linalg.vector_norm(found, dim=1)
    if not bool((norms <= _LONGEST).all()):
        row = int((~(norms <= _LONGEST)).nonzero()[0])
        raise InputError(
            f"the vector in row {row} has norm {float(norms[row])}; it must be finite and at most {_LONGEST:g}: "
            "look for NaN or infinite weights in the encoder"
        )
    return found


def plain_with_ids(vectors: Tensor, ids: Sequence[str]) -> Tensor:
    """`plain`, for vectors that belong to distinct ids, one each."""
    found = plain(vectors)
    if len(ids) != len(vectors):
        raise InputError(
            f"got {len(vectors)} vectors for {len(ids)} documents; give one vector each, in the same order"
        )
    if len(set(ids)) != len(ids):
        id, times = Counter(ids).most_common(1)[0]
        raise InputError(f"the id {id!r} comes {times} times in one call; give every document its own id")
    return found


class Matrix:
    """Rows of `width` values in float32 or bfloat16. `longest` is an upper bound of the rows' norms."""

    def __init__(
        self, dtype: DType, width: int, *, parts: Sequence[npt.NDArray[Any]] = (), longest: float = 0.0
    ) -> None:
        self.dtype: DType = dtype
        self.width = width
        self.longest = longest
        self._parts: list[npt.NDArray[Any]] = []
        self._ends: list[int] = []  # row after the last of each part
        for part in parts:
            self._join(part)

    def write(self, start: int, vectors: Tensor) -> None:
        """Put `[n, d]` float32 vectors into the rows from `start` on; grows as needed."""
        self.check_width(vectors)
        end = start + len(vectors)
        have = self._ends[-1] if self._ends else 0
        if end > have:
            most = _PART // (self.width * STORED[self.dtype].itemsize)
            self._join(np.empty((max(end - have, min(most, have + _FIRST)), self.width), STORED[self.dtype]))
        for at, piece in self._pieces(start, end):
            self._torch(piece)[:] = vectors[at - start : at - start + len(piece)]
        self._note(vectors)

    def replace(self, rows: Tensor, vectors: Tensor) -> None:
        """Put `[n, d]` float32 vectors into these `[n]` rows, which are there already."""
        self.check_width(vectors)
        places, stored = rows.numpy(), vectors.to(self._torch_dtype)
        for start, part, here in self._owners(places):
            self._torch(part)[torch.from_numpy(places[here] - start)] = stored[torch.from_numpy(here)]
        self._note(vectors)

    def take(self, rows: Tensor) -> Tensor:
        """Return a float32 copy `[..., d]` of these `[...]` rows."""
        values = self._gather(rows.numpy())  # [..., d]
        if self.dtype == "bfloat16":  # its bits are the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        return torch.from_numpy(values)

    def taken(self, rows: Tensor) -> Matrix:
        """Return a new matrix of these `[n]` rows, in this order; of ascending rows, whole parts are shared."""
        places = rows.numpy()
        parts: list[npt.NDArray[Any]] = []
        alone: list[npt.NDArray[np.int64]] = [places]  # rows to be copied, together
        if (places[1:] > places[:-1]).all():
            alone.clear()
            for start, part, here in self._owners(places):
                mine = places[here]
                first, end = int(mine[0]) - start, int(mine[-1]) - start + 1
                # a view keeps all of a part in memory, and many small parts would be slow
                most = len(mine) if part.base is not None else 2 * len(mine)
                if len(mine) == end - first and most >= len(part) and len(mine) * part.strides[0] >= _SHARED:
                    parts += [self._gather(np.concatenate(alone))] if alone else []
                    parts.append(part[first:end])
                    alone.clear()
                else:
                    alone.append(mine)
        parts += [self._gather(np.concatenate(alone))] if alone else []
        return Matrix(self.dtype, self.width, parts=parts, longest=self.longest)

    def write_to(self, file: BinaryIO, rows: Tensor) -> None:
        """Write the stored values of these `[n]` rows to a file, little-endian."""
        for part in rows.split(_BLOCK):
            file.write(self._gather(part.numpy()).data)

    def nearest(
        self, queries: Tensor, k: int, *, rows: int, keep: Tensor | None = None, first: int = 0
    ) -> Iterator[list[tuple[int, float]]]:
        """Yield, per row of `[n, d]` queries, candidate rows with their scores: at least the k best.

        Only the rows from `first` on and below `rows` count, and of these only where `keep`, booleans `[rows]`, is
        true; k is at most the number of these. Candidates come in no particular order, all that tie with the k-th
        among them.
        """
        mask = None if keep is None else np.where(keep.numpy(), np.float32(0), np.float32(-np.inf))  # [m]
        for block in queries.split(_QUERIES):
            for query, near in zip(block, self._near(block, k, first, rows, mask), strict=True):
                yield self.scored(query, near)

    def scored(self, query: Tensor, rows: Tensor) -> list[tuple[int, float]]:
        """Return these `[k]` rows, each with its score for a query `[d]`."""
        scores = [self._scores(query, part) for part in rows.split(_BLOCK)]
        return list(zip(rows.tolist(), np.concatenate(scores).tolist(), strict=True))

    def _near(
        self, queries: Tensor, k: int, first: int, rows: int, mask: npt.NDArray[np.float32] | None
    ) -> list[Tensor]:
        """Return, per row of `[n, d]` queries, the rows whose float32 product may be that of one of the k best."""
        # in NumPy but for the products: it stays in this thread, and waking others costs more than they save here
        error = torch.linalg.vector_norm(queries, dim=1).numpy() * np.float32(self.longest * _error(self.width))  # [n]
        best = np.full((len(queries), k), -np.inf, np.float32)  # [n, k]
        near: list[list[npt.NDArray[np.int64]]] = [[] for _ in queries]
        step = _HELD // len(queries)
        for start in range(first, rows, step):
            end = min(start + step, rows)
            group = min(_GROUP, max(1, (end - start) // (8 * k)))
            products = self._products(queries, start, end, group)  # [n, m]
            if mask is not None:
                products[:, : end - start] += mask[start:end]
            grouped = products.reshape(len(queries), group, -1)  # [n, g, m / g]: maxima of long vectors are fast
            maxima = grouped.max(1)  # [n, m / g]
            # these belong to different rows, so that at least k rows have products as good as the k-th best of them
            best = np.partition(np.concatenate([best, maxima], 1), -k, 1)[:, -k:]
            floors = np.maximum(best[:, 0] - error - _TINY, _LOWEST)  # [n]
            for i, floor in enumerate(floors):
                groups = (maxima[i] >= floor).nonzero()[0]
                turns, places = (grouped[i][:, groups] >= floor).nonzero()
                near[i].append(start + turns * maxima.shape[1] + groups[places])
        return [torch.from_numpy(np.concatenate(parts)) for parts in near]

    def _scores(self, query: Tensor, rows: Tensor) -> npt.NDArray[np.float32]:
        """Return the float32 scores `[k]` of a query `[d]` and `[k]` rows."""
        vectors = self.take(rows).numpy().astype(np.float64)  # [k, d]
        vectors *= query.numpy()
        return vectors.sum(-1).astype(np.float32)

    def _products(self, queries: Tensor, start: int, end: int, group: int) -> npt.NDArray[np.float32]:
        """Return the products `[n, m]` of `[n, d]` queries with these rows, padded with -inf to whole groups."""
        count = end - start
        products = torch.empty((len(queries), -(-count // group) * group), dtype=torch.float32, device="cpu")  # [n, m]
        products[:, count:] = -torch.inf
        for first, values in self._pieces(start, end):
            matrix = self._torch(values)
            for piece in (matrix,) if self.dtype == "float32" else matrix.split(_BLOCK):
                at = first - start
                # written with out=, which autocast leaves in float32
                torch.mm(queries, piece.float().T, out=products[:, at : at + len(piece)])
                first += len(piece)
        return products.numpy()

    def _join(self, part: npt.NDArray[Any]) -> None:
        self._parts.append(part)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(part))

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yield the rows from `start` to `end`, part by part, each with the number of its first row."""
        while start < end:
            at = bisect_right(self._ends, start)
            stop = min(end, self._ends[at])
            offset = self._ends[at] - len(self._parts[at])
            yield start, self._parts[at][start - offset : stop - offset]
            start = stop

    def _owners(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.bool_]]]:
        """Yield every part that holds some of these `[...]` rows: its first row, its values, which rows it holds."""
        owners = np.searchsorted(self._ends, rows, side="right")
        for at in np.unique(owners).tolist():
            yield self._ends[at] - len(self._parts[at]), self._parts[at], owners == at

    def _gather(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return a copy `[..., d]` of these `[...]` rows as they are stored."""
        if len(self._parts) == 1:
            return self._parts[0][rows]
        found = np.empty((*rows.shape, self.width), STORED[self.dtype])
        for start, part, here in self._owners(rows):
            found[here] = part[rows[here] - start]
        return found

    def _torch(self, values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).view(self._torch_dtype)  # [m, d]

    @property
    def _torch_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "float32" else torch.bfloat16

    def check_width(self, vectors: Tensor) -> None:
        """Raise `InputError` unless the vectors are as wide as the matrix."""
        if len(vectors) and vectors.shape[1] != self.width:
            raise InputError(
                f"the vectors are {vectors.shape[1]} wide, those of the store {self.width}: use the encoder that "
                "filled the store, or re-embed it with the new one (rebuild)"
            )

    def _note(self, vectors: Tensor) -> None:
        if len(vectors):
            longest = float(torch.linalg.vector_norm(vectors, dim=1).max())
            self.longest = max(self.longest, longest * (1 + 2.0**-7))  # bfloat16 may round a value up by that much


def _error(width: int) -> float:
    """Return twice the worst error of a float32 product of unit vectors, the last rounding included."""
    try:
        precise = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # somebody set the precision backend by backend
        precise = False
    # else torch may take the factors as bfloat16, where the processor is faster at that
    return (width + 2) * 2.0**-22 + (0.0 if precise else 2.0**-6)
