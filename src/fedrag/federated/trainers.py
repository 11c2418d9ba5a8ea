"""Federate any `transformers.Trainer` as it is: ours, sentence-transformers', TRL's.

    FromTrainer(RAGTrainer(RALT(rag), train_dataset=train))
    FromTrainer(SFTTrainer(model, train_dataset=train, peft_config=LoraConfig()))

What is exchanged is what the trainer trains, by name and nothing else: adapters alone where there are adapters, and a
loss's own weights (sentence-transformers) as `loss/...`. Buffers are not exchanged: the running statistics of a
BatchNorm stay the site's own. A guide model inside a loss travels unless its parameters are frozen.

The trainer's `args` say what one round is: its epochs, or `max_steps`. The learning rate spans all rounds; see
`fedrag.federated.schedule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from numbers import Real
from typing import Any, cast

import torch
from sentence_transformers.base.trainer import BaseTrainer as SentenceTrainer
from torch import nn
from transformers import EarlyStoppingCallback, Trainer

from fedrag.errors import ConfigError, InputError
from fedrag.federated.identity import fingerprint, scales
from fedrag.federated.randomness import untouched
from fedrag.federated.schedule import going_on
from fedrag.federated.trainable import Segment, State, Trainable
from fedrag.training.trainer import RAGTrainer

_MEMBERS = ("num_examples", "exchange_state", "load_exchange_state", "train", "evaluate")
_CLOCKED = ("_runtime", "_per_second", "_seconds", "_time")
_REFUSED = {
    "load_best_model_at_end": "a round gives the state of its last step",
    "resume_from_checkpoint": "a round goes on from the state that it gets",
    "fp16_full_eval": "evaluating would round the weights that are trained",
    "bf16_full_eval": "evaluating would round the weights that are trained",
    "sync_ref_model": "a reference model that moves would stay behind at each site",
}
_STATEFUL_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


class FromTrainer:
    """What a federation needs of a trainer.

    Args:
        trainer: as a recipe makes it for training at one place; not trained yet.

    Raises:
        ConfigError: for a trainer without training examples or trained parameters, and for settings that cannot hold
            over rounds, by name.
    """

    def __init__(self, trainer: Trainer) -> None:
        _check(trainer)
        self.trainer = trainer
        self._given = _given_optimizer(trainer)
        self._fingerprints: dict[tuple[str, ...], str] = {}
        scaler = cast(Any, trainer.accelerator).scaler
        self._scaler = deepcopy(scaler.state_dict()) if scaler else None
        if not self._trained():
            raise ConfigError(
                f"the {type(trainer).__name__} has no parameter that requires a gradient, so there is nothing to "
                "exchange: give its model adapters, or let some of its parameters require gradients"
            )

    @property
    def num_examples(self) -> int:
        """Rows of the training set (packed ones, where TRL packs)."""
        return _rows(self.trainer.train_dataset)

    def exchange_state(self) -> State:
        """The trained parameters, copied to the CPU."""
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self._trained().items()}

    def load_exchange_state(self, state: State) -> None:
        """Take over a state, cast to each parameter's own dtype.

        Raises:
            InputError: for names or shapes that differ, and values that are no floats; nothing is changed then.
        """
        here = self._trained()
        lacking, foreign = [n for n in here if n not in state], [n for n in state if n not in here]
        if lacking or foreign:
            raise InputError(
                f"the state lacks {len(lacking)} of the {len(here)} trained parameters and has {len(foreign)} others, "
                f"{(lacking + foreign)[0]!r} for one: make it with the same recipe"
            )
        for name, parameter in here.items():
            if state[name].shape != parameter.shape or not state[name].is_floating_point():
                raise InputError(
                    f"{name!r} is {tuple(state[name].shape)} of {state[name].dtype} in the state, wanted is "
                    f"{tuple(parameter.shape)} of {parameter.dtype}: make it with the same recipe"
                )
        with torch.no_grad():
            for name, parameter in here.items():
                parameter.copy_(state[name])

    def train(self, segment: Segment) -> Mapping[str, float]:
        """Train one round from the state as it is.

        Returns the trainer's own numbers, `train_loss` among them, without those that a clock gives: runs that are the
        same have the same numbers.
        """
        if not 0 <= segment.round < segment.rounds:
            raise InputError(f"round {segment.round} of {segment.rounds}: rounds are counted from 0")
        self._begin_anew()
        with going_on(self.trainer, segment, self._trained()):
            train = (
                partial(self.trainer.train, final=False) if isinstance(self.trainer, RAGTrainer) else self.trainer.train
            )
            output = train()
        return _numbers(output.metrics)

    def evaluate(self) -> Mapping[str, float]:
        """The trainer's evaluation, or `{}` where it has nothing to evaluate on; it leaves no trace in training."""
        asked = isinstance(self.trainer, SentenceTrainer) and self.trainer.evaluator is not None
        if self.trainer.eval_dataset is None and not asked:
            return {}
        with untouched():
            return _numbers(self.trainer.evaluate())

    def fingerprint(self, ignoring: Sequence[str] = ()) -> str:
        """A digest of what must be equal at every site; computed once. See `fedrag.federated.identity`."""
        key = tuple(ignoring)
        if key not in self._fingerprints:
            model = self.trainer.objective if isinstance(self.trainer, RAGTrainer) else self.trainer.model
            self._fingerprints[key] = fingerprint(type(model).__name__, self._roots(), self._trained(), key)
        return self._fingerprints[key]

    def scales(self) -> Mapping[str, float]:
        """By the name of each LoRA pair."""
        return scales(self._roots(), self._trained())

    def finish(self) -> None:
        """Embed the documents anew where the final state changed their side."""
        if isinstance(self.trainer, RAGTrainer):
            self.trainer.refresh_index()

    def _roots(self) -> dict[str, nn.Module]:
        """The modules whose parameters are named, by the prefix of the names."""
        if isinstance(self.trainer, RAGTrainer):
            return {f"{name}/": part for name, part in self.trainer.objective.rag.parts().items()}
        roots: dict[str, nn.Module] = {"": cast(nn.Module, self.trainer.model)}
        if isinstance(self.trainer, SentenceTrainer):
            loss: Any = self.trainer.loss
            named = loss if isinstance(loss, dict) else {"": loss}
            roots |= {f"loss/{name}/" if name else "loss/": part for name, part in named.items()}
        if isinstance(reference := getattr(self.trainer, "ref_model", None), nn.Module):
            roots["reference/"] = reference  # TRL's: frozen, but the same everywhere
        return roots

    def _trained(self) -> dict[str, nn.Parameter]:
        """By name, each parameter once, in the order of the model."""
        if isinstance(self.trainer, RAGTrainer):
            return self.trainer.objective.trainable()
        found: dict[nn.Parameter, str] = {}
        for prefix, root in self._roots().items():
            if prefix != "reference/":
                for name, parameter in root.named_parameters():
                    if parameter.requires_grad:
                        found.setdefault(parameter, prefix + name)
        return {name: parameter for parameter, name in found.items()}

    def _begin_anew(self) -> None:
        """An optimiser without memory, at its initial rates, whatever the rounds before left."""
        trainer = cast(Any, self.trainer)
        trainer.optimizer = None
        if self._given is not None:
            trainer.optimizer, state = self._given
            trainer.optimizer.load_state_dict(deepcopy(state))
        if self._scaler is not None:
            trainer.accelerator.scaler.load_state_dict(self._scaler)


