"""Large contrastive batches in the memory of small ones (GradCache, Gao et al. 2021, arXiv 2101.06983).

The paper embeds all texts without a graph, takes the loss's gradients with respect to the embeddings, and embeds
again, piece by piece, to push those gradients on. Checkpointing each piece does exactly that: the first pass keeps
only the embeddings, the backward pass recomputes one piece at a time. It is one ordinary backward, so it is exact,
draws the same dropout twice, and works under DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def embed_in_pieces(encode: Callable[[Sequence[T]], Tensor], items: Sequence[T], size: int) -> Tensor:
    """Return `encode(items)`, `[n, d]`, holding the activations of at most `size` items at any time."""
    pieces = [items[start : start + size] for start in range(0, len(items), size)]
    if len(pieces) <= 1:
        return encode(items)
    return torch.cat([cast(Tensor, checkpoint(encode, piece, use_reentrant=False)) for piece in pieces])
