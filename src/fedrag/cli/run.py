"""Carry out a recipe: open the system, measure, train stage by stage, measure again, save."""

from __future__ import annotations

from typing import Any

import typer
from transformers import TrainingArguments

from fedrag.cli.recipe import OBJECTIVES, Recipe, Stage
from fedrag.data import read_examples
from fedrag.errors import ConfigError
from fedrag.evaluation import Report, evaluate
from fedrag.objectives.objective import Objective
from fedrag.rag import RAGSystem
from fedrag.training.trainer import RAGTrainer
from fedrag.types import Example


def run_recipe(recipe: Recipe) -> Report | None:
    """Tune as the recipe says; return the report after tuning, where there are examples to measure on."""
    train = read_examples(recipe.train)
    dev = read_examples(recipe.eval) if recipe.eval else []
    rag = RAGSystem.load(recipe.system)
    before = evaluate(rag, dev) if dev else None
    for number, stage in enumerate(recipe.stages, start=1):
        typer.echo(f"stage {number} of {len(recipe.stages)}: {stage.objective}")
        _trainer(rag, stage, train, recipe).train()
        rag.save(recipe.save_to)
    typer.echo(f"saved in {recipe.save_to}")
    if before is None:
        return None
    after = evaluate(rag, dev)
    typer.echo(str(after.compare(before)))
    return after


def _trainer(rag: RAGSystem, stage: Stage, train: list[Example], recipe: Recipe) -> RAGTrainer:
    objective: Objective = OBJECTIVES[stage.objective](rag, **stage.settings)
    args = None
    if stage.training:
        settings: dict[str, Any] = {
            "output_dir": str(recipe.save_to) + ".checkpoints",
            "report_to": "none",
            **stage.training,
        }
        try:
            args = TrainingArguments(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the training settings of {stage.objective} are refused by transformers: {error}"
            ) from None
    return RAGTrainer(
        objective, train_dataset=train, args=args, learning_rates=stage.learning_rates, refresh=stage.refresh
    )
