"""The marginal likelihood of an answer over retrieved documents (Lewis et al. 2020, arXiv 2005.11401).

With p(d | q) = softmax(scores) over the k retrieved documents:

* RAG-Sequence, eq. 1: p(y | q) = Σ_d p(d | q) Π_t p(y_t | q, d, y_<t): one document explains the whole answer.
* RAG-Token, eq. 2:    p(y | q) = Π_t Σ_d p(d | q) p(y_t | q, d, y_<t): each token may lean on another document.

Both are proper distributions over answers, both agree when k = 1 or the answer is one token long.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rag_sequence(scores: Tensor, logprobs: Tensor) -> Tensor:
    """log p(y | q) of RAG-Sequence: `scores` `[n, k]`, `logprobs` of whole answers `[n, k]` → `[n]`."""
    return torch.logsumexp(torch.log_softmax(scores, -1) + logprobs, dim=-1)


def rag_token(scores: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
    """log p(y | q) of RAG-Token, `[n]`.

    Args:
        scores: `[n, k]`.
        logprobs: of the answer's tokens, `[n, k, t]`.
        mask: which tokens are real, not padding, `[n, t]`.
    """
    prior = torch.log_softmax(scores, -1).unsqueeze(-1)  # [n, k, 1]
    tokens = torch.logsumexp(prior + logprobs, dim=1)  # [n, t]
    return torch.where(mask, tokens, 0.0).sum(-1)
