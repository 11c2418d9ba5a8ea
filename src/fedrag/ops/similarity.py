"""Scores of queries and documents: inner products, in float32 whatever the model's dtype.

>>> import torch
>>> q, d = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
>>> all_pairs(q, d).tolist()
[[1.0, 1.0], [0.0, 1.0]]
"""

from __future__ import annotations

import torch
from torch import Tensor


def all_pairs(queries: Tensor, documents: Tensor) -> Tensor:
    """Inner products of every query `[n, d]` with every document `[m, d]`: `[n, m]`, float32 (float64 is kept)."""
    with torch.autocast(queries.device.type, enabled=False):
        return _wide(queries) @ _wide(documents).T  # [n, m]


def own_candidates(queries: Tensor, documents: Tensor, owner: Tensor, slot: Tensor, k: int) -> Tensor:
    """Inner products of each query with its own candidates only.

    Args:
        queries: `[n, d]`.
        documents: `[s, d]`, each candidate once per query that has it.
        owner: `[s]`, the query that each candidate belongs to.
        slot: `[s]`, its place among that query's candidates.
        k: number of places.

    Returns:
        `[n, k]`, float32 (float64 is kept), `-inf` in places without a candidate.
    """
    with torch.autocast(queries.device.type, enabled=False):
        pairs = (_wide(queries)[owner] * _wide(documents)).sum(-1)  # [s]
    scores = pairs.new_full((len(queries), k), -torch.inf)
    return scores.index_put((owner, slot), pairs)  # [n, k]


def _wide(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()
