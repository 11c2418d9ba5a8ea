"""When the candidates of a run are retrieved anew: its refresh policy, as a callback of `transformers.Trainer`.

ATLAS (Izacard et al. 2022, arXiv 2208.03299) weighs what a refresh costs: a retriever that moves finds other
documents than it did, and what they teach goes stale. A retriever that stays as it is need not be asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fedrag.objectives.objective import Objective

Refresh = Literal["never", "epoch"] | int


class Refreshing(TrainerCallback):
    """Call `start` when a run begins, and `refresh` after the steps that the policy names."""

    def __init__(
        self, policy: Refresh, objective: Objective, start: Callable[[], None], refresh: Callable[[], None]
    ) -> None:
        self.policy = policy
        self.objective = objective
        self.moving = moves_retriever(objective)
        self.start = start
        self.refresh = refresh

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Get the candidates of the first step."""
        self.start()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tell the objective which step comes."""
        self.objective.at_step(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Get those of the next step.

        The epoch's end too is seen here, and not in `on_epoch_end`: a checkpoint of its last step is written between
        the two, and must hold the candidates of the next step.
        """
        if isinstance(self.policy, int):
            due = state.global_step % self.policy == 0
        else:
            due = self.policy == "epoch" and float(state.epoch or 0).is_integer()
        if due and self.moving and state.global_step < state.max_steps:
            self.refresh()


def moves_retriever(objective: Objective) -> bool:
    """Whether the objective trains any part of the retriever."""
    return any(name.startswith("retriever/") for name in objective.trainable())
