"""What a retriever's scores should become: target distributions over a query's candidates.

Every retriever objective is *candidate scores with gradient, a target without gradient, a divergence*. With
P = softmax(s) and KL(t || P), the gradient is ∂loss/∂s = (P - t) / n, so methods differ only in t:

| function         | method                                        | source                    |
|------------------|-----------------------------------------------|---------------------------|
| `one_hot`        | InfoNCE, multiple negatives ranking           | van den Oord 2018         |
| `likelihood`     | LSR: REPLUG, RA-DIT, ATLAS' perplexity target | arXiv 2301.12652, 2310.01352, 2208.03299 |
| `likelihood`     | distillation of a cross-encoder's scores      |                           |
| `leave_one_out`  | LOOP                                          | arXiv 2208.03299          |
| `posterior`      | RAG-Sequence, EMDR2 (retriever part), REALM   | arXiv 2005.11401, 2106.05346 |
| `token_posterior`| RAG-Token                                     | arXiv 2005.11401          |

All take and return `[n, k]` tensors, detached, rows summing to one; a candidate that is missing has the score `-inf`
and gets no mass.

>>> import torch
>>> likelihood(torch.tensor([[-1.0, -1.0, -torch.inf]])).tolist()
[[0.5, 0.5, 0.0]]
"""

from __future__ import annotations

import torch
from torch import Tensor


def one_hot(positive: Tensor) -> Tensor:
    """Equal mass on the candidates marked true in `positive` `[n, k]`; a row without any is all zero."""
    mass = positive.float()  # [n, k]
    return (mass / mass.sum(-1, keepdim=True).clamp_min(1)).detach()


def likelihood(logprobs: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(log p(y | q, d) / temperature): how much each candidate helps the generator to the answer.

    `logprobs` `[n, k]` may be sums over the answer's tokens or means; the temperature belongs to that choice.
    """
    return torch.softmax(logprobs.detach() / temperature, dim=-1)  # [n, k]


def leave_one_out(logprobs: Tensor, temperature: float = 1.0) -> Tensor:
    """softmax(-log p(y | q, all candidates but d_k) / temperature): how much the answer loses with each candidate.

    `logprobs` `[n, k]` are those without candidate k.
    """
    return likelihood(torch.where(torch.isfinite(logprobs), -logprobs, -torch.inf), temperature)


def posterior(scores: Tensor, logprobs: Tensor) -> Tensor:
    """p(d | q, y) = softmax(log p(d | q) + log p(y | q, d)), with p(d | q) = softmax(scores); all `[n, k]`."""
    return torch.softmax(torch.log_softmax(scores.detach(), -1) + logprobs.detach(), dim=-1)


def token_posterior(scores: Tensor, logprobs: Tensor) -> Tensor:
    """p(d | q, y_t) per answer token: `scores` `[n, k]`, `logprobs` `[n, k, t]` → `[n, k, t]`; sums to one over k."""
    prior = torch.log_softmax(scores.detach(), -1).unsqueeze(-1)  # [n, k, 1]
    return torch.softmax(prior + logprobs.detach(), dim=1)


def entropy(distribution: Tensor) -> Tensor:
    """Entropy of each row of `[n, k]` probabilities, in nats: `[n]`."""
    return torch.special.entr(distribution).sum(-1)
