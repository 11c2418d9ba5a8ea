"""Recipes: what `fedrag train` does, as a YAML file.

```yaml
system: my-rag                  # a folder that `fedrag index` or `rag.save` wrote
save_to: my-rag-tuned           # where the tuned system goes
train: train.jsonl              # examples: jsonl, json, csv or parquet
eval: dev.jsonl                 # optional: examples to measure on before and after
stages:                         # one after another, on the same system
  - objective: lsr              # contrastive, lsr, ralt, rag-sequence, rag-token, emdr2 or joint
    settings: {k: 8}            # what the objective takes
    training: {num_train_epochs: 2, learning_rate: 1.0e-4}   # transformers' TrainingArguments
    refresh: epoch
    over_retrieve: 2
  - objective: ralt
    settings: {contexts: {documents: 4, gold: 0.8}}          # a Mixture, drawn anew at each step
  - objective: joint            # several in one loop, here in turns of ten steps
    parts: [{objective: lsr, settings: {k: 8}}, {objective: ralt}]
    settings: {turns: 10}
    learning_rates: {retriever: 2.0e-5, generator: 1.0e-4}
```
"""

from __future__ import annotations

import difflib
import inspect
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from transformers import TrainingArguments

from fedrag.errors import ConfigError
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.contrastive import Contrastive
from fedrag.objectives.emdr2 import EMDR2
from fedrag.objectives.joint import Joint
from fedrag.objectives.lsr import LSR
from fedrag.objectives.marginal import RAGSequence, RAGToken
from fedrag.objectives.objective import Objective
from fedrag.objectives.ralt import RALT

OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive": Contrastive,
    "lsr": LSR,
    "ralt": RALT,
    "rag-sequence": RAGSequence,
    "rag-token": RAGToken,
    "emdr2": EMDR2,
    "joint": Joint,
}
_OUT_OF_REACH = ("rag", "store", "exclude_ids", "mine", "objectives")  # what YAML cannot say

_Component = Annotated[str, Field(pattern="^(retriever|generator)$")]
_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Part(BaseModel):
    """An objective and its settings."""

    model_config = ConfigDict(extra="forbid")

    objective: Literal["contrastive", "lsr", "ralt", "rag-sequence", "rag-token", "emdr2", "joint"]
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])


class Stage(Part):
    """One training run of a recipe; `parts` are the objectives that "joint" trains together."""

    parts: list[Part] = Field(default_factory=list[Part])
    training: dict[str, Any] = Field(default_factory=dict[str, Any])
    learning_rates: dict[_Component, _Rate] = Field(default_factory=dict[str, float])
    refresh: Literal["never", "epoch"] | Annotated[int, Field(strict=True, ge=1)] = "epoch"
    over_retrieve: Annotated[int, Field(strict=True, ge=1)] = 1


class Recipe(BaseModel):
    """A whole recipe."""

    model_config = ConfigDict(extra="forbid")

    system: Path
    save_to: Path
    train: Path
    eval: Path | None = None
    stages: list[Stage] = Field(min_length=1)


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe, every setting of every stage, before anything is loaded.

    Raises `ConfigError`, which names the key, what was wanted, and the likely meaning.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe at {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, the 45th of May
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {type(raw).__name__}, a recipe is a mapping with the keys {_keys(Recipe)}")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_explain(cast(dict[str, Any], e)) for e in error.errors())) from None
    for number, stage in enumerate(recipe.stages, start=1):
        place = f"{path}: stage {number}"
        if (stage.objective == "joint") != (len(stage.parts) > 1):
            raise ConfigError(
                f"{place}: objective {stage.objective} with {len(stage.parts)} parts; joint takes two or more, as in "
                "parts: [{objective: lsr}, {objective: ralt}], the others none"
            )
        for part in (stage, *stage.parts):
            part.settings = _checked(part, f"{place}: settings of {part.objective}")
        stage.training = _training(stage.training, f"{place}: training", measured=recipe.eval is not None)
    return recipe


def _checked(part: Part, where: str) -> dict[str, Any]:
    types = _settings(OBJECTIVES[part.objective])
    if "contexts" in types:
        types["contexts"] = dict[str, Any]
    settings = _typed(part.settings, types, where)
    if "contexts" in settings:
        settings["contexts"] = _typed(settings["contexts"], _settings(Mixture), f"{where}: contexts")
        if missing := {"documents", "gold"} - set(settings["contexts"]):
            raise ConfigError(f"{where}: contexts: {min(missing)} is missing, as in {{documents: 4, gold: 0.8}}")
    return settings


def _settings(made: type) -> dict[str, Any]:
    """What a recipe may set of it, and the types."""
    takes = inspect.signature(made, eval_str=True).parameters
    return {name: taken.annotation for name, taken in takes.items() if name not in _OUT_OF_REACH}


def _typed(given: Mapping[str, Any], types: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The values as what they are declared to be. Only text is converted: in YAML, 1e-4 is text."""
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in types:
            raise ConfigError(f"{place}: unknown key {key!r}{_meant(key, list(types))}")
        adapter: TypeAdapter[Any] = TypeAdapter(types[key], config=ConfigDict(allow_inf_nan=False))
        try:
            values[key] = adapter.validate_python(value, strict=not isinstance(value, str))
        except ValidationError as error:
            wanted = "; or ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
            raise ConfigError(f"{place}: {key}: {wanted}, got {reprlib.repr(value)}") from None
    return values


def _training(given: Mapping[str, Any], place: str, *, measured: bool) -> dict[str, Any]:
    hints = get_type_hints(TrainingArguments)
    values = _typed(given, {field.name: hints[field.name] for field in fields(TrainingArguments)}, place)
    try:
        settings: dict[str, Any] = {"output_dir": "runs", "report_to": "none", "save_strategy": "no", **values}
        args = TrainingArguments(**settings)
    except (TypeError, ValueError, ImportError, OSError) as error:
        raise ConfigError(f"{place}: transformers refuses these settings: {error}") from None
    if args.save_strategy == "no" and (idle := {"save_steps", "save_total_limit"} & set(values)):
        raise ConfigError(f"{place}: {min(idle)} does nothing without checkpoints: add save_strategy: steps, or epoch")
    if args.eval_strategy != "no" and not measured:
        raise ConfigError(f"{place}: eval_strategy needs examples to measure on: add `eval: dev.jsonl` to the recipe")
    return values


def _explain(error: dict[str, Any]) -> str:
    where = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        model = Stage if "stages" in error["loc"] else Recipe
        return f"unknown key {where!r}{_meant(str(error['loc'][-1]), _keys(model))}"
    return f"{where or 'the recipe'}: {error['msg']}, got {reprlib.repr(error['input'])}"


def _meant(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(sorted(known)[:40])}"


def _keys(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)
