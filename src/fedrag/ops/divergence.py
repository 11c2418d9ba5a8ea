"""How far a retriever's scores are from a target distribution.

Scores `[n, k]` carry the gradient and are `-inf` where a candidate is missing; targets `[n, k]` carry none. Each
function returns one value per query, `[n]`, in nats, never averaged over k (torch's `kl_div` with its default
reduction divides by n times k, which makes the learning rate depend on k).

>>> import torch
>>> t, s = torch.tensor([[0.5, 0.5]]), torch.tensor([[3.0, 3.0]])
>>> forward_kl(t, s).item(), reverse_kl(t, s).item()
(0.0, 0.0)
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward_kl(target: Tensor, scores: Tensor) -> Tensor:
    """KL(t || P) with P = softmax(scores); its gradient with respect to the scores is P - t.

    Mean-seeking: every candidate that the target likes must get mass. What the released code of REPLUG and ATLAS uses.
    """
    logp = torch.log_softmax(scores, -1)  # [n, k]
    here = target > 0
    safe = torch.where(here, target, 1.0)
    return torch.where(here, target * (safe.log() - torch.where(here, logp, 0.0)), 0.0).sum(-1)  # [n]


def reverse_kl(target: Tensor, scores: Tensor) -> Tensor:
    """KL(P || t) with P = softmax(scores): the direction that the papers of REPLUG and RA-DIT write.

    Mode-seeking: its gradient is P (log P/t - KL), which vanishes where P is near zero.
    """
    present = torch.isfinite(scores)
    logp = torch.log_softmax(scores, -1)  # [n, k]
    logp = torch.where(present, logp, 0.0)
    logt = torch.where(present, target.clamp_min(torch.finfo(target.dtype).tiny).log(), 0.0)
    return torch.where(present, logp.exp() * (logp - logt), 0.0).sum(-1)  # [n]
