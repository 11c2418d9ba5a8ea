"""Greedy decoding of a batch, one step at a time, and the text that a growing answer lets be seen.

The loop is ours so that one definition serves `generate` and `stream`: nothing of a checkpoint's own sampling settings
can leak in, stop strings end a row at once, and a caller that walks away ends the work. Prompts of different lengths
are padded on the left, the padding is masked and every token is told its position in its own text, so that a row comes
out as it would alone. A model that returns no cache is given the whole text at every step.

>>> cut("Paris. Question: next", ["Question:"])
'Paris.'
>>> visible("Paris.\\nQues", ["Question:"])                  # the rest may be the start of a stop string
'Paris.'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fedrag.generators.network import Network, positions_of
from fedrag.generators.scoring import padded


def greedy(
    network: Network,
    prompts: Sequence[Sequence[int]],
    *,
    steps: int,
    ends: frozenset[int],
    pad: int,
    halt: Callable[[Sequence[int]], bool],
) -> Iterator[list[list[int]]]:
    """Yield, after each of at most `steps` steps, the ids written so far in every row of `prompts`.

    A row is over after one of the `ends` (which is not written) or when `halt(ids)` says so.
    """
    ids, mask = padded(prompts, pad, network.device, left=True)  # [n, t]
    written: list[list[int]] = [[] for _ in prompts]
    over = [False] * len(prompts)
    fed, cache = ids, None
    for _ in range(steps):
        chosen, cache = _step(network, fed, mask, cache)  # [n]
        for row, token in enumerate(chosen.tolist()):
            if not over[row] and token in ends:
                over[row] = True
            elif not over[row]:
                written[row].append(token)
                over[row] = halt(written[row])
        yield written
        if all(over):
            return
        ids = torch.cat([ids, chosen[:, None]], dim=1)  # [n, t+1]
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        fed = ids if cache is None else chosen[:, None]


@torch.no_grad()
def _step(network: Network, fed: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    with torch.autocast(network.device.type, enabled=False):
        positions = positions_of(mask)[:, -fed.shape[1] :]
        logits, cache = network.next_logits(fed, mask, positions, cache)  # [n, v]
        return logits.argmax(-1), cache


def stops(text: str, stop: Sequence[str]) -> bool:
    """Whether one of the stop strings is in the text."""
    return any(s in text for s in stop)


def cut(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first stop string, without outer white space."""
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))].strip()


def visible(text: str, stop: Sequence[str]) -> str:
    """Return the part of an unfinished text that no further token can take back.

    Held back: an incomplete character, what may be the start of a stop string, and white space at the end.
    """
    if stops(text, stop):
        return cut(text, stop)
    text = text.rstrip("\ufffd")
    longest = max((len(s) for s in stop), default=0)
    for held in range(min(longest - 1, len(text)), 0, -1):
        if any(s.startswith(text[-held:]) for s in stop):
            return text[:-held].strip()
    return text.strip()
