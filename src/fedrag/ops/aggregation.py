"""How many states become one: a weighted mean, and a sum of low-rank products kept low-rank.

Averages are running means in float64, mean += (x - mean) · w / W, cast once at the end. That holds one copy, however
many states come; a single state, and any number of equal ones, come out as they went in, to the bit.

A LoRA pair stands for the product B·A, and mean(B)·mean(A) is not mean(B·A). The mean of products is itself one
product, [w₁B₁ w₂B₂ ...]·[A₁; A₂; ...] (stacking: FLoRA, Wang et al. 2024, arXiv 2409.05976). Its best approximation of
a smaller rank is a truncated SVD (Eckart and Young 1936), as FlexLoRA (Bai et al. 2024, arXiv 2402.11505) takes it. The
product itself, as large as the weight that it changes, is never formed: with L = Q₁R₁ and Rᵀ = Q₂R₂ its singular values
are those of R₁R₂ᵀ = U·S·Vᵀ, no larger than the stack, and its singular vectors are L·R₂ᵀ·V/S and Rᵀ·R₁ᵀ·U/S, so that
Q₁ and Q₂ are not formed either.

A product has many pairs of factors, B·A = (B·T⁻¹)·(T·A), and training goes on differently from each. See `best`.

>>> product = Product.of(torch.tensor([[3.0, 1.0]]).double(), torch.tensor([[2.0], [4.0]]).double())
>>> b, a, singular = product.best(1, anchor=torch.tensor([[0.5]]).double())
>>> [round(number.item(), 6) for number in (b, a, singular)], round(product.norm(), 6)  # 3·2 + 1·4 = 20 · 0.5
([20.0, 0.5, 10.0], 10.0)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = torch.finfo(torch.float32).eps
"""Singular values below this share of the largest are rounding: float32 factors could not hold them."""

SKEWED = 10.0
"""Condition number from which on factors near an anchor would be too unlike each other in size."""


def fold(mean: Tensor, weight_before: float, value: Tensor, weight: float) -> None:
    """Take `value` of `weight` above 0 into `mean` (float64, in place), the mean of what weighed `weight_before`."""
    mean.add_(value.to(mean.dtype) - mean, alpha=weight / (weight_before + weight))


@dataclass(frozen=True, slots=True)
class Product:
    """The matrix `left @ right`, `[d, k]` and `[k, e]` in float64, known by its factors; make it with `of`."""

    left: Tensor  # [d, k]
    right: Tensor  # [k, e]
    r_left: Tensor  # [min(d, k), k], triangles of QR
    r_right: Tensor  # [min(e, k), k]

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> Product:
        """The product of two factors."""
        return cls(left, right, torch.linalg.qr(left, mode="r").R, torch.linalg.qr(right.mT, mode="r").R)

    def norm(self, middle: Tensor | None = None) -> float:
        """The Frobenius norm of the product, or of `left @ middle @ right` for a `[k, k]` matrix between the factors.

        Not by traces of Gram matrices: where the product nearly cancels, they leave half of the digits.
        """
        r_left = self.r_left if middle is None else self.r_left @ middle
        return float(torch.linalg.matrix_norm(r_left @ self.r_right.mT))

    @property
    def T(self) -> Product:
        """The transposed matrix."""
        return Product(self.right.mT, self.left.mT, self.r_right, self.r_left)

    def best(self, rank: int, anchor: Tensor, *, near: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The best approximation that has a given rank, in two factors.

        The rows of the right one are orthogonal, and as long as the anchor's are in the mean. With the singular values
        shared out evenly instead, both factors of a small product are small, and learn slowly: a step of one counts in
        proportion to the other. Signs are such that the largest entry of a row is positive. Where the product has fewer
        directions than `rank`, the anchor's main ones are added, with zeros in the left factor, so that they can learn.

        Args:
            rank: of the approximation.
            anchor: `[rank or more, e]`, not zero.
            near: an anchor `[rank, e]` is a guess at the right factor: take its projection on the rows of the
                approximation, and what belongs to it on the left. Where that is skewed, the anchor is used as above.

        Returns:
            `[d, rank]` and `[rank, e]`; and all singular values `[min(d, k, e)]` of the product.
        """
        u, singular, vh = torch.linalg.svd(self.r_left @ self.r_right.mT, full_matrices=False)  # [p, m] [m] [m, q]
        kept = min(rank, int((singular > NOTHING * singular[0]).sum()))
        left = self.left @ (self.r_right.mT @ vh[:kept].mT)  # [d, kept]: U·S
        rows = (u[:, :kept] / singular[:kept]).mT @ self.r_left @ self.right  # [kept, e]: V transposed
        if kept < rank:
            rest = anchor - anchor @ rows.mT @ rows
            rows = torch.cat([rows, torch.linalg.svd(rest, full_matrices=False).Vh[: rank - kept]])  # [rank, e]
            left = torch.nn.functional.pad(left, (0, rank - kept))
        if near:
            turn = anchor @ rows.mT  # [rank, rank]
            if torch.linalg.cond(turn) < SKEWED:
                return torch.linalg.solve(turn, left, left=False), turn @ rows, singular
        length = torch.linalg.matrix_norm(anchor) / math.sqrt(len(anchor))
        sign = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()  # [rank, 1]
        return left * sign.mT / length, rows * sign * length, singular
