"""From a recipe to what trains: examples, objectives, trainers, and a rehearsal that finds mistakes before the run."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fedrag import durable
from fedrag.cli.opening import loading, open_system
from fedrag.cli.recipe import Part, Recipe, Stage
from fedrag.cli.settings import CONTEXTS, OBJECTIVES, kind_of
from fedrag.data import read_examples, split
from fedrag.errors import ConfigError, DataError, StoreError
from fedrag.objectives.joint import Joint
from fedrag.objectives.mining import HardNegatives
from fedrag.objectives.objective import Objective
from fedrag.optional import require
from fedrag.rag import RAGSystem
from fedrag.training.settings import check, default_arguments
from fedrag.training.trainer import RAGTrainer
from fedrag.types import Example, KnowledgeStore


def examples_of(recipe: Recipe) -> dict[str, list[Example]]:
    """The examples to learn from, by site; under the name "train" where the recipe is centralized."""
    federated = recipe.federated
    if federated is not None and federated.sites is not None:
        return {name: rows_of(path) for name, path in federated.sites.items()}
    if recipe.train is None:
        raise ConfigError("train is missing: name a file of examples, as in train: train.jsonl")
    train = rows_of(recipe.train)
    if federated is None or federated.shards is None:
        return {"train": train}
    shares = {f"site-{n}": 1 / federated.shards for n in range(federated.shards)}
    return split(train, shares, seed=federated.seed)


def rows_of(path: Path) -> list[Example]:
    """The examples of a file. Raises `DataError`, which names the file that was meant where it is not there."""
    if not path.is_file() and (close := difflib.get_close_matches(path.name, _names(path.parent), n=1)):
        raise DataError(f"{path}: no such file; did you mean {str(path.parent / close[0])!r}?")
    return read_examples(path)


def open_base(path: Path) -> RAGSystem:
    """The system to tune. Raises `StoreError`, which names the folder that was meant where it is not there."""
    if not path.exists() and (close := difflib.get_close_matches(path.name, _names(path.parent), n=1)):
        raise StoreError(f"{path}: no such folder; did you mean {str(path.parent / close[0])!r}?")
    return open_system(path)


def _names(folder: Path) -> list[str]:
    return [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []


def run_folder_of(recipe: Recipe) -> Path:
    """Where a run keeps what it needs to go on, its log and its reports."""
    return recipe.save_to.with_name(f"{recipe.save_to.name}.run")


def stage_folder_of(recipe: Recipe, number: int) -> Path:
    """The folder of a stage, counted from 1, in the run's folder."""
    return run_folder_of(recipe) / f"{number}-{recipe.stages[number - 1].objective}"


def trainer(
    rag: RAGSystem,
    recipe: Recipe,
    number: int,
    train: Sequence[Example],
    dev: Sequence[Example],
    *,
    callbacks: list[TrainerCallback] | None = None,
    **settings: Any,
) -> RAGTrainer:
    """The trainer of a stage, counted from 1: the recipe's settings over the defaults, `settings` over both."""
    stage = recipe.stages[number - 1]
    objective = objective_of(rag, stage, number)
    ours: dict[str, Any] = {"output_dir": str(stage_folder_of(recipe, number)), "save_total_limit": 2}
    return RAGTrainer(
        objective,
        train_dataset=train,
        eval_dataset=dev or None,
        args=replace(default_arguments(objective), **{**ours, **stage.training, **settings}),
        learning_rates=stage.learning_rates,
        refresh=stage.refresh,
        over_retrieve=stage.over_retrieve,
        callbacks=callbacks,
    )


def rehearse(rag: RAGSystem, recipe: Recipe, train: Sequence[Example]) -> list[Objective]:
    """Make every stage's objective once, so that a mistake in the last one shows before the first one trains.

    Raises `ConfigError`, which names the stage, and `StoreError` where the tuned system could not be saved in the end.
    """
    durable.check(recipe.save_to)
    if recipe.federated is not None:
        require("flwr", extra="federated")
    stand_in = twin(rag)
    made: list[Objective] = []
    for number, stage in enumerate(recipe.stages, start=1):
        objective = objective_of(stand_in, stage, number)
        args = replace(default_arguments(objective), **stage.training)
        try:
            check(objective, train, args, stage.learning_rates, stage.refresh, stage.over_retrieve)
        except ConfigError as error:
            raise ConfigError(f"stage {number}: {error}") from None
        made.append(objective)
    return made


def twin(rag: RAGSystem, store: KnowledgeStore | None = None) -> RAGSystem:
    """The system with a retriever of its own: objectives may give its encoder a second tower, before their stage.

    The store is the same, or the one given.
    """
    stores = {id(rag.dense.store): rag.dense.store if store is None else store}
    return RAGSystem(
        retriever=copy.deepcopy(rag.retriever, stores),
        generator=rag.generator,
        top_k=rag.top_k,
        prompt=rag.prompt,
        reader=rag.reader,
        temperature=rag.temperature,
    )


def objective_of(rag: RAGSystem, stage: Stage, number: int) -> Objective:
    """The objective of a stage. Raises `ConfigError`, which names the stage."""
    try:
        if stage.parts:
            return Joint(*(_made(rag, part) for part in stage.parts), **stage.settings)
        return _made(rag, stage)
    except ConfigError as error:
        raise ConfigError(f"stage {number}: {error}") from None


def _made(rag: RAGSystem, part: Part) -> Objective:
    settings = dict(part.settings)
    if "contexts" in settings:
        settings["contexts"] = CONTEXTS[kind_of(settings["contexts"])](rag.dense.store, **settings["contexts"])
    if "mine" in settings:
        settings["mine"] = HardNegatives(**_with_judge(settings["mine"], "cross_encoder"))
    return OBJECTIVES[part.objective](rag, **_with_judge(settings, "teacher"))


def _with_judge(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """The settings with the cross-encoder that is named there."""
    if key not in settings:
        return settings
    from sentence_transformers import CrossEncoder

    with loading(f"the cross-encoder {settings[key]!r}"):
        return {**settings, key: CrossEncoder(settings[key])}
