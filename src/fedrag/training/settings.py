"""The Trainer's settings: what is taken where none are given, and what is refused because it could not be honoured.

Settings that would be ignored without a word are refused by name: a person who asked for label smoothing should learn
that there is none, before the run and not after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft import PeftModel
from transformers import TrainingArguments

from fedrag.errors import ConfigError, InputError
from fedrag.objectives.objective import Objective
from fedrag.training.refreshing import Refresh, moves_retriever
from fedrag.types import Example


def default_arguments(objective: Objective) -> TrainingArguments:
    """Three epochs, no checkpoint, nothing sent to a tracker; a higher rate where adapters are trained."""
    adapters = any(isinstance(module, PeftModel) for module in objective.trained.modules())
    return TrainingArguments(
        output_dir=f"runs/{type(objective).__name__.lower()}",
        learning_rate=1e-4 if adapters else 2e-5,
        warmup_steps=0.1,
        save_strategy="no",
        report_to="none",
        logging_steps=10,
    )


def check(
    objective: Objective,
    examples: Sequence[Example],
    args: TrainingArguments,
    rates: Mapping[str, float],
    refresh: Refresh,
    over_retrieve: int = 1,
) -> None:
    """Refuse what cannot work, before anything is loaded or moved."""
    if not examples:
        raise InputError("train_dataset is empty; pass at least one example")
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs are visible to one process, and DataParallel cannot split examples: "
            "start one process per GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one"
        )
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise ConfigError(
            f"train_sampling_strategy={args.train_sampling_strategy!r} needs token columns; examples are grouped by "
            "length inside the generator: use 'random' or 'sequential'"
        )
    for name in (
        "label_smoothing_factor",
        "neftune_noise_alpha",
        "use_liger_kernel",
        "fp16_full_eval",
        "bf16_full_eval",
    ):
        if value := getattr(args, name):
            raise ConfigError(f"{name}={value!r} does nothing for an objective: leave it out of TrainingArguments")
    components = {name.split("/")[0] for name in objective.trainable()}
    unknown = set(rates) - components
    if unknown:
        raise ConfigError(f"learning_rates names {sorted(unknown)}, the objective trains {sorted(components)}")
    if refresh not in ("never", "epoch") and (isinstance(refresh, str) or refresh < 1):
        raise ConfigError(f"refresh is 'never', 'epoch' or a number of steps above 0, got {refresh!r}")
    _check_over_retrieve(objective, over_retrieve)


def _check_over_retrieve(objective: Objective, over_retrieve: int) -> None:
    if over_retrieve < 1:
        raise ConfigError(f"over_retrieve is a whole number from 1 on, got {over_retrieve!r}")
    if over_retrieve == 1:
        return
    why = ""
    if not objective.depth:
        why = "retrieves no documents"
    elif not objective.reranks:
        why = "finds its documents in a way of its own, which ranking anew would undo"
    elif not moves_retriever(objective):
        why = "leaves the retriever as it is, which would rank them as it did"
    if why:
        raise ConfigError(
            f"over_retrieve={over_retrieve} ranks retrieved documents anew at each step, and "
            f"{type(objective).__name__} {why}: leave it out"
        )
