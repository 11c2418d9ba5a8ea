"""What a federation will cost, told before it begins: what travels, what stays, seconds on the wire, server memory.

    print(preflight(build(Site.local()), sites=5, plan=plan))

It builds nothing and trains nothing, draws no random number, and takes a copy of the exchanged parameters alone. Bytes
are those of the arrays in Flower's messages: the numbers, and a header of 128 bytes or so that NumPy gives each array
that is not bf16. Beside them a message has a few hundred bytes of words, and an array about as many for its place.

Every site is taken to be like the one that was built: with LoRA pairs of several ranks, give the largest.

Server memory is what the process that runs the rounds holds at most beside Python and its libraries, right to a third
where it was measured (states of 16 to 40 MB, 3 to 8 sites); a SuperLink holds messages of its own.

>>> import torch
>>> class Mean:
...     num_examples = 3
...     def exchange_state(self): return {"w": torch.zeros(250_000), "head": torch.zeros(10)}
...     def load_exchange_state(self, state): raise AssertionError
...     def train(self, segment): raise AssertionError
...     def evaluate(self): raise AssertionError
>>> print(preflight(Mean(), sites=4, plan=Plan(rounds=10, fraction=0.5, personal=["head"])))
10 rounds with 2 of 4 sites, Averaging, precision keep
<BLANKLINE>
                     numbers        bytes
exchanged            250,000       1.0 MB
the site's own            10         40 B
frozen               unknown      unknown
<BLANKLINE>
                        down           up
a round               2.0 MB       2.0 MB
the run              24.0 MB      24.0 MB
on the wire            0.3 s a round, at 100 Mbit/s for the server
server memory        15.0 MB
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedrag.errors import ConfigError
from fedrag.federated.exchange import pack
from fedrag.federated.plan import Plan
from fedrag.federated.strategies.averaging import Averaging
from fedrag.federated.strategies.lora import ExactLoRA
from fedrag.federated.strategies.strategy import Strategy
from fedrag.federated.trainable import State, personal
from fedrag.federated.trainers import FromTrainer, trainable
from fedrag.training.trainer import RAGTrainer


@dataclass(frozen=True, slots=True)
class Share:
    """So many parameters: numbers, and the bytes that they have where they lie."""

    numbers: int
    bytes: int

    @classmethod
    def of(cls, tensors: Iterator[Tensor]) -> Share:
        """Count tensors, each once."""
        each = {id(tensor): tensor for tensor in tensors}.values()
        return cls(sum(t.numel() for t in each), sum(t.numel() * t.element_size() for t in each))


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a plan costs with a trainer; `print` it.

    Attributes:
        plan: the plan.
        sites: how many there are.
        training: how many of them train in a round.
        exchanged: what travels.
        own: personal parameters, which stay at each site and differ.
        frozen: the rest of the models, which must be equal at all sites; `None` where only a trainer could tell.
        state_bytes: of the numbers of one state, as sent: what a `Round` of the history counts.
        header_bytes: of the headers of its arrays.
        server_bytes: that the process which runs the rounds holds at most; an estimate.
        mbit_per_second: of the server's line.
    """

    plan: Plan
    sites: int
    training: int
    exchanged: Share
    own: Share
    frozen: Share | None
    state_bytes: int
    header_bytes: int
    server_bytes: int
    mbit_per_second: float

    @property
    def message_bytes(self) -> int:
        """Of one state in one message."""
        return self.state_bytes + self.header_bytes

    @property
    def round_bytes(self) -> int:
        """To all sites that train in a round; as many come back."""
        return self.training * self.message_bytes

    @property
    def run_bytes(self) -> int:
        """To all sites in the whole run; as many come back: each shows its state once, and gets the final one once."""
        return self.plan.rounds * self.round_bytes + self.sites * self.message_bytes

    @property
    def seconds_per_round(self) -> float:
        """That the states of a round take, down and then up, through the line of the server, which all sites share."""
        return 2 * self.round_bytes * 8 / (self.mbit_per_second * 1e6)

    def __str__(self) -> str:
        plan, name = self.plan, _name(self.plan)
        shares = {"exchanged": self.exchanged, "the site's own": self.own, "frozen": self.frozen}
        stays = {what: (f"{s.numbers:,}", _size(s.bytes)) if s else ("unknown",) * 2 for what, s in shares.items()}
        travels = {"a round": _size(self.round_bytes), "the run": _size(self.run_bytes)}
        return "\n".join(
            [
                f"{plan.rounds} rounds with {self.training} of {self.sites} sites, {name}, precision {plan.precision}",
                "",
                _row("", "numbers", "bytes"),
                *(_row(what, *cells) for what, cells in stays.items()),
                "",
                _row("", "down", "up"),
                *(_row(what, size, size) for what, size in travels.items()),
                _row("on the wire", f"{self.seconds_per_round:,.1f} s")
                + f" a round, at {self.mbit_per_second:g} Mbit/s for the server",
                _row("server memory", _size(self.server_bytes)),
            ]
        )


