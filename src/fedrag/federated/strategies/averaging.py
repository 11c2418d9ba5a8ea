"""The weighted mean of the sites' states: federated averaging (McMahan et al. 2017, arXiv 1602.05629).

Every parameter is averaged by itself, in float64, and cast once. Memory: one float64 copy of the state, however many
sites there are. One site, and any number of equal ones, get back their state to the bit.

>>> import torch
>>> from fedrag.federated.strategies.strategy import Member, Update
>>> averaging = Averaging()
>>> averaging.begin(0, {"w": torch.zeros(1)})
>>> for site, value, weight in (("a", 1.0, 30), ("b", 5.0, 10)):
...     averaging.add(Update(Member(site, {"w": (1,)}, {}), {"w": torch.tensor([value])}, weight, {}))
>>> averaging.finish()
({'w': tensor([2.])}, {})
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from fedrag.errors import ConfigError, InputError, TrainingError
from fedrag.federated.strategies.strategy import Member, Update
from fedrag.federated.trainable import State, zeros_like
from fedrag.ops.aggregation import fold


class Averaging:
    """The sites' states, averaged by weight."""

    ranks = False

    def begin(self, round: int, state: State) -> None:
        """Forget the round before."""
        self._state = state
        self._mean = zeros_like(state)
        self._weight = 0.0
        self._sites = 0

    def add(self, update: Update) -> None:
        """Fold in a reply. Raises `InputError` where its names, a shape or its weight cannot be averaged."""
        check_weight(update)
        if odd := sorted(update.state.keys() ^ self._state.keys()):
            raise InputError(
                f"site {update.member.site!r}: {odd[0]!r} is not in both its reply and the state; all sites must train "
                "the same parameters"
            )
        for name, value in update.state.items():
            if value.shape != self._state[name].shape:
                raise InputError(
                    f"site {update.member.site!r}: {name!r} has the shape {tuple(value.shape)}, the state's has "
                    f"{tuple(self._state[name].shape)}; build the same model at all sites"
                )
        self._sites += 1
        if update.weight:
            for name, value in update.state.items():
                fold(self._mean[name], self._weight, value, update.weight)
        self._weight += update.weight

    def finish(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the mean, and no numbers. Raises `TrainingError` where nothing has weight."""
        if not self._weight:
            raise TrainingError(
                f"the replies of {self._sites} sites weigh 0 in total, so they have no mean: give a site examples to "
                "train on, or set Plan(weighting='uniform')"
            )
        return {name: self._mean[name].to(value.dtype) for name, value in self._state.items()}, {}

    def outgoing(self, state: State, member: Member) -> State:
        """The state itself."""
        return state

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: a round depends on its state alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raise `ConfigError` for a state that another strategy wrote."""
        if state:
            raise ConfigError(
                f"Averaging keeps nothing from round to round, and the checkpoint has {next(iter(state))!r}: resume "
                "with the strategy that wrote it"
            )


def check_weight(update: Update) -> None:
    """Raise `InputError` for a weight that is no finite number from 0 on."""
    if not 0 <= update.weight < math.inf:
        raise InputError(
            f"site {update.member.site!r} has the weight {update.weight}; a weight is a finite number from 0 on"
        )
