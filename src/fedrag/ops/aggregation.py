"""How many states become one: a weighted mean, and a sum of low-rank products kept low-rank.

Averages are running means in float64, mean += (x - mean) · w / W, cast once at the end. That holds one copy, however
many states come; a single state, and any number of equal ones, come out as they went in, to the bit.

A LoRA pair stands for the product B·A, and mean(B)·mean(A) is not mean(B·A). The mean of products is itself one
product, [w₁B₁ w₂B₂ ...]·[A₁; A₂; ...] (stacking: FLoRA, Wang et al. 2024, arXiv 2409.05976). Its best approximation of
a smaller rank is a truncated SVD (Eckart and Young 1936), as FlexLoRA (Bai et al. 2024, arXiv 2402.11505) takes it. The
product itself, as large as the weight that it changes, is never formed: with QR of both stacks, L = Q₁R₁ and Rᵀ = Q₂R₂,
the SVD is that of R₁R₂ᵀ, which is no wider than the stack.

>>> import torch
>>> left, right = torch.tensor([[3.0, 1.0]]).double(), torch.tensor([[2.0], [4.0]]).double()  # 3·2 + 1·4
>>> b, a, singular = refactor(left, right, 1)
>>> round((b @ a).item(), 6), round(singular.item(), 6)
(10.0, 10.0)
"""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = torch.finfo(torch.float32).eps
"""Singular values below this share of the largest are rounding: float32 factors could not hold them."""


def fold(mean: Tensor, weight_before: float, value: Tensor, weight: float) -> None:
    """Take `value` of `weight` above 0 into `mean` (float64, in place), the mean of what weighed `weight_before`."""
    mean.add_(value.to(mean.dtype) - mean, alpha=weight / (weight_before + weight))


def refactor(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best approximation of `left @ right` that has a given rank, in two balanced factors.

    Args:
        left: `[d, k]`, float64.
        right: `[k, e]`, float64.
        rank: of the result; where the product has less, the rest is zero.

    Returns:
        `[d, rank]` and `[rank, e]`, each with the square roots of the singular values, largest first and the largest
        entry of every column of the former positive; and all singular values `[min(d, k, e)]` of the product.
    """
    basis_left, core, basis_right = _core(left, right)
    u, singular, vh = torch.linalg.svd(core, full_matrices=False)  # [p, m] [m] [m, q]
    kept = min(rank, int((singular > NOTHING * singular[0]).sum()))
    root = singular[:kept].sqrt()
    b = basis_left @ u[:, :kept] * root  # [d, kept]
    a = root.unsqueeze(1) * (vh[:kept] @ basis_right.mT)  # [kept, e]
    sign = b.gather(0, b.abs().argmax(0, keepdim=True)).sign()  # [1, kept]
    missing = rank - kept
    pad = torch.nn.functional.pad
    return pad(b * sign, (0, missing)), pad(a * sign.mT, (0, 0, 0, missing)), singular


def product_norm(left: Tensor, right: Tensor) -> float:
    """The Frobenius norm of `left @ right`, `[d, k]` and `[k, e]`, without the product.

    Not by traces of Gram matrices: where the product nearly cancels, they leave half of the digits.
    """
    return float(torch.linalg.matrix_norm(_core(left, right)[1]))


def _core(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal columns `[d, p]` and `[e, q]`, and between them the small matrix `[p, q]` of the product."""
    basis_left, r_left = torch.linalg.qr(left)  # [d, p] [p, k]
    basis_right, r_right = torch.linalg.qr(right.mT)  # [e, q] [q, k]
    return basis_left, r_left @ r_right.mT, basis_right
