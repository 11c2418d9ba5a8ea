"""Rankings fused, and the losses of a model that gives each pair of question and document a score of its own.

>>> reciprocal_rank_fusion([["a", "b"], ["b", "c"]], constant=60)[0]
('b', 0.03252247488101534)
>>> import torch
>>> positive, scores = torch.tensor([[True, False]]), torch.tensor([[0.0, 0.0]])
>>> round(pointwise(positive, scores).item(), 4), round(listwise(positive, scores).item(), 4)
(0.6931, 0.6931)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fedrag.ops.divergence import forward_kl
from fedrag.ops.targets import one_hot

T = TypeVar("T", bound=Hashable)


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[T]], *, constant: float = 60, weights: Sequence[float] | None = None
) -> list[tuple[T, float]]:
    """Score items by Σ_r w_r / (constant + rank_r), ranks from 1, best first (Cormack et al. 2009, SIGIR).

    Only ranks count, so that scores of different kinds may be fused. An item that a ranking lacks gets nothing from it;
    one that it names twice counts where it stands first.
    Equal scores stay in the order in which the rankings, one after another, name their items.
    """
    shares: dict[T, list[float]] = {}
    for ranking, weight in zip(rankings, weights or [1.0] * len(rankings), strict=True):
        for rank, item in enumerate(dict.fromkeys(ranking), start=1):
            shares.setdefault(item, []).append(weight / (constant + rank))
    # rounded once, so that the same ranks in another order of the rankings are the same score
    fused = [(item, math.fsum(parts)) for item, parts in shares.items()]
    return sorted(fused, key=lambda scored: -scored[1])


def pointwise(positive: Tensor, scores: Tensor) -> Tensor:
    """Binary cross entropy of each pair, -log σ(s) or -log σ(-s), and its mean over a query's candidates: `[n]`.

    `positive` `[n, k]` marks the relevant ones; scores `[n, k]` are logits, `-inf` where a candidate is missing. As in
    monoBERT (Nogueira and Cho 2019, arXiv 1901.04085); the gradient with respect to a score is (σ(s) - y) / k.
    """
    present = torch.isfinite(scores)
    signed = torch.where(positive, scores, -scores)
    losses = -torch.nn.functional.logsigmoid(torch.where(present, signed, 0.0))
    return torch.where(present, losses, 0.0).sum(-1) / present.sum(-1).clamp_min(1)


def listwise(positive: Tensor, scores: Tensor) -> Tensor:
    """KL(t || softmax(s)) over a query's candidates, t equal on the relevant ones: `[n]`, 0 at best.

    ListNet's top-one loss (Cao et al. 2007, ICML) with relevance itself for a distribution, known as the softmax cross
    entropy, which bounds MRR and nDCG (Bruch et al. 2019, ICTIR). The gradient with respect to the scores is P - t.
    """
    return forward_kl(one_hot(positive), scores)
