"""What can be federated: anything with the five members of `Trainable`.

A trainer of transformers (ours, TRL's, sentence-transformers') gets them from `fedrag.federated.trainers`; an object of
one's own may simply have them:

>>> class Mean:
...     num_examples = 3
...     value = torch.zeros(1)
...     def exchange_state(self): return {"value": self.value.clone()}
...     def load_exchange_state(self, state): self.value = state["value"].clone()
...     def train(self, segment): self.value += 0.5 * (4.0 - self.value); return {}
...     def evaluate(self): return {"distance": abs(4.0 - self.value.item())}
>>> isinstance(Mean(), Trainable)
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""By name, in the trainer's own order: on the CPU, without graph, each in its parameter's dtype."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A site's share of one round.

    Attributes:
        round: from 0.
        rounds: of the whole plan; the learning rate is a function of the step over rounds times local steps.
        site: name of the site.
        seed: the plan's.
        optimizer: file of the optimiser's state at the site, read before (where there is one) and written after;
            `None`: the optimiser starts anew each round.
    """

    round: int
    rounds: int
    site: str
    seed: int = 0
    optimizer: Path | None = None


@runtime_checkable
class Trainable(Protocol):
    """Five members that make an object federable."""

    @property
    def num_examples(self) -> int:
        """Examples trained on: the site's weight in an average."""
        ...

    def exchange_state(self) -> State:
        """What travels: trainable parameters, adapters alone where there are adapters."""
        ...

    def load_exchange_state(self, state: State) -> None:
        """Take over a state; raise `InputError`, and change nothing, where a name or shape differs."""
        ...

    def train(self, segment: Segment) -> Mapping[str, float]:
        """Train for one round from the state as it is; return numbers to report."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Measure the state as it is, without drawing training randomness; `{}` with nothing to measure on."""
        ...


@runtime_checkable
class Described(Protocol):
    """What a trainable may tell besides; one that does not is known by the names and shapes of its state alone."""

    def fingerprint(self, ignoring: Sequence[str] = ()) -> str:
        """A digest of all that must be equal at every site and does not travel: frozen weights, kind of adapters.

        Parameters whose name fits a pattern of `ignoring` are the site's own, and left out.
        """
        ...

    def scales(self) -> Mapping[str, float]:
        """What B·A of each LoRA pair is multiplied by, by the pair's name: the parameter's up to `.lora_A`."""
        ...

    def finish(self) -> None:
        """Called after the last round with the final state in place: bring up to date what it makes stale."""
        ...


def personal(state: State, patterns: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state into what is exchanged and what is the site's own: names that fit a pattern of `fnmatch`."""
    own = {name for name in state if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return (
        {name: value for name, value in state.items() if name not in own},
        {name: value for name, value in state.items() if name in own},
    )


def zeros_like(state: State) -> dict[str, Tensor]:
    """A float64 state of zeros with the same names and shapes, to sum into."""
    return {name: torch.zeros_like(value, dtype=torch.float64) for name, value in state.items()}