def preflight(built: Any, *, sites: int, plan: Plan, mbit_per_second: float = 100.0) -> Preflight:
    """Tell what a plan costs.

    Args:
        built: what the recipe builds at a site: a trainer of `transformers`, or a `Trainable`.
        sites: how many there will be.
        plan: the plan.
        mbit_per_second: what the server's line carries, one way at a time.

    Raises:
        ConfigError: for what cannot be federated, and a plan that does not fit it or the number of sites.
        InputError: for a parameter that cannot be exchanged.
    """
    if isinstance(sites, bool) or not isinstance(cast(Any, sites), int) or sites < plan.quorum:
        raise ConfigError(f"sites is a whole number from the plan's quorum, {plan.quorum}, on; got {sites!r}")
    if not 0 < mbit_per_second < math.inf:
        raise ConfigError(f"mbit_per_second is a number above 0, got {mbit_per_second!r}")
    site = trainable(built)
    state = site.exchange_state()
    exchanged, own = personal(state, plan.personal)
    if not exchanged:
        raise ConfigError(
            f"each of the {len(state)} trained parameters fits a pattern of personal={list(plan.personal)}, so that "
            "nothing is left to exchange: take a narrower pattern"
        )
    strategy = plan.folding()
    if isinstance(strategy, ExactLoRA):
        strategy.begin(0, exchanged)  # says what to do where there is no pair
    training = min(sites, max(plan.quorum, math.ceil(plan.fraction * sites - 1e-9)))
    # packed without their numbers, the tensors tell the dtype in which they will travel
    bare = pack({name: value.new_empty(0) for name, value in exchanged.items()}, plan.precision)
    sent = {name: packed.dtype for name, packed in bare.items()}
    state_bytes = sum(v.numel() * getattr(torch, sent[name]).itemsize for name, v in exchanged.items())
    return Preflight(
        plan=plan,
        sites=sites,
        training=training,
        exchanged=(share := Share.of(iter(exchanged.values()))),
        own=Share.of(iter(own.values())),
        frozen=_frozen(site, state),
        state_bytes=state_bytes,
        header_bytes=sum(_header(sent[name], tuple(v.shape)) for name, v in exchanged.items()),
        server_bytes=_server_bytes(plan, strategy, sites, training, share, state_bytes),
        mbit_per_second=float(mbit_per_second),
    )


def _frozen(site: Any, state: State) -> Share | None:
    if not isinstance(site, FromTrainer):
        return None
    everything, trained = Share.of(_parameters(site.trainer)), Share.of(iter(state.values()))
    return Share(everything.numbers - trained.numbers, everything.bytes - trained.bytes)


def _parameters(trainer: Any) -> Iterator[Tensor]:
    """Of all models that a trainer works with."""
    if isinstance(trainer, RAGTrainer):
        yield from trainer.objective.rag.named_parameters().values()
        return
    loss = getattr(trainer, "loss", None)  # sentence-transformers': one, or one for each data set
    losses = list(cast(dict[str, Any], loss).values()) if isinstance(loss, dict) else [loss]
    for root in (trainer.model, *losses, getattr(trainer, "ref_model", None)):
        if isinstance(root, nn.Module):
            yield from root.parameters()


def _header(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes that NumPy's format puts before the numbers; bf16 travels without."""
    if dtype == "bfloat16":
        return 0
    head = io.BytesIO()
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, described)
    return head.tell()


def _server_bytes(plan: Plan, strategy: Strategy, sites: int, training: int, share: Share, sent: int) -> int:
    """At the worst moment of a round or of the closing; a request is held in two forms until its round is over."""
    single, double = 4 * share.numbers, 8 * share.numbers
    state = max(single, share.bytes) if sent < share.bytes else share.bytes
    closing = state + double + sites * 3 * sent
    if isinstance(strategy, Averaging):
        return max(closing, state + 2 * double + 4 * sent + training * 3 * sent)
    if isinstance(strategy, ExactLoRA):
        return max(closing, state + 4 * sent + training * (3 * sent + share.bytes))
    # Flower's, or one's own: all replies, and once more as what is handed to it
    handed = double if _measures(plan) else single
    return max(closing, state + 8 * single + training * 2 * (sent + handed))


def _measures(plan: Plan) -> bool:
    """Whether the strategy is one of Flower's that measure distances between sites, which get float64."""
    if not hasattr(plan.strategy, "aggregate_train"):
        return False
    from flwr.serverapp import strategy as flower

    return isinstance(plan.strategy, flower.MultiKrum | flower.Bulyan)


def _name(plan: Plan) -> str:
    return type(plan.strategy or Averaging()).__name__


def _row(what: str, *cells: str) -> str:
    return f"{what:<16}" + "".join(f"{cell:>12} " for cell in cells).rstrip()


def _size(count: int) -> str:
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= each:
            return f"{count / each:,.1f} {unit}"
    return f"{count} B"