def trainable(built: Any) -> Trainable:
    """What a recipe built, as something that can be federated.

    Raises:
        ConfigError: where it is neither a Trainer nor has the five members of `Trainable`.
    """
    if isinstance(built, Trainer):
        return FromTrainer(built)
    lacking = [name for name in _MEMBERS if not hasattr(built, name)]
    if lacking or isinstance(built, type):
        kind = f"the class {built.__name__}" if isinstance(built, type) else f"a {type(built).__name__}"
        raise ConfigError(
            f"the recipe built {kind}"
            + (f" without {', '.join(lacking)}" if lacking else "")
            + ": return a transformers.Trainer, or an object with the five members of fedrag.federated.Trainable"
        )
    if not isinstance(built.num_examples, int):
        raise ConfigError(
            f"num_examples of a {type(built).__name__} is a {type(built.num_examples).__name__}, wanted is a whole "
            "number: make it a property"
        )
    return cast(Trainable, built)


def _check(trainer: Trainer) -> None:
    """Refuse what cannot hold over rounds, before anything is trained."""
    kind, some, args = type(trainer).__name__, cast(Any, trainer), cast(Any, trainer.args)
    for name, why in _REFUSED.items():
        if value := getattr(args, name, None):
            raise ConfigError(
                f"{name}={value!r} cannot hold over rounds: {why}; leave it out of the {kind}'s arguments"
            )
    schedule, optimizer = str(args.lr_scheduler_type.value), str(getattr(args.optim, "value", args.optim))
    if schedule in _STATEFUL_SCHEDULES:
        raise ConfigError(
            f"lr_scheduler_type={schedule!r} is no function of the step alone and cannot go on from round to round: "
            "use 'linear', 'cosine' or another of transformers' own schedules"
        )
    if some.lr_scheduler is not None and not some._created_lr_scheduler:
        raise ConfigError(
            f"the {kind} was given a {type(some.lr_scheduler).__name__}, which knows nothing of the other rounds: give "
            "optimizers=(optimizer, None), and name the schedule in lr_scheduler_type"
        )
    if "schedule_free" in optimizer:
        raise ConfigError(f"optim={optimizer!r} trains other weights than it gives: use 'adamw_torch', say")
    if some.model_init is not None:
        raise ConfigError(f"the {kind} has a model_init, which makes a new model in each round: give it the model")
    if any(isinstance(callback, EarlyStoppingCallback) for callback in some.callback_handler.callbacks):
        raise ConfigError(f"the {kind} stops early, and a round has its fixed share of steps: set Plan(rounds=...)")
    if some.is_fsdp_enabled or some.is_deepspeed_enabled:
        raise ConfigError(f"the {kind} runs under FSDP or DeepSpeed, whose weights lie in pieces: use one GPU per site")
    if trainer.train_dataset is None:
        raise ConfigError(f"the {kind} has no train_dataset: give it the site's examples")
    if not _rows(trainer.train_dataset):
        raise ConfigError(f"the train_dataset of the {kind} is empty: give it one example or more")


def _rows(dataset: Any) -> int:
    if isinstance(dataset, dict):
        return sum(_rows(part) for part in cast(dict[str, Any], dataset).values())
    try:
        return len(dataset)
    except TypeError:
        raise ConfigError(
            f"a train_dataset of {type(dataset).__name__} has no length, and a site weighs as many examples as it has: "
            "give a dataset with a length"
        ) from None


def _given_optimizer(trainer: Trainer) -> tuple[Any, dict[str, Any]] | None:
    """An optimiser that is the user's, and its state before the first round."""
    if (optimizer := cast(Any, trainer.optimizer)) is None:
        return None
    prepared = getattr(optimizer, "_is_accelerate_prepared", False)
    raw = optimizer.optimizer if prepared else optimizer
    state = deepcopy(raw.state_dict())
    return raw, {**state, "state": {}} if prepared else state  # prepared: it was in use before


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Without what the clock, the memory and the trainer's own progress put among them."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, Real) and not name.endswith(_CLOCKED) and "_mem_" not in name and name != "epoch"
    }
