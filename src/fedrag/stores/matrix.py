"""One contiguous matrix of vectors that grows in place, and the exact search in it.

Growing asks the allocator to extend the block (`realloc`, which moves memory pages instead of copying them), so that
a store built batch by batch needs no second copy at its peak. A matrix may also lie on a file mapped copy-on-write:
replaced rows then live in memory and the file stays as it is.

`nearest` finds candidates with one float32 product and then scores these again in float64, rounded to float32 at the
end. A score therefore depends on its two vectors only, not on the batch or the place in the matrix, and equal
vectors have equal scores.

>>> import torch
>>> matrix = Matrix("float32", width=2)
>>> matrix.write(0, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
>>> [sorted(found) for found in matrix.nearest(torch.tensor([[0.0, 2.0]]), 2, rows=3)]
[[(1, 2.0), (2, 1.600000023841858)]]
"""

from __future__ import annotations

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

_GROUP = 64  # columns whose maximum is taken first, so that top-k sorts 64 times fewer values
_SPARE = 16  # candidates beyond k, which nearly always cover the rounding error of the float32 product
_HELD = 8_000_000  # numbers held at a time: 32 MB in float32
_BLOCK = 8192  # rows converted at a time
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
        self, dtype: DType, width: int, *, values: npt.NDArray[Any] | None = None, longest: float = 0.0
    ) -> None:
        self.dtype: DType = dtype
        self.width = width
        self.longest = longest
        self._values = np.empty((0, width), STORED[dtype]) if values is None else values

    def write(self, start: int, vectors: Tensor) -> None:
        """Put `[n, d]` float32 vectors into the rows from `start` on; grows as needed."""
        self.check_width(vectors)
        self._reserve(start + len(vectors))
        self._view(start + len(vectors))[start:] = vectors
        self._note(vectors)

    def replace(self, rows: Tensor, vectors: Tensor) -> None:
        """Put `[n, d]` float32 vectors into these `[n]` rows, which are there already."""
        self.check_width(vectors)
        self._view(len(self._values))[rows] = vectors.to(self._torch_dtype)
        self._note(vectors)

    def take(self, rows: Tensor) -> Tensor:
        """Return a float32 copy `[..., d]` of these `[...]` rows."""
        values = self._values[rows.numpy()]  # [n, d]
        if self.dtype == "bfloat16":  # its bits are the upper half of a float32
            values = (values.astype("<u4") << 16).view("<f4")
        return torch.from_numpy(values)

    def taken(self, rows: Tensor) -> Matrix:
        """Return a new matrix of these `[n]` rows, in this order."""
        return Matrix(self.dtype, self.width, values=self._values[rows.numpy()], longest=self.longest)

    def write_to(self, file: BinaryIO, rows: Tensor) -> None:
        """Write the stored values of these `[n]` rows to a file, little-endian."""
        for part in rows.split(_BLOCK):
            file.write(self._values[part.numpy()].data)

    def nearest(
        self, queries: Tensor, k: int, *, rows: int, keep: Tensor | None = None
    ) -> Iterator[list[tuple[int, float]]]:
        """Yield, per row of `[n, d]` queries, candidate rows with their scores: at least the k best.

        Only the first `rows` rows count, and of these only where `keep`, booleans `[rows]`, is true; k is at most the
        number of these. Candidates come in no particular order, all that tie with the k-th among them.
        """
        width = min(k + _SPARE, rows)
        for block in queries.split(max(1, min(_HELD // rows, _HELD // (width * self.width)))):
            products = self._products(block, rows)  # [n, m], padded to whole groups with -inf
            if keep is not None:
                products[:, :rows].masked_fill_(~keep, -torch.inf)
            values, places = _top(products, width)  # [n, k + spare]
            # twice the worst rounding error of a d-term float32 product, underflow and the last rounding included
            error = torch.linalg.vector_norm(block, dim=1) * self.longest * 2.0**-22 + 2.0**-125  # [n]
            floors = values[:, k - 1] - error * (self.width + 2)
            inside = values >= floors[:, None]  # [n, k + spare]
            scores = self._scores(block, places.clamp_(max=rows - 1))  # padding is never inside
            # when even the last candidate may tie with the k-th, others behind it may, too
            complete = [width == rows or not last for last in inside[:, -1].tolist()]
            for i, found in enumerate(zip(places.tolist(), scores.tolist(), inside.tolist(), strict=True)):
                if complete[i]:
                    yield [(row, score) for row, score, near in zip(*found, strict=True) if near]
                else:
                    near = (products[i, :rows] >= floors[i]).nonzero()[:, 0]
                    exact = [self._scores(block[i : i + 1], part[None])[0] for part in near.split(_BLOCK)]
                    yield list(zip(near.tolist(), torch.cat(exact).tolist(), strict=True))

    def _scores(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Return the float32 scores `[n, k]` of `[n, d]` queries and their own `[n, k]` rows."""
        # in NumPy, which stays in this thread: for arrays of this size, waking others costs more than they save
        vectors = self.take(rows).numpy().astype(np.float64)  # [n, k, d]
        vectors *= queries.double().numpy()[:, None]
        return torch.from_numpy(vectors.sum(-1).astype(np.float32))

    def _products(self, queries: Tensor, rows: int) -> Tensor:
        whole = -(-rows // _GROUP) * _GROUP
        scores = torch.empty((len(queries), whole), dtype=torch.float32, device="cpu")  # [n, m]
        scores[:, rows:] = -torch.inf
        matrix = self._view(rows)
        # written with out=, which autocast leaves in float32
        if self.dtype == "float32":
            torch.mm(queries, matrix.T, out=scores[:, :rows])
        else:
            for start in range(0, rows, _BLOCK):
                piece = matrix[start : start + _BLOCK].float()
                torch.mm(queries, piece.T, out=scores[:, start : start + len(piece)])
        return scores

    def _view(self, rows: int) -> Tensor:
        # views are made per call and never kept: `resize` below may move the memory under them
        return torch.from_numpy(self._values[:rows]).view(self._torch_dtype)  # [m, d]

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

    def _reserve(self, rows: int) -> None:
        have = len(self._values)
        if rows <= have:
            return
        rows = max(rows, have + have // 16)
        if self._values.flags.owndata:
            self._values.resize((rows, self.width), refcheck=False)
        else:  # on a mapped file, which cannot grow
            grown = np.empty((rows, self.width), self._values.dtype)
            grown[:have] = self._values
            self._values = grown


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of `[n, m]` scores and their columns; m is a whole number of groups."""
    n, m = scores.shape
    if n == 1:
        return scores.topk(k)
    grouped = scores.view(n, m // _GROUP, _GROUP)
    # the k best values lie in the k groups with the best maxima
    groups = grouped.amax(-1).topk(min(k, m // _GROUP)).indices  # [n, k]
    inside = grouped.gather(1, groups.unsqueeze(-1).expand(-1, -1, _GROUP)).flatten(1)
    values, at = inside.topk(k)
    return values, groups.gather(1, at // _GROUP) * _GROUP + at % _GROUP
