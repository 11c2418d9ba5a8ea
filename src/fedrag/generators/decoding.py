"""Greedy decoding of a batch, one step at a time, and the text that a growing answer lets be seen.

The loop is ours so that one definition serves `generate` and `stream`: nothing of a checkpoint's own sampling settings
can leak in, stop strings end an answer at once, and a caller that walks away ends the work. Prompts of different
lengths are padded on the left, the padding is masked and every token is told its position in its own text, so that a
row comes out as it would alone. A model that returns no cache is given the whole text at every step.

What is decoded is a mixture of prompts, of which a single prompt is the smallest. At each step the next token of answer
y is the likeliest under Σ_d w_d p(v | prompt_d, y), and every prompt of the mixture goes on with it. With w = p(d | q)
and one document per prompt that is decoding of RAG-Token (arXiv 2005.11401, section 2.5), and how RA-DIT (arXiv
2310.01352, section 2.2) and REPLUG (arXiv 2301.12652) read several documents.

>>> cut("Paris. Question: next", ["Question:"])
'Paris.'
>>> visible("Paris.\\nQues", ["Question:"])                  # the rest may be the start of a stop string
'Paris.'
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fedrag.errors import InputError
from fedrag.generators.network import Network, positions_of
from fedrag.generators.scoring import padded
from fedrag.generators.tokens import PromptTokenizer


@dataclass(frozen=True, slots=True)
class Mixed:
    """Token ids of the prompts that one answer follows, and the weight of each. Weights need not sum to one.

    Raises `InputError` unless every prompt has a finite weight of at least 0, and one of them is above 0.
    """

    prompts: Sequence[list[int]]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        sound = all(0 <= weight < math.inf for weight in self.weights) and any(self.weights)
        if len(self.prompts) != len(self.weights) or not sound:
            raise InputError(
                f"{len(self.prompts)} prompts came with the weights {list(self.weights)}: "
                "give each prompt one finite weight of at least 0, and not all of them 0"
            )

    @property
    def longest(self) -> int:
        """The number of tokens of the longest prompt."""
        return max(map(len, self.prompts))


@dataclass(frozen=True, slots=True)
class Decoder:
    """Mixtures to texts: all of them at once, or one piece by piece. An answer is over after one of the `ends`."""

    network: Network
    tokens: PromptTokenizer
    ends: frozenset[int]

    def texts(self, mixtures: Sequence[Mixed], steps: int, stop: Sequence[str], batch_tokens: int) -> list[str]:
        """Return the text of at most `steps` tokens after every mixture, cut before the first stop string."""
        texts = [""] * len(mixtures)
        for places in _batches(mixtures, steps, batch_tokens):
            *_, written = self._greedy([mixtures[place] for place in places], steps, stop)
            for place, answer in zip(places, written, strict=True):
                texts[place] = cut(self.tokens.decode(answer), stop)
        return texts

    def pieces(self, mixed: Mixed, steps: int, stop: Sequence[str]) -> Generator[str, None, str]:
        """Yield the pieces of what `texts` returns for one mixture, each as soon as nothing can take it back.

        Returns why the answer ends: "length" when it was cut off after `steps` tokens, else "stop".
        """
        shown, text, written = "", "", list[int]()
        for (written,) in self._greedy([mixed], steps, stop):
            text = self.tokens.decode(written)
            seen = visible(text, stop)
            if len(seen) > len(shown):
                yield seen[len(shown) :]
                shown = seen
        if rest := cut(text, stop)[len(shown) :]:
            yield rest
        return "length" if len(written) == steps and not stops(text, stop) else "stop"

    def _greedy(self, mixtures: Sequence[Mixed], steps: int, stop: Sequence[str]) -> Iterator[list[list[int]]]:
        def halt(written: Sequence[int]) -> bool:
            return bool(stop) and stops(self.tokens.decode(written), stop)

        return greedy(self.network, mixtures, steps=steps, ends=self.ends, pad=self.tokens.pad_id, halt=halt)


def _batches(mixtures: Sequence[Mixed], steps: int, batch_tokens: int) -> Iterator[list[int]]:
    """Yield places in `mixtures`, long with long, that hold at most `batch_tokens` tokens together, or a single one."""
    order = sorted(range(len(mixtures)), key=lambda place: mixtures[place].longest, reverse=True)
    while order:
        rows = list(accumulate(len(mixtures[place].prompts) for place in order))
        taken = max(1, bisect_right(rows, batch_tokens // (mixtures[order[0]].longest + steps)))
        yield order[:taken]
        order = order[taken:]


def greedy(
    network: Network,
    mixtures: Sequence[Mixed],
    *,
    steps: int,
    ends: frozenset[int],
    pad: int,
    halt: Callable[[Sequence[int]], bool],
) -> Iterator[list[list[int]]]:
    """Yield, after each of at most `steps` steps, the ids written so far after every one of `mixtures`.

    An answer is over after one of the `ends` (which is not written) or when `halt(ids)` says so.
    """
    ids, mask = padded([ids for mixed in mixtures for ids in mixed.prompts], pad, network.device, left=True)  # [n, t]
    owner = torch.tensor([place for place, mixed in enumerate(mixtures) for _ in mixed.prompts]).to(ids.device)  # [n]
    rows, log_weights = _table(mixtures)  # [g, k], [g, k]
    written: list[list[int]] = [[] for _ in mixtures]
    over = [False] * len(mixtures)
    fed, cache = ids, None
    for _ in range(steps):
        logits, cache = _step(network, fed, mask, cache)  # [n, v]
        best = mix(logits, rows, log_weights) if rows.shape[1] > 1 else logits  # [g, v]
        chosen = best.argmax(-1)  # [g]
        for place, token in enumerate(chosen.tolist()):
            if not over[place] and token in ends:
                over[place] = True
            elif not over[place]:
                written[place].append(token)
                over[place] = halt(written[place])
        yield written
        if all(over):
            return
        added = chosen[owner][:, None]  # [n, 1]
        ids = torch.cat([ids, added], dim=1)  # [n, t+1]
        mask = torch.cat([mask, mask.new_ones(added.shape)], dim=1)
        fed = ids if cache is None else added


def mix(logits: Tensor, rows: Tensor, log_weights: Tensor) -> Tensor:
    """Return `[g, v]` log Σ_k weight p(v | row) of the logits' `[n, v]` `rows` `[g, k]`: float32, or float64 for such.

    A place of the table that stands for nothing has the logarithm of the weight 0, and any row.
    """
    logprobs = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)  # [n, v]
    weights = log_weights.to(logprobs.device, logprobs.dtype).unsqueeze(-1)  # [g, k, 1]
    return torch.logsumexp(logprobs[rows.to(logits.device)] + weights, dim=1)


def _table(mixtures: Sequence[Mixed]) -> tuple[Tensor, Tensor]:
    """The row of every mixture's every prompt, `[g, k]`, and the logarithms of their weights, which sum to one."""
    widest = max(len(mixed.prompts) for mixed in mixtures)
    rows = torch.zeros(len(mixtures), widest, dtype=torch.long)
    weights = torch.zeros(len(mixtures), widest, dtype=torch.float64)
    start = 0
    for place, mixed in enumerate(mixtures):
        end = start + len(mixed.prompts)
        rows[place, : end - start] = torch.arange(start, end)
        weights[place, : end - start] = torch.tensor(mixed.weights, dtype=torch.float64)
        start = end
    return rows, (weights / weights.sum(-1, keepdim=True)).log()


@torch.no_grad()
def _step(network: Network, fed: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
    with torch.autocast(network.device.type, enabled=False):
        positions = positions_of(mask)[:, -fed.shape[1] :]
        return network.next_logits(fed, mask, positions, cache)  # [n, v]


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
