"""Recipes: what `fedrag train` does, as a YAML file or as a `Recipe` in Python.

```yaml
system: my-rag                  # a folder that `fedrag index` or `rag.save` wrote
save_to: my-rag-tuned           # where the tuned system goes
train: train.jsonl              # examples: jsonl, json, csv or parquet
eval: dev.jsonl                 # optional: examples to measure on before and after
stages:                         # one after another, on the same system
  - objective: lsr              # contrastive, distillation, ranking, lsr, ralt, rag-sequence, rag-token, emdr2, joint
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

With a section `federated: {shards: 3, rounds: 5}` every stage is federated over shards of the examples, in one process.

>>> stage = {"objective": "lsr", "settings": {"k": "8"}}
>>> Recipe(system="rag", save_to="tuned", train="t.jsonl", stages=[stage]).stages[0].settings
{'k': 8}
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrag.cli.overrides import override
from fedrag.cli.settings import checked, checked_training, meant, tried
from fedrag.errors import ConfigError
from fedrag.federated.site import is_name

_MOST_VALUES = 10_000  # in a recipe; aliases of aliases can stand for more than fits into any machine


def _is_path(path: Path) -> Path:
    text = str(path)
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("a path has no such character in it")
    return path


_Path = Annotated[Path, AfterValidator(_is_path)]
_Component = Annotated[str, Field(pattern="^(retriever|reranker|generator)$")]
_Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, ge=1)]
_Name = Literal["contrastive", "distillation", "lsr", "ralt", "ranking", "rag-sequence", "rag-token", "emdr2", "joint"]


class Part(BaseModel):
    """An objective and its settings."""

    model_config = ConfigDict(extra="forbid")

    objective: _Name = Field(description="What is made better; see the methods in the documentation.")
    settings: dict[str, Any] = Field(default_factory=dict[str, Any], description="What the objective takes.")

    @model_validator(mode="after")
    def _settings_are_the_objectives(self) -> Part:
        self.settings = checked(self.objective, self.settings)
        return self


class Stage(Part):
    """One training run of a recipe; `parts` are the objectives that "joint" trains together."""

    parts: list[Part] = Field(default_factory=list[Part], description="The objectives of a joint stage.")
    training: dict[str, Any] = Field(default_factory=dict[str, Any], description="transformers' TrainingArguments.")
    learning_rates: dict[_Component, _Rate] = Field(
        default_factory=dict[str, float],
        description="Of retriever, reranker or generator, in place of training.learning_rate.",
    )
    refresh: Literal["never", "epoch"] | _Count = Field(
        default="epoch", description="When documents are retrieved anew: never, every epoch, or every so many steps."
    )
    over_retrieve: _Count = Field(default=1, description="Keep so many times the documents that a step needs.")

    @model_validator(mode="after")
    def _parts_and_training_fit(self) -> Stage:
        if (self.objective == "joint") != (len(self.parts) > 1):
            raise ConfigError(
                f"objective {self.objective} with {len(self.parts)} parts; joint takes two or more, as in "
                "parts: [{objective: lsr}, {objective: ralt}], the others none"
            )
        self.training = checked_training(self.training)
        return self


class Federation(BaseModel):
    """How every stage is federated: over shards of the examples in this process. See `fedrag.federated.Plan`."""

    model_config = ConfigDict(extra="forbid")

    shards: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        default=None, description="So many sites share the examples of `train`, drawn with `seed`."
    )
    sites: dict[str, _Path] | None = Field(
        default=None, min_length=1, description="The examples of each site, in place of `train`."
    )
    rounds: _Count = Field(description="How often sites train and their states become one.")
    quorum: _Count = Field(default=1, description="Sites that a round needs.")
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="Share of the sites in a round.")
    strategy: Literal["averaging", "exact-lora"] = Field(default="averaging", description="How states become one.")
    weighting: Literal["examples", "uniform"] = Field(default="examples", description="What a site weighs.")
    seed: Annotated[int, Field(strict=True, ge=0)] = Field(default=0, description="Of shards, order and dropout.")
    evaluate: bool = Field(default=False, description="Each round measures on `eval` before it trains.")
    precision: Literal["keep", "bfloat16"] = Field(default="keep", description="Of what is sent.")
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="Largest L2 norm of a site's change."
    )

    @model_validator(mode="after")
    def _sites_are_enough(self) -> Federation:
        if (self.shards is None) == (self.sites is None):
            raise ConfigError("give either shards: 3, or sites: {north: north.jsonl, south: south.jsonl}")
        if wrong := [name for name in self.sites or () if not is_name(name)]:
            raise ConfigError(f"{reprlib.repr(wrong[0])} is no name for a site: take letters, digits, '_', '.' and '-'")
        count = self.shards or len(self.sites or ())
        if self.quorum > count:
            raise ConfigError(f"{count} sites cannot meet a quorum of {self.quorum}: lower it")
        return self


class Recipe(BaseModel):
    """A whole recipe. Raises `ConfigError`, which names the key, what was wanted, and the likely meaning."""

    model_config = ConfigDict(extra="forbid")

    system: _Path = Field(description="Folder of the system to tune, as `fedrag index` or `rag.save` wrote it.")
    save_to: _Path = Field(description="Folder for the tuned system.")
    train: _Path | None = Field(default=None, description="Examples to learn from: jsonl, json, csv or parquet.")
    eval: _Path | None = Field(default=None, description="Examples to measure on, before and after.")
    federated: Federation | None = Field(default=None, description="Federate every stage; leave out to centralize.")
    stages: list[Stage] = Field(min_length=1, description="Training runs, one after another on the same system.")

    if not TYPE_CHECKING:  # what a person gets wrong is told in our words, in Python as in YAML

        def __init__(self, /, **given: Any) -> None:
            try:
                super().__init__(**given)
            except ValidationError as error:
                raise ConfigError("; ".join(_explain(problem) for problem in error.errors())) from None

    @model_validator(mode="after")
    def _stages_fit_the_data(self) -> Recipe:
        if self.train is None and (self.federated is None or self.federated.sites is None):
            raise ConfigError("train is missing: name a file of examples, as in train: train.jsonl")
        if self.save_to.name in ("", ".."):
            raise ConfigError(f"save_to is {str(self.save_to)!r}, which names no folder of its own: name a new one")
        if os.path.realpath(self.save_to) == os.path.realpath(self.system):
            raise ConfigError(f"save_to is the system itself, {str(self.system)!r}: name another folder")
        for number, stage in enumerate(self.stages):
            if self.eval is None and tried(stage.training, f"stages.{number}.training").eval_strategy != "no":
                raise ConfigError(
                    f"stages.{number}.training: eval_strategy needs examples to measure on: add `eval: dev.jsonl`"
                )
        return self


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, every setting of every stage, before anything is loaded.

    Args:
        path: a YAML file.
        changes: overrides from the command line, see `fedrag.cli.overrides`.

    Raises:
        ConfigError: names the key, what was wanted, and the likely meaning.
    """
    try:
        return Recipe(**override(_mapping(path), changes))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe here{_near(path)}; `fedrag init` writes one") from None
    except OSError as error:
        raise ConfigError(f"it cannot be read: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, the 45th of May
        raise ConfigError(f"this is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"it holds {type(raw).__name__}, a recipe is a mapping with the keys {_keys(Recipe)}")
    _count(raw)
    return cast(dict[str, Any], raw)


def _count(raw: object) -> None:
    """Refuse what is larger than a recipe can be, endless included, and keys that are no text."""
    waiting, seen = [raw], 0
    while waiting:
        here, seen = waiting.pop(), seen + 1
        if seen > _MOST_VALUES:
            raise ConfigError(f"it holds more than {_MOST_VALUES} values: write it without aliases of aliases")
        if isinstance(here, Mapping):
            mapping = cast(Mapping[Any, Any], here)
            if wrong := [key for key in mapping if not isinstance(key, str)]:
                raise ConfigError(f"the key {reprlib.repr(wrong[0])} is no text: put it in quotes")
            waiting.extend(mapping.values())
        elif isinstance(here, list | set | tuple):
            waiting.extend(cast(Sequence[Any], here))


def _near(path: Path) -> str:
    known = [str(near.relative_to(path.parent)) for near in sorted(path.parent.glob("*.y*ml"))][:40]
    return f": {path.parent} has {', '.join(known)}" if known else ""


def _explain(error: Any) -> str:
    place = [str(key) for key in error["loc"] if not str(key).startswith(("literal[", "constrained-", "function-"))]
    where = ".".join(place)
    if error["type"] == "extra_forbidden":
        model = (
            Federation if "federated" in place else Part if "parts" in place else Stage if "stages" in place else Recipe
        )
        return f"unknown key {where!r}{meant(place[-1], _keys(model))}"
    if error["type"] == "value_error" and isinstance(wrong := error["ctx"]["error"], ConfigError):
        return (
            f"{where}{'.' if str(wrong).startswith(('settings', 'training')) else ': '}{wrong}" if where else str(wrong)
        )
    guess = ""
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        known = [word.strip("' ") for word in error["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        close = meant(error["input"], known)
        guess = close if "did you mean" in close else ""
    return f"{where or 'the recipe'}: {error['msg']}, got {reprlib.repr(error['input'])}{guess}"


def _keys(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)
