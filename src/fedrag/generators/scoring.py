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
torch.Size([2, 2])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedrag.errors import InputError
from fedrag.generators.network import Network, expand, positions_of
from fedrag.ops.likelihood import IGNORED, supervised, token_logprobs

_SHARED = 16  # tokens that a prefix needs to be worth a pass of its own
_CPU_TOKENS = 1024  # in a batch without gradient on a CPU: what its caches hold (15-20 % faster than 16384, measured)
_PADDED = 8  # a batch of more than 1/8 of the token budget closes for the sake of less padding
_LOGITS = 2**27  # logits held at a time: half a gigabyte in float32
_LOGITS_CPU = 2**23  # without gradient on a CPU: a piece that the allocator can use again


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a prompt and of the target after it."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


@dataclass(frozen=True, slots=True)
class _Row:
    """A pair on its way: its place in the caller's order, and the group whose prefix it continues."""

    place: int
    pair: Pair
    group: int = 0
    skip: int = 0  # tokens that are in the prefix

    @property
    def tail(self) -> int:
        return len(self.pair) - self.skip


@dataclass(frozen=True, slots=True)
class _Prefix:
    """The beginnings of some groups, run through the model: their cache, and their mask `[g, p]`."""

    cache: Any
    mask: Tensor


def require_pairs(prompts: Sequence[str], targets: Sequence[str], group: int) -> None:
    """Raise `InputError` unless there is a target for every prompt, and `group` divides their number."""
    if len(prompts) != len(targets) or group < 1 or len(prompts) % group:
        raise InputError(
            f"got {len(prompts)} prompts, {len(targets)} targets and group={group}: "
            "give one target per prompt, and a number of prompts that is a multiple of group"
        )


def score(network: Network, pairs: Sequence[Pair], *, group: int = 1, pad: int, batch_tokens: int) -> Tensor:
    """Return `[n, t]` log-probabilities of the targets' tokens, zero behind a target's end; float32 (or float64).

    The sum of a row is log p(target | prompt). Differentiable when gradients are enabled and a parameter takes one.
    `group` consecutive pairs belong to one query. A batch holds at most `batch_tokens` tokens, padding included, or a
    single pair.
    """
    differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in network.model.parameters())
    share = group > 1 and network.can_share and not differentiable
    run_tokens = min(batch_tokens, _CPU_TOKENS) if network.device.type == "cpu" and not differentiable else batch_tokens
    width = max((len(pair.target) for pair in pairs), default=0)
    order: list[int] = []
    parts: list[Tensor] = []
    with torch.set_grad_enabled(differentiable), _precision(network, differentiable):
        for heads, rows in _plan(pairs, group if share else 1, batch_tokens):
            prefix = _run_prefix(network, heads, pad) if heads else None
            for batch in _batches(rows, max(map(len, heads), default=0), batch_tokens, run_tokens):
                order.extend(row.place for row in batch)
                parts.append(_run(network, batch, prefix, pad, width))
    asked = torch.empty(len(order), dtype=torch.long)
    asked[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
    return torch.cat(parts)[asked.to(parts[0].device)] if parts else torch.zeros(0, 0)


def _precision(network: Network, differentiable: bool) -> torch.autocast:
    device = network.device.type
    wanted = differentiable and torch.is_autocast_enabled(device)
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), enabled=wanted)


def _plan(pairs: Sequence[Pair], group: int, batch_tokens: int) -> Iterator[tuple[list[list[int]], list[_Row]]]:
    """Yield prefixes that fit into one pass, with the rows that continue them; first no prefix, with all other rows."""
    alone: list[_Row] = []
    shared: list[tuple[list[int], range]] = []
    for start in range(0, len(pairs), group):
        places = range(start, min(start + group, len(pairs)))
        head = _common([pairs[place].prompt for place in places]) if group > 1 else []
        if len(head) >= _SHARED:
            shared.append((head, places))
        else:
            alone.extend(_Row(place, pairs[place]) for place in places)
    yield [], alone
    shared.sort(key=lambda found: len(found[0]), reverse=True)
    while shared:
        taken = shared[: max(1, batch_tokens // len(shared[0][0]))]
        shared = shared[len(taken) :]
        rows = [_Row(i, pairs[i], g, len(head)) for g, (head, places) in enumerate(taken) for i in places]
        yield [head for head, _ in taken], rows


def _common(prompts: Sequence[list[int]]) -> list[int]:
    # the last token of every prompt stays out: its state predicts the first token of the target
    first, last = min(prompts), max(prompts)  # in lexical order these two differ the earliest
    limit = max(0, min(len(prompt) for prompt in prompts) - 1)
    return first[: next((i for i in range(limit) if first[i] != last[i]), limit)]


def _batches(rows: Sequence[_Row], prefix: int, held: int, run: int) -> Iterator[list[_Row]]:
    # `held` bounds the tokens in memory, the prefix repeated for every row; `run` those that go through the model
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: row.tail, reverse=True):
        if batch:
            widest, count = batch[0].tail, len(batch) + 1
            crowded = count * (prefix + widest) > held or count * widest > run
            padded = len(batch) * widest * _PADDED >= run and 4 * row.tail < 3 * widest
            if crowded or padded:
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch


def _run_prefix(network: Network, heads: Sequence[list[int]], pad: int) -> _Prefix:
    ids, mask = padded(heads, pad, network.device, left=True)  # [g, p]
    _, cache = network.states(ids, mask, positions=positions_of(mask), use_cache=True, last=1)
    return _Prefix(cache, mask)


def _run(network: Network, batch: Sequence[_Row], prefix: _Prefix | None, pad: int, width: int) -> Tensor:
    ids, mask = padded(
        [[*row.pair.prompt, *row.pair.target][row.skip :] for row in batch], pad, network.device
    )  # [n, t]
    labels = torch.full(ids.shape, IGNORED)  # [n, t]
    for i, row in enumerate(batch):
        at = len(row.pair.prompt) - row.skip
        labels[i, at : at + len(row.pair.target)] = torch.tensor(row.pair.target)
    last = ids.shape[1] + 1 - int((labels != IGNORED).any(0).nonzero()[0])  # positions from the first that predicts
    if prefix is None:
        states, _ = network.states(ids, mask, last=last)
    else:
        groups = torch.tensor([row.group for row in batch], device=network.device)  # [n]
        cache = deepcopy(prefix.cache)  # other batches continue it, too
        expand(cache, groups)
        mask = torch.cat([prefix.mask[groups], mask], dim=1)  # [n, p+t]
        positions = positions_of(mask)[:, prefix.mask.shape[1] :]  # [n, t]
        states, _ = network.states(ids, mask, positions=positions, cache=cache, use_cache=True, last=last)
    labels = labels[:, -states.shape[1] :].to(states.device)
    chosen, targets, owners = supervised(states, labels)  # [s, d], [s], [s]
    found = _target_logprobs(network, chosen, targets)  # [s]
    places = torch.tensor([place for row in batch for place in range(len(row.pair.target))], device=found.device)
    return found.new_zeros(len(batch), width).index_put((owners, places), found)  # [n, t]


def _target_logprobs(network: Network, states: Tensor, targets: Tensor) -> Tensor:
    cached = not torch.is_grad_enabled() and states.device.type == "cpu"
    step = max(1, (_LOGITS_CPU if cached else _LOGITS) // network.vocabulary)
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
