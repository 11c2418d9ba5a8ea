"""Log-likelihood of many (prompt, target) pairs under a causal model, at a fraction of the naive cost.

Three savings, each exact: the output head is applied to target positions only; pairs are batched with others of
their length; and the prefix that the prompts of one query have in common (instruction and question, when documents
come after the question) is run once, its cache repeated for the query's documents. The last one only where no
gradient is wanted.

Without a gradient, scores do not depend on a surrounding autocast, so that a cached score equals a fresh one.

Relations: `fedrag.generators.network` decides which shortcuts a model allows; `fedrag.ops.likelihood` holds the maths.

>>> import torch
>>> from transformers import LlamaConfig, LlamaForCausalLM
>>> tiny = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
>>> model = LlamaForCausalLM(tiny).eval()
>>> with torch.no_grad():
...     score(Network(model), [Pair([1, 5], [7, 2]), Pair([1, 5, 6], [2])], pad=0, batch_tokens=64).shape
torch.Size([2])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedrag.generators.network import Network, expand, positions_of
from fedrag.ops.likelihood import IGNORED, sum_rows, supervised, token_logprobs

_SHARED = 16  # tokens that a prefix needs to be worth a pass of its own
_FULL = 2048  # tokens from which a batch may close for the sake of less padding
_LOGITS = 2**27  # logits held at a time: half a gigabyte in float32


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a prompt and of the target after it."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows that share their first `prefix` tokens: one query's pairs, or a single pair with `prefix` 0."""

    rows: tuple[int, ...]
    prefix: int
    longest: int  # tokens of the longest row, prefix included

    @property
    def size(self) -> tuple[int, int]:
        return self.prefix, self.longest - self.prefix


def score(network: Network, pairs: Sequence[Pair], *, group: int = 1, pad: int, batch_tokens: int) -> Tensor:
    """Return `[n]` sums of log p(target | prompt), float32 (float64 for such a model).

    Differentiable when gradients are enabled and a parameter takes one. `group` consecutive pairs belong to one query.
    A batch holds at most `batch_tokens` tokens, padding included, or a single pair.
    """
    differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in network.model.parameters())
    share = group > 1 and network.can_share and not differentiable
    units = list(_units(pairs, group, batch_tokens) if share else _singles(pairs, range(len(pairs))))
    order: list[int] = []
    parts: list[Tensor] = []
    with torch.set_grad_enabled(differentiable), _precision(network, differentiable):
        for batch in _batches(units, batch_tokens):
            order.extend(row for unit in batch for row in unit.rows)
            parts.append(_run(network, pairs, batch, pad))
    asked = torch.empty(len(order), dtype=torch.long)
    asked[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
    return torch.cat(parts)[asked.to(parts[0].device)] if parts else torch.zeros(0)


def _precision(network: Network, differentiable: bool) -> torch.autocast:
    device = network.device.type
    wanted = differentiable and torch.is_autocast_enabled(device)
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), enabled=wanted)


def _singles(pairs: Sequence[Pair], rows: Iterable[int]) -> Iterator[_Unit]:
    return (_Unit((row,), 0, len(pairs[row])) for row in rows)


def _units(pairs: Sequence[Pair], group: int, batch_tokens: int) -> Iterator[_Unit]:
    for start in range(0, len(pairs), group):
        rows = range(start, min(start + group, len(pairs)))
        longest = max(len(pairs[row]) for row in rows)
        prefix = _common([pairs[row].prompt for row in rows])
        if prefix < _SHARED:
            yield from _singles(pairs, rows)
            continue
        step = max(1, batch_tokens // longest)
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            yield _Unit(tuple(part), prefix, max(len(pairs[row]) for row in part))


def _common(prompts: Sequence[list[int]]) -> int:
    # the last token of every prompt stays out: its state predicts the first token of the target
    first, last = min(prompts), max(prompts)  # in lexical order these two differ the earliest
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))


