"""Carry out a recipe: open the system, measure, train stage by stage, measure again, save."""

from __future__ import annotations

import copy
from dataclasses import replace

import typer

from fedrag.cli.recipe import OBJECTIVES, Part, Recipe, Stage
from fedrag.data import read_examples
from fedrag.errors import ConfigError
from fedrag.evaluation import Report, evaluate
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.joint import Joint
from fedrag.objectives.objective import Objective
from fedrag.rag import RAGSystem
from fedrag.retrievers.dense import DenseRetriever
from fedrag.training.settings import check, default_arguments
from fedrag.training.trainer import RAGTrainer
from fedrag.types import Example


def run_recipe(recipe: Recipe) -> Report | None:
    """Tune as the recipe says; return the report after tuning, where there are examples to measure on."""
    train = read_examples(recipe.train)
    dev = read_examples(recipe.eval) if recipe.eval else []
    rag = RAGSystem.load(recipe.system)
    rehearse(rag, recipe, train)
    before = evaluate(rag, dev) if dev else None
    for number, stage in enumerate(recipe.stages, start=1):
        typer.echo(f"stage {number} of {len(recipe.stages)}: {stage.objective}")
        trainer(rag, recipe, number, train, dev).train()
        rag.save(recipe.save_to)
    typer.echo(f"saved in {recipe.save_to}")
    if before is None:
        return None
    after = evaluate(rag, dev)
    typer.echo(str(after.compare(before)))
    return after


def trainer(rag: RAGSystem, recipe: Recipe, number: int, train: list[Example], dev: list[Example]) -> RAGTrainer:
    """The trainer of a stage: its own settings over the trainer's defaults, and a checkpoint folder of its own."""
    stage = recipe.stages[number - 1]
    objective = _objective(rag, stage, number)
    folder = f"{recipe.save_to}.checkpoints/{number}-{stage.objective}"
    return RAGTrainer(
        objective,
        train_dataset=train,
        eval_dataset=dev or None,
        args=replace(default_arguments(objective), **{"output_dir": folder, **stage.training}),
        learning_rates=stage.learning_rates,
        refresh=stage.refresh,
        over_retrieve=stage.over_retrieve,
    )


def rehearse(rag: RAGSystem, recipe: Recipe, train: list[Example]) -> None:
    """Make every stage's objective once, so that a mistake in the last one shows before the first one trains."""
    # objectives may give the encoder a second tower, which must not be there before its stage has come
    retriever = DenseRetriever(copy.deepcopy(rag.dense.encoder), rag.dense.store)
    stand_in = RAGSystem(
        retriever=retriever,
        generator=rag.generator,
        top_k=rag.top_k,
        prompt=rag.prompt,
        reader=rag.reader,
        temperature=rag.temperature,
    )
    for number, stage in enumerate(recipe.stages, start=1):
        objective = _objective(stand_in, stage, number)
        try:
            check(
                objective,
                train,
                replace(default_arguments(objective), **stage.training),
                stage.learning_rates,
                stage.refresh,
                stage.over_retrieve,
            )
        except ConfigError as error:
            raise ConfigError(f"stage {number}: {error}") from None


def _objective(rag: RAGSystem, stage: Stage, number: int) -> Objective:
    try:
        if stage.parts:
            return Joint(*(_made(rag, part) for part in stage.parts), **stage.settings)
        return _made(rag, stage)
    except ConfigError as error:
        raise ConfigError(f"stage {number}: {error}") from None


def _made(rag: RAGSystem, part: Part) -> Objective:
    settings = dict(part.settings)
    if "contexts" in settings:
        settings["contexts"] = Mixture(rag.dense.store, **settings["contexts"])
    return OBJECTIVES[part.objective](rag, **settings)
