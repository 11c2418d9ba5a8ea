"""The two factors of a LoRA pair as matrices, and how a product is put back into them.

Of the two, one begins at random and the other at zero: A and B in most layers, B and A in embeddings. The one that
begins at random is what a new pair of factors is measured by, see `fedrag.ops.aggregation.Product.best`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrag.federated.strategies.pairs import Pair
from fedrag.federated.trainable import State
from fedrag.ops.aggregation import Product


@dataclass(frozen=True, slots=True)
class Factors:
    """A site's pair, as it was sent, with the site's weight and the scale of the product."""

    weight: float
    scale: float
    b: Tensor  # [d, r]
    a: Tensor  # [r, e]

    def same(self, other: Factors) -> bool:
        """Whether the other site sent the same."""
        return self.scale == other.scale and torch.equal(self.b, other.b) and torch.equal(self.a, other.a)


def matrix(factor: Tensor) -> Tensor:
    """In float64, with the kernel of a convolution flattened: `[d, r]` or `[r, e]`."""
    return factor.double().flatten(1)


def begun(state: State, pair: Pair) -> Tensor:
    """The factor that begins at random, from the state: `[r, e]`; `[r, d]` of an embedding."""
    return matrix(state[pair.b]).mT if pair.embedding else matrix(state[pair.a])


def mean_begun(held: Sequence[Factors], pair: Pair) -> Tensor:
    """Its weighted mean over sites that hold the pair at one rank."""
    total = sum(f.weight for f in held)
    return torch.stack([begun({pair.b: f.b, pair.a: f.a}, pair) * (f.weight / total) for f in held]).sum(0)


def best(
    pair: Pair, product: Product, rank: int, anchor: Tensor, *, near: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """`Product.best` with the anchor on the side that begins at random: `[d, rank]`, `[rank, e]`, singular values.

    An anchor with fewer rows gets new ones, drawn as peft draws them from a seed that is the pair's own: a direction
    that is zero in both factors would stay zero, since no gradient reaches either.
    """
    if len(anchor) < rank or not anchor.any():
        draw = torch.Generator().manual_seed(zlib.crc32(pair.a.encode()))
        new = torch.rand((rank, anchor.shape[1]), generator=draw, dtype=anchor.dtype) * 2 - 1
        new *= math.sqrt(3) if pair.embedding else 1 / math.sqrt(anchor.shape[1])  # variance 1, or 1 / (3 e)
        anchor = torch.cat([anchor, new[len(anchor) :]]) if anchor.any() else new
    if pair.embedding:
        a, b, singular = product.T.best(rank, anchor, near=near)
        return b.mT, a.mT, singular
    return product.best(rank, anchor, near=near)


def shaped(pair: Pair, state: State, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices `[d, r]` and `[r, e]` in the shapes and dtypes of the state's pair."""
    old_b, old_a, rank = state[pair.b], state[pair.a], a.shape[0]
    return (
        b.to(old_b.dtype).reshape(old_b.shape[0], rank, *old_b.shape[2:]).contiguous(),
        a.to(old_a.dtype).reshape(rank, *old_a.shape[1:]).contiguous(),
    )