def _batches(units: Sequence[_Unit], batch_tokens: int) -> Iterator[list[_Unit]]:
    batch: list[_Unit] = []
    rows = width = prefix = 0
    for unit in sorted(units, key=lambda unit: unit.size, reverse=True):
        wider = max(width, unit.longest - unit.prefix)
        deeper = max(prefix, unit.prefix)
        crowded = (rows + len(unit.rows)) * (wider + deeper) > batch_tokens
        padded = rows * (width + prefix) >= _FULL and 4 * unit.longest < 3 * (wider + deeper)
        if batch and (crowded or padded or (unit.prefix == 0) != (prefix == 0)):
            yield batch
            batch, rows, wider, deeper = [], 0, unit.longest - unit.prefix, unit.prefix
        batch.append(unit)
        rows, width, prefix = rows + len(unit.rows), wider, deeper
    if batch:
        yield batch


def _run(network: Network, pairs: Sequence[Pair], batch: Sequence[_Unit], pad: int) -> Tensor:
    tails = [(pairs[row], unit.prefix) for unit in batch for row in unit.rows]
    whole = [[*pair.prompt, *pair.target][skip:] for pair, skip in tails]
    ids, mask = padded(whole, pad, network.device)  # [n, t]
    labels = torch.full(ids.shape, IGNORED)  # [n, t]
    for i, (pair, skip) in enumerate(tails):
        at = len(pair.prompt) - skip
        labels[i, at : at + len(pair.target)] = torch.tensor(pair.target)
    first = int((labels != IGNORED).any(0).nonzero()[0])  # the earliest supervised position of any row
    last = ids.shape[1] - first + 1
    cache, positions, use_cache = None, None, False
    if batch[0].prefix:
        heads = [pairs[unit.rows[0]].prompt[: unit.prefix] for unit in batch]
        prefix, before = padded(heads, pad, network.device, left=True)  # [g, p]
        _, cache = network.states(prefix, before, positions=positions_of(before), use_cache=True, last=1)
        repeats = torch.tensor([len(unit.rows) for unit in batch], device=network.device)
        rows = torch.arange(len(batch), device=network.device).repeat_interleave(repeats)  # [n]
        expand(cache, rows)
        mask = torch.cat([before[rows], mask], dim=1)  # [n, p+t]
        positions, use_cache = positions_of(mask)[:, before.shape[1] :], True
    states, _ = network.states(ids, mask, positions=positions, cache=cache, use_cache=use_cache, last=last)
    labels = labels[:, -states.shape[1] :].to(states.device)
    chosen, targets, owners = supervised(states, labels)  # [s, d], [s], [s]
    return sum_rows(_target_logprobs(network, chosen, targets), owners, len(whole))


def _target_logprobs(network: Network, states: Tensor, targets: Tensor) -> Tensor:
    step = max(1, _LOGITS // int(network.model.get_input_embeddings().weight.shape[0]))
    if len(targets) <= step:
        return token_logprobs(network.logits(states), targets)

    def part(some: Tensor, wanted: Tensor) -> Tensor:
        return token_logprobs(network.logits(some), wanted)

    pieces: list[Any] = [
        checkpoint(part, some, wanted, use_reentrant=False) if torch.is_grad_enabled() else part(some, wanted)
        for some, wanted in zip(states.split(step), targets.split(step), strict=True)
    ]
    return torch.cat(pieces)


def padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool = False
) -> tuple[Tensor, Tensor]:
    """Return ids and mask `[n, t]` of rows of different lengths, padded on the right, or on the left."""
    width = max(len(row) for row in rows)
    fill = [[pad] * (width - len(row)) for row in rows]
    seen = [[0] * len(gap) for gap in fill]
    ids = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, fill, strict=True)]
    mask = [
        [*gap, *([1] * len(row))] if left else [*([1] * len(row)), *gap] for row, gap in zip(rows, seen, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
