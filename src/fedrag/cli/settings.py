"""What a recipe may set, read from the things that are set: the arguments of objectives and of the Trainer.

Nothing is written down twice: a new argument of `LSR` is a new key of `settings`, checked against its annotation and
described in the schema by its line in the docstring.

>>> typed({"k": "8"}, settings_of("lsr"), "stages.0.settings")
{'k': 8}
>>> typed({"kk": 8}, settings_of("lsr"), "stages.0.settings")
Traceback (most recent call last):
...
fedrag.errors.ConfigError: stages.0.settings: unknown key 'kk'; did you mean 'k'?
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments

from fedrag.errors import ConfigError
from fedrag.objectives.contexts import Mixture
from fedrag.objectives.contrastive import Contrastive
from fedrag.objectives.distillation import Distillation
from fedrag.objectives.emdr2 import EMDR2
from fedrag.objectives.joint import Joint
from fedrag.objectives.lsr import LSR
from fedrag.objectives.marginal import RAGSequence, RAGToken
from fedrag.objectives.mining import HardNegatives
from fedrag.objectives.objective import Objective
from fedrag.objectives.raft import Raft
from fedrag.objectives.ralt import RALT
from fedrag.objectives.ranking import Ranking

OBJECTIVES: dict[str, type[Objective]] = {
    "contrastive": Contrastive,
    "distillation": Distillation,
    "lsr": LSR,
    "ralt": RALT,
    "rag-sequence": RAGSequence,
    "rag-token": RAGToken,
    "ranking": Ranking,
    "emdr2": EMDR2,
    "joint": Joint,
}
CONTEXTS: dict[str, type] = {"mixture": Mixture, "raft": Raft}
"""What `contexts` can be: a `Mixture`, or a `Raft` where it names `distractors`."""

_OUT_OF_REACH = ("rag", "store", "exclude_ids", "objectives")  # what YAML cannot say
_WORDED: dict[str, Any] = {"contexts": dict[str, Any], "mine": dict[str, Any], "teacher": str, "cross_encoder": str}
"""What YAML says in words of its own: models by name or folder, objects by their arguments."""
_NOT_HERE = {
    "output_dir": "checkpoints lie beside save_to, where --resume finds them",
    "resume_from_checkpoint": "give --resume to the command",
}
_REQUIRED = {"distillation": ("teacher",), "mixture": ("documents", "gold")}


def settings_of(objective: str) -> dict[str, Any]:
    """The settings of an objective, and their types."""
    return arguments_of(OBJECTIVES[objective])


def arguments_of(made: type) -> dict[str, Any]:
    """What a recipe may set of it, and the types."""
    takes = inspect.signature(made, eval_str=True).parameters
    return {name: _WORDED.get(name, t.annotation) for name, t in takes.items() if name not in _OUT_OF_REACH}


def defaults_of(made: type) -> dict[str, Any]:
    """The values that hold where a recipe says nothing."""
    takes = inspect.signature(made, eval_str=True).parameters
    return {name: t.default for name, t in takes.items() if t.default is not inspect.Parameter.empty}


def checked(objective: str, given: Mapping[str, Any], place: str = "settings") -> dict[str, Any]:
    """The settings of an objective as what they are declared to be. Raises `ConfigError`, which names the key."""
    settings = typed(given, settings_of(objective), place)
    _complete(objective, settings, place, "teacher: cross-encoder/ms-marco-MiniLM-L6-v2")
    if "contexts" in settings:
        kind, where = kind_of(settings["contexts"]), f"{place}.contexts"
        settings["contexts"] = typed(settings["contexts"], arguments_of(CONTEXTS[kind]), where)
        _complete(kind, settings["contexts"], where, "{documents: 4, gold: 0.8}")
    if "mine" in settings:
        settings["mine"] = typed(settings["mine"], arguments_of(HardNegatives), f"{place}.mine")
    return settings


def kind_of(contexts: Mapping[str, Any]) -> str:
    """Which of `CONTEXTS` is meant."""
    return "raft" if "distractors" in contexts else "mixture"


def training_types() -> dict[str, Any]:
    """Every setting of `TrainingArguments`, and its type."""
    hints = get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in fields(TrainingArguments) if field.name not in _NOT_HERE}


def checked_training(given: Mapping[str, Any], place: str = "training") -> dict[str, Any]:
    """The Trainer's settings, converted and tried. Raises `ConfigError`, which names the key."""
    for key, instead in _NOT_HERE.items():
        if key in given:
            raise ConfigError(f"{place}.{key} is not for a recipe: {instead}")
    values = typed(given, training_types(), place)
    args = tried(values, place)
    if args.save_strategy == "no" and (idle := {"save_steps", "save_total_limit"} & set(values)):
        raise ConfigError(f"{place}: {min(idle)} does nothing without checkpoints: add save_strategy: steps, or epoch")
    return values


def tried(values: Mapping[str, Any], place: str) -> TrainingArguments:
    """The arguments that these values make. Raises `ConfigError` for what transformers refuses."""
    try:
        settings: dict[str, Any] = {"output_dir": "runs", "report_to": "none", "save_strategy": "no", **values}
        return TrainingArguments(**settings)
    except (TypeError, ValueError, ImportError, OSError, OverflowError, AttributeError, KeyError) as error:
        raise ConfigError(f"{place}: transformers refuses these settings: {error}") from None


def typed(given: Mapping[str, Any], types: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The values as what they are declared to be. Only text is converted: in YAML, 1e-4 is text."""
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in types:
            raise ConfigError(f"{place}: unknown key {reprlib.repr(key)}{meant(str(key), list(types))}")
        adapter: TypeAdapter[Any] = TypeAdapter(types[key], config=ConfigDict(allow_inf_nan=False))
        try:
            if isinstance(value, list):  # read as JSON: a pair is a list there, and true is still no number
                values[key] = adapter.validate_json(json.dumps(value, default=str), strict=True)
            else:
                values[key] = adapter.validate_python(value, strict=not isinstance(value, str))
        except ValidationError as error:
            wanted = "; or ".join(dict.fromkeys(problem["msg"] for problem in error.errors()))
            raise ConfigError(f"{place}.{key}: {wanted}, got {reprlib.repr(value)}") from None
    return values


def meant(word: str, known: list[str]) -> str:
    """The end of a sentence about an unknown word: the likely one, or those that there are."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(sorted(known)[:40])}"


def described(made: type) -> dict[str, str]:
    """What the docstring of a class, or of one above it, says of each argument in its section `Args`."""
    found: dict[str, str] = described(made.__mro__[1]) if made.__module__.startswith("fedrag.") else {}
    _, _, section = inspect.cleandoc(made.__doc__ or "").partition("Args:\n")
    last = ""
    for line in section.split("\n\n")[0].splitlines():
        if start := re.match(r"    (\w+): (.*)", line):
            last = start[1]
            found[last] = start[2].strip()
        elif last and line.startswith("     "):
            found[last] += " " + line.strip()
    return found


def _complete(kind: str, given: Mapping[str, Any], place: str, example: str) -> None:
    if lacking := set(_REQUIRED.get(kind, ())) - set(given):
        raise ConfigError(f"{place}: {min(lacking)} is missing, as in {example}")
