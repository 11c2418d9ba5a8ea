"""Rounds are one schedule, and not the first epochs of so many runs.

A trainer that simply trains again in every round replays its batches and its dropout, and takes its learning rate
down to zero each time. Here round r of R with n local steps goes on where a single run of R·n steps would be:

- Data order and dropout come from a hash of (the plan's seed, the trainer's seed, the site, r). A hash, because
  samplers add the epoch to their seed: with seeds s and s + 1 one round would replay the other's second epoch. Round 0
  touches no random state, so that it is what training at one place alone would be.
- The learning rate at local step i is the full schedule's at step r·n + i: warm-up once, decay once. It is computed
  from the step alone, so that a trainer built anew in round r has the same. Objectives are told the step r·n + i, too.
- The optimiser starts anew, or from the file in which the site kept its state; see `OptimizerFile`. The file holds what
  the objective remembers, too: a teacher's score has the rounding of the batch in which it was asked first, so that a
  trainer built anew is the one that was kept to the bit with it, and up to rounding without.

>>> seed_of(Segment(1, 3, "north"), 42) != seed_of(Segment(2, 3, "north"), 42)
True
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from fedrag.durable import sync
from fedrag.errors import ConfigError, TrainingError
from fedrag.federated.trainable import Segment
from fedrag.training.trainer import RAGTrainer

_STATES = ("optimizer", "scaler", "objective")  # the last: what an objective need not compute again, such as scores


def seed_of(segment: Segment, seed: int) -> int:
    """The round's own seed, from 0 up to 2**32 - 1, made of the plan's, a trainer's, the site's name and the round."""
    told = json.dumps([segment.seed, seed, segment.site, segment.round])
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:4])  # NumPy takes no more than 32 bits


class OptimizerFile:
    """The optimiser's state between two rounds of a site, and that of the round before.

    A round may come twice, when a server goes on from its last checkpoint: it then starts from the state that it
    started from, which is still there as `<name>.before`. Round 0 starts without one, whatever is there.

    Args:
        path: the file.
        names: of the parameters, in the optimiser's order: a state of others is refused.
    """

    def __init__(self, path: Path, round: int, names: list[str]) -> None:
        self.path = path
        self.before = path.with_name(path.name + ".before")
        self.round = round
        self.names = names
        self._newer = False  # whether what is in `path` is older than this round, and must be kept when it is written

    def read(self) -> Mapping[str, Any] | None:
        """The newest state that is older than this round; `None` where there is none.

        Raises:
            TrainingError: for a file that cannot be read, or belongs to other parameters or to later rounds.
        """
        self._newer = False
        found = [(path, _load(path)) for path in (self.path, self.before) if self.round and path.is_file()]
        for path, content in found:
            if content["round"] < self.round:
                if content["names"] != self.names:
                    raise TrainingError(
                        f"{path} holds the optimiser's state of {len(content['names'])} other parameters than the "
                        f"{len(self.names)} that are trained now: remove it to start the optimiser anew"
                    )
                self._newer = path == self.path
                return content
        if found:
            raise TrainingError(
                f"{found[0][0]} holds the optimiser's state after round {found[0][1]['round']}, wanted is one from "
                f"before round {self.round}: remove it to start the optimiser anew"
            )
        return None

    def write(self, **states: Mapping[str, Any]) -> None:
        """Keep states of `_STATES` as those after this round; a crash leaves the old files or the new ones, whole."""
        aside = self.path.with_name(self.path.name + ".new")
        torch.save({"round": self.round, "names": self.names, **states}, aside)
        sync(aside)
        if self._newer:
            os.replace(self.path, self.before)
        elif not self.round:
            self.before.unlink(missing_ok=True)
        os.replace(aside, self.path)
        sync(self.path.parent)


class Continued(TrainerCallback):
    """Put a run that begins where its round is: the learning rate, the optimiser's state and the objective's step."""

    def __init__(self, trainer: Trainer, segment: Segment, names: Mapping[int, str]) -> None:
        self.trainer: Any = trainer
        self.segment = segment
        self.first = 0
        self.names = names
        self._objective = trainer.objective if isinstance(trainer, RAGTrainer) else None
        self._file: OptimizerFile | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The Trainer has made an optimiser and a schedule over its own steps; take those of the whole."""
        self.first = self.segment.round * state.max_steps
        if self.segment.optimizer is not None:
            groups = self.trainer.optimizer.param_groups
            names = [self.names.get(id(parameter), "") for group in groups for parameter in group["params"]]
            self._file = OptimizerFile(self.segment.optimizer, self.segment.round, names)
            if (kept := self._file.read()) is not None:
                self._take_over(kept)
        self.trainer.lr_scheduler = None
        whole = self.trainer.create_scheduler(num_training_steps=self.segment.rounds * state.max_steps)
        if not isinstance(whole, LambdaLR):
            raise ConfigError(
                f"the learning rate follows a {type(whole).__name__}, which is no function of the step alone and "
                "cannot go on from round to round: use 'linear', 'cosine' or another of transformers' own schedules"
            )
        later = LambdaLR(self.trainer.optimizer, whole.lr_lambdas, last_epoch=self.first - 1)
        self.trainer.lr_scheduler = self.trainer.callback_handler.lr_scheduler = later

    def count(self) -> None:
        """From here on the objective is told the step over all rounds, whoever tells it that of this round."""
        if self._objective is not None:
            tell = self._objective.at_step
            self._objective.at_step = lambda step: tell(self.first + step)

    def count_no_more(self) -> None:
        """The objective is told what it is told."""
        if self._objective is not None:
            vars(self._objective).pop("at_step", None)

    def keep(self) -> None:
        """Write the optimiser's state, where it is to be kept."""
        if self._file is not None and self.trainer.is_world_process_zero():
            scaler = self.trainer.accelerator.scaler
            self._file.write(
                optimizer=self.trainer.optimizer.state_dict(),
                scaler=scaler.state_dict() if scaler else {},
                objective=self._objective.extra_state() if self._objective else {},
            )

    def _take_over(self, kept: Mapping[str, Any]) -> None:
        optimizer = self.trainer.optimizer
        rates = [{name: group[name] for name in ("lr", "initial_lr")} for group in optimizer.param_groups]
        optimizer.load_state_dict(kept["optimizer"])
        for group, own in zip(optimizer.param_groups, rates, strict=True):
            group.update(own)  # the rate is the schedule's, not what it was when the state was written
        if (scaler := self.trainer.accelerator.scaler) is not None and kept["scaler"]:
            scaler.load_state_dict(kept["scaler"])
        if self._objective and kept["objective"]:
            self._objective.load_extra_state(kept["objective"])


@contextmanager
def going_on(trainer: Trainer, segment: Segment, trained: Mapping[str, nn.Parameter]) -> Generator[None]:
    """What `trainer.train()` does inside is the round `segment` of the whole; all settings are as before afterwards."""
    continued = Continued(trainer, segment, {id(parameter): name for name, parameter in trained.items()})
    args, loader = cast(Any, trainer.args), cast(Any, trainer.accelerator.dataloader_config)
    before = args.seed, args.data_seed, loader.data_seed
    trainer.add_callback(continued)
    try:
        continued.count()
        if segment.round:
            if args.data_seed is not None:
                args.data_seed = loader.data_seed = seed_of(segment, args.data_seed)
            args.seed = seed_of(segment, args.seed)  # sentence-transformers' batch samplers read it
            set_seed(args.seed)
        yield
        continued.keep()
    finally:
        args.seed, args.data_seed, loader.data_seed = before
        trainer.remove_callback(continued)
        continued.count_no_more()


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if {"round", "names", *_STATES} <= set(content):
            return content
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, TypeError):
        pass
    raise TrainingError(f"{path} is no state of an optimiser, or only part of one: remove it to start anew")
