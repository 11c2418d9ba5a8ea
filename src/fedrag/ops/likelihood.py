"""Log-likelihood of target tokens: the shift of positions against labels, and a log-softmax that stays precise.

A causal model's state at position t predicts the token at t + 1. `supervised` is the one place in this package where
positions are shifted against labels; it selects before the output head is applied, so that a head over a vocabulary
of 100,000 tokens is multiplied with the few supervised positions only. `token_logprobs` leaves autocast, which on a
CPU would hand back log-softmax in bfloat16 without a word.

Source: the chain rule, log p(y | x) = sum over t of log p(y_t | x, y_<t).

>>> import torch
>>> labels = torch.tensor([[-100, -100, 2, 1]])                          # a prompt of two tokens, a target of two
>>> logits = torch.zeros(1, 4, 3)                                        # a model that knows nothing of 3 tokens
>>> states, targets, rows = supervised(logits, labels)
>>> targets.tolist(), rows.tolist()
([2, 1], [0, 0])
>>> token_logprobs(states, targets).sum().exp()                          # 1/3 * 1/3
tensor(0.1111)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedrag.errors import InputError

IGNORED = -100
"""The label of a position that is not supervised, as everywhere in PyTorch."""


def supervised(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Select the positions that predict a supervised label.

    `hidden` is `[n, t, d]` (states, or logits with d = v), `labels` `[n, t]` with the token id at its own position, or
    -100. The label at position 0 has no position before it and is never predicted. Returns the states `[s, d]`, the
    token ids `[s]` that they predict and the rows `[s]` of the batch that they belong to, in reading order.

    Raises `InputError` when the two differ in `[n, t]`.
    """
    if hidden.shape[:2] != labels.shape:
        raise InputError(
            f"hidden is {tuple(hidden.shape)} and labels {tuple(labels.shape)}: both need the same [n, t] in front;"
            " pass the labels of exactly the positions that the model saw"
        )
    chosen = labels[:, 1:] != IGNORED  # [n, t-1]
    rows, positions = chosen.nonzero(as_tuple=True)  # [s], [s]
    return hidden[rows, positions], labels[rows, positions + 1], rows


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Return `[s]` log-probabilities of `targets` `[s]` under `logits` `[s, v]`: float32, or float64 when given so."""
    with torch.autocast(logits.device.type, enabled=False):
        precise = logits if logits.dtype == torch.float64 else logits.float()  # [s, v]
        return -torch.nn.functional.cross_entropy(precise, targets, reduction="none")  # [s]
