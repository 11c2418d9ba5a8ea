"""What a strategy is: it folds the sites' replies, one after another, into the next state.

A round goes `begin(round, state)`, `add(update)` for each usable reply in the order of the sites' names, `finish()`.
The order is fixed so that the same replies give the same bits whatever order they arrive in; a strategy that only sums
need not hold more than one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedrag.federated.trainable import State


@dataclass(frozen=True, slots=True)
class Member:
    """What a site told of itself before it trained: names and shapes of its state, and the scales of its LoRA pairs."""

    site: str
    shapes: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Update:
    """A screened reply: the state after training, and its weight in an average."""

    member: Member
    state: State
    weight: float
    metrics: Mapping[str, float]


class Strategy(Protocol):
    """How the states of a round become one.

    One that must know all sites before it gives any of them its share (`outgoing`) may have a method
    `meet(state, members)` besides, which is then called first, with the members in the order of their names.
    """

    @property
    def ranks(self) -> bool:
        """Whether sites may hold LoRA pairs of different ranks."""
        ...

    def begin(self, round: int, state: State) -> None:
        """A round starts from `state`, which every site gets (or its share of it, see `outgoing`)."""
        ...

    def add(self, update: Update) -> None:
        """Fold in a reply."""
        ...

    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the next state (names, shapes, dtypes and order of the old one) and numbers for the history."""
        ...

    def outgoing(self, state: State, member: Member) -> State:
        """What this site gets of the state."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What the next round depends on beside the state, so that a run can be resumed."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        ...
