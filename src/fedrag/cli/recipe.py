"""Recipes: what `fedrag train` does, as a YAML file.

```yaml
system: my-rag                  # a folder that `fedrag index` or `rag.save` wrote
save_to: my-rag-tuned           # where the tuned system goes
train: train.jsonl              # examples: jsonl, json, csv or parquet
eval: dev.jsonl                 # optional: examples to measure on before and after
stages:                         # one after another, on the same system
  - objective: lsr              # contrastive, lsr or ralt
    settings: {k: 8}            # what the objective takes
    training: {num_train_epochs: 2, learning_rate: 1.0e-4}   # transformers' TrainingArguments
    refresh: epoch
  - objective: ralt
```
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import TrainingArguments

from fedrag.errors import ConfigError
from fedrag.objectives.contrastive import Contrastive
from fedrag.objectives.lsr import LSR
from fedrag.objectives.objective import Objective
from fedrag.objectives.ralt import RALT

OBJECTIVES: dict[str, type[Objective]] = {"contrastive": Contrastive, "lsr": LSR, "ralt": RALT}


class Stage(BaseModel):
    """One training run of a recipe."""

    model_config = ConfigDict(extra="forbid")

    objective: Literal["contrastive", "lsr", "ralt"]
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    training: dict[str, Any] = Field(default_factory=dict[str, Any])
    learning_rates: dict[str, float] = Field(default_factory=dict[str, float])
    refresh: Literal["never", "epoch"] | int = "epoch"


class Recipe(BaseModel):
    """A whole recipe."""

    model_config = ConfigDict(extra="forbid")

    system: Path
    save_to: Path
    train: Path
    eval: Path | None = None
    stages: list[Stage] = Field(min_length=1)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises `ConfigError`, which names the key, what was wanted, and the likely meaning."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe at {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, a recipe is a mapping with the keys {_keys(Recipe)}")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(cast(dict[str, Any], e)) for e in error.errors())) from None
    for number, stage in enumerate(recipe.stages, start=1):
        place = f"{path}: stage {number}"
        takes = [
            p for p in inspect.signature(OBJECTIVES[stage.objective]).parameters if p not in ("rag", "exclude_ids")
        ]
        _known(stage.settings, takes, f"{place}: settings of {stage.objective}")
        _known(stage.training, [field.name for field in fields(TrainingArguments)], f"{place}: training")
    return recipe


def _explain(error: dict[str, Any]) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        model = Stage if "stages" in error["loc"] else Recipe
        return f"unknown key {where!r}{_meant(str(error['loc'][-1]), _keys(model))}"
    return f"{where or 'the recipe'}: {error['msg']}, got {error['input']!r}"


def _known(given: dict[str, Any], known: Iterable[str], place: str) -> None:
    names = list(known)
    for key in given:
        if key not in names:
            raise ConfigError(f"{place}: unknown key {key!r}{_meant(key, names)}")


def _meant(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(sorted(known)[:40])}"


def _keys(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)
