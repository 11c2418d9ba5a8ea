"""Averaging LoRA adapters by what they do: the mean of the products s·B·A, not the product of the means.

Each site's adapter changes a weight by s·B·A, with s = alpha / rank. Averaging A and B apart gives s·mean(B)·mean(A),
which no site meant. Here the sites' factors are stacked, which is their mean exactly (FLoRA, Wang et al. 2024, arXiv
2409.05976), and the stack is cut to the best approximation that fits the adapter (FlexLoRA, Bai et al. 2024, arXiv
2402.11505). FedEx-LoRA (Singhal et al. 2024, arXiv 2410.09432) adds what the cut loses to the frozen weights; they stay
as they are here, and what is lost is told each round:

    lora_averaging_error    ‖mean(sBA) - s·mean(B)·mean(A)‖ / ‖mean(sBA)‖: what averaging A and B apart would do wrong
    lora_truncation_error   ‖mean(sBA) - sBA‖ / ‖mean(sBA)‖: what the cut loses

both Frobenius norms over all pairs, the former over those that all sites hold at one rank. Where it is small,
`Averaging()` does as well in less memory: this strategy holds the adapters of all sites of a round.

Sites may have adapters of different ranks and scales: the state has the largest rank met, with the scale of the first
site that has it, and each site gets its best approximation of its own rank. Over many rounds that favours what the
lowest rank can hold ("rank collapse", Wu et al. 2026, arXiv 2602.13486).

Many factors have one product, and training goes on differently from each. Where the ranks are equal, those nearest the
plain means of A and B are taken, so that what differs from averaging A and B apart is its error alone, and the state of
an optimiser that a site keeps (`Plan(keep_optimizer=True)`) still fits. Where they differ, the rows of A are orthogonal
and as long as the state's were. A pair that all sites return alike, as one site alone does, is taken over to the bit.

The other way to exactness is to train B alone, from an A that is the same at all sites: FFA-LoRA (Sun et al. 2024,
arXiv 2403.12313). It needs no strategy but `freeze_lora_a` in `build`, and sends half the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedrag.errors import ConfigError, InputError
from fedrag.federated.strategies.averaging import Averaging
from fedrag.federated.strategies.factors import Factors, begun, best, matrix, mean_begun, shaped
from fedrag.federated.strategies.pairs import Pair, is_a, pairs
from fedrag.federated.strategies.strategy import Member, Update
from fedrag.federated.trainable import State
from fedrag.ops.aggregation import Product


class ExactLoRA:
    """Mean of the adapters' products; other parameters are averaged as by `Averaging`.

    Raises:
        ConfigError: from `begin`, for a state without LoRA pairs; from `outgoing`, where the scale of the state is not
            known; from `finish`, where LoRA biases would have to be averaged over different scales.
        InputError: from `add` and `outgoing`, for a site whose pairs do not fit the state's.
    """

    ranks = True

    def __init__(self) -> None:
        self._scales: dict[str, float] = {}  # of the state's pairs, by the name of their A

    def begin(self, round: int, state: State) -> None:
        """Forget the round before; before the first one, everything."""
        if round == 0:
            self._scales.clear()
        self._pairs = pairs(state)
        if not self._pairs:
            raise ConfigError(
                f"ExactLoRA averages products of LoRA pairs, and none of the {len(state)} parameters exchanged is "
                "one: use Averaging(), which is exact for all others, and for lora_B alone where lora_A is frozen"
            )
        self._state = state
        self._held: dict[str, list[Factors]] = {pair.a: [] for pair in self._pairs}
        self._others = Averaging()
        self._others.begin(round, self._but_pairs(state))

    def add(self, update: Update) -> None:
        """Keep the reply's pairs, and fold in its other parameters."""
        if lacking := sorted(self._state.keys() - update.state.keys()):
            raise InputError(f"site {update.member.site!r} replied without {lacking[0]!r}; build the same model there")
        found: list[tuple[Pair, Factors]] = []
        for pair in self._pairs:
            factors = Factors(update.weight, _scale(update.member, pair), update.state[pair.b], update.state[pair.a])
            _check_fit(update.member, pair, self._state, tuple(factors.b.shape), tuple(factors.a.shape))
            found.append((pair, factors))
        self._others.add(replace(update, state=self._but_pairs(update.state)))
        for pair, factors in found:
            if factors.a.shape == self._state[pair.a].shape:
                self._scales.setdefault(pair.a, factors.scale)
            if update.weight:
                self._held[pair.a].append(factors)

    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the next state, whose pairs may have grown in rank, and the two errors."""
        others, _ = self._others.finish()
        new = dict(self._state) | others
        whole, lost, comparable, wrong = 0.0, 0.0, 0.0, 0.0  # squared norms, over pairs
        for pair in self._pairs:
            held = self._held[pair.a]
            total = sum(f.weight for f in held)
            rank = max(self._state[pair.a].shape[0], *(f.a.shape[0] for f in held))
            scale = self._settle_scale(pair, rank)
            left = torch.cat([matrix(f.b) * (f.weight / total * f.scale / scale) for f in held], dim=1)  # [d, k]
            product = Product.of(left, torch.cat([matrix(f.a) for f in held]))  # mean(sBA) / scale
            alike = len({f.a.shape[0] for f in held}) == 1
            full = alike and held[0].a.shape[0] == rank
            anchor = mean_begun(held, pair) if full else begun(self._state, pair)
            b, a, singular = best(pair, product, rank, anchor, near=full)
            size = scale**2 * float(singular.square().sum())
            whole += size
            lost += scale**2 * float(singular[rank:].square().sum())
            if alike:
                one = torch.eye(held[0].a.shape[0], dtype=torch.float64)
                means_b = torch.cat([one * (scale / f.scale) for f in held])  # [k, r]: left @ this is mean(B)
                means_a = torch.cat([one * (f.weight / total) for f in held], dim=1)  # [r, k]: this @ right is mean(A)
                wrong += (scale * product.norm(torch.eye(left.shape[1], dtype=torch.float64) - means_b @ means_a)) ** 2
                comparable += size
            if all(held[0].same(other) for other in held) and (held[0].scale, held[0].a.shape[0]) == (scale, rank):
                new[pair.b], new[pair.a] = held[0].b, held[0].a
            else:
                new[pair.b], new[pair.a] = shaped(pair, self._state, b, a)
        numbers = {"lora_truncation_error": math.sqrt(lost / whole) if whole else 0.0}
        if comparable:
            numbers["lora_averaging_error"] = math.sqrt(wrong / comparable)
        return new, numbers

    def meet(self, state: State, members: Iterable[Member]) -> None:
        """Learn from the sites that hold the state's pairs at its ranks what the products of the state are scaled by.

        To be told of all sites, in the order of their names, before `outgoing`: a state that comes from one of them can
        then be given to any other.
        """
        for member in members:
            for pair in pairs(state):
                if member.shapes.get(pair.a) == state[pair.a].shape:
                    self._scales.setdefault(pair.a, _scale(member, pair))

    def outgoing(self, state: State, member: Member) -> State:
        """The state, its pairs at the rank and the scale that the site has."""
        out = dict(state)
        for pair in pairs(state):
            try:
                shape_b, shape_a = member.shapes[pair.b], member.shapes[pair.a]
            except KeyError as error:
                raise InputError(f"site {member.site!r} has no parameter {error}; build the same model there") from None
            _check_fit(member, pair, state, shape_b, shape_a)
            scale, rank = _scale(member, pair), shape_a[0]
            if rank == state[pair.a].shape[0]:
                of_state = self._scales.setdefault(pair.a, scale)
                if of_state != scale:
                    out[pair.b] = (state[pair.b].double() * (of_state / scale)).to(state[pair.b].dtype)
                continue
            of_state = self._scales.get(pair.a)
            product = Product.of(matrix(state[pair.b]) * ((of_state or scale) / scale), matrix(state[pair.a]))
            b, a, singular = best(pair, product, rank, begun(state, pair))
            if of_state is None and singular[0] > 0:
                raise ConfigError(
                    f"the state holds {pair.a!r} at rank {state[pair.a].shape[0]} and site {member.site!r} at rank "
                    f"{rank}; what the state's product is multiplied by only a site of the state's rank can tell: let "
                    "one take part, or start from adapters with lora_B = 0"
                )
            out[pair.b], out[pair.a] = shaped(pair, state, b, a)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """What the state's products are multiplied by, by the name of the pair's A."""
        return {name: torch.tensor(scale, dtype=torch.float64) for name, scale in self._scales.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        self._scales = {name: float(scale) for name, scale in state.items()}

    def _but_pairs(self, state: State) -> State:
        mine = {name for pair in self._pairs for name in (pair.a, pair.b)}
        return {name: value for name, value in state.items() if name not in mine}

    def _settle_scale(self, pair: Pair, rank: int) -> float:
        """The scale of the new state: as before, or that of the first site with the larger rank."""
        held = self._held[pair.a]
        if rank > self._state[pair.a].shape[0]:
            self._scales[pair.a] = next(factors.scale for factors in held if factors.a.shape[0] == rank)
        scale = self._scales.setdefault(pair.a, held[0].scale)
        bias = pair.b.removesuffix("weight") + "bias"
        if bias in self._state and any(factors.scale != scale for factors in held):
            raise ConfigError(
                f"{bias!r} is multiplied by another scale at each site, so its mean is none: train without lora_bias, "
                "or with the same lora_alpha and rank everywhere"
            )
        return scale


def freeze_lora_a(module: nn.Module) -> int:
    """Let the module's LoRA pairs be trained in B alone (FFA-LoRA); return how many there are.

    Averaging B is then averaging the products, exactly, where every site has the same A: give all sites the same seed
    before the adapters are made, or load them from one folder. Call it before the trainer is made.

    Raises:
        ConfigError: where there is no pair, or one whose A is zero, so that B would never have an effect.
    """
    frozen = [parameter for name, parameter in module.named_parameters() if is_a(name)]
    if not frozen:
        raise ConfigError(f"the {type(module).__name__} has no lora_A to freeze: give it LoRA adapters first")
    for name, parameter in module.named_parameters():
        if is_a(name) and not bool(parameter.any()):
            raise ConfigError(
                f"{name!r} is zero, and frozen so it would keep its pair from any effect; adapters of embeddings begin "
                "that way: leave embeddings out of target_modules"
            )
    for parameter in frozen:
        parameter.requires_grad_(False)
    return len(frozen)


def _scale(member: Member, pair: Pair) -> float:
    scale = member.scales.get(pair.module)
    if scale is None or not math.isfinite(scale) or scale == 0:
        raise InputError(
            f"site {member.site!r} gives {scale} as the scale of {pair.module!r}, a finite number other than 0 is "
            "wanted (lora_alpha / rank); what is trained tells it in scales()"
        )
    return scale


def _check_fit(member: Member, pair: Pair, state: State, shape_b: tuple[int, ...], shape_a: tuple[int, ...]) -> None:
    """All but the rank must be the state's, and both factors must have the same."""
    want_b, want_a = tuple(state[pair.b].shape), tuple(state[pair.a].shape)
    rank = shape_a[0]
    if shape_b != (want_b[0], rank, *want_b[2:]) or shape_a[1:] != want_a[1:] or any(n != 1 for n in want_b[2:]):
        raise InputError(
            f"site {member.site!r} has {pair.b!r} as {shape_b} and {pair.a!r} as {shape_a}, the state as {want_b} and "
            f"{want_a}; they may differ in the rank alone, and grouped convolutions have none that is one"
        )
