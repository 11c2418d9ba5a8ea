"""`fedrag schema`: what a recipe may hold, as a JSON Schema, for editors that complete and check YAML.

Built from the same models and signatures that `read_recipe` checks by. A line at the top of a recipe tells
yaml-language-server where it is: `# yaml-language-server: $schema=recipe.schema.json`.

>>> recipe = schema()
>>> recipe["$defs"]["settings-lsr"]["properties"]["k"]["description"]
'documents retrieved per example.'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import typer

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def print_schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    `fedrag schema > recipe.schema.json`
    """
    typer.echo(json.dumps(schema(), indent=1))


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, the settings of every objective and of the Trainer in it."""
    from fedrag.cli.recipe import Recipe
    from fedrag.cli.settings import CONTEXTS, OBJECTIVES, arguments_of, training_types
    from fedrag.objectives.mining import HardNegatives

    whole = Recipe.model_json_schema()
    kinds: dict[str, dict[str, Any]] = whole["$defs"]
    for name, made in OBJECTIVES.items():
        kinds[f"settings-{name}"] = _object_of(made, arguments_of(made))
    for name, made in {**CONTEXTS, "mine": HardNegatives}.items():
        kinds[name] = _object_of(made, arguments_of(made))
    for name in OBJECTIVES:
        keys = kinds[f"settings-{name}"]["properties"]
        if "contexts" in keys:
            keys["contexts"] = {"anyOf": [_ref(kind) for kind in CONTEXTS], **_said(keys["contexts"])}
        if "mine" in keys:
            keys["mine"] = {**_ref("mine"), **_said(keys["mine"])}
    kinds["training"] = _object(training_types(), _trainers_words(), {})
    for kind in list(kinds.values()):  # what a type names must stand at the root
        for key in cast(dict[str, Any], kind.get("properties", {})).values():
            kinds.update(key.pop("$defs", {}))
    chosen = [
        {
            "if": {"properties": {"objective": {"const": name}}, "required": ["objective"]},
            "then": {"properties": {"settings": _ref(f"settings-{name}")}},
        }
        for name in OBJECTIVES
    ]
    for kind in ("Part", "Stage"):
        kinds[kind]["allOf"] = chosen
    kinds["Stage"]["properties"]["training"] = _ref("training")
    return {"$schema": _DRAFT, **whole, "title": "A recipe of fedrag train"}


def _object_of(made: type, types: Mapping[str, Any]) -> dict[str, Any]:
    from fedrag.cli.settings import defaults_of, described

    return _object(types, described(made), defaults_of(made))


def _object(types: Mapping[str, Any], words: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    from pydantic import TypeAdapter

    keys: dict[str, Any] = {}
    for name, kind in types.items():
        keys[name] = _schema_of(TypeAdapter(kind))
        if name in words:
            keys[name]["description"] = words[name]
        if isinstance(defaults.get(name), str | int | float):
            keys[name]["default"] = defaults[name]
    return {"type": "object", "properties": keys, "additionalProperties": False}


def _schema_of(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The schema of a type; text is taken for a number too, as 1e-4 is text to some readers of YAML."""
    from pydantic.errors import PydanticInvalidForJsonSchema

    try:
        made = adapter.json_schema()
    except PydanticInvalidForJsonSchema:
        return {}
    kinds = [made, *cast(list[dict[str, Any]], made.get("anyOf", []))]
    if any("$ref" in kind for kind in kinds):  # the words of an enumeration, and not any text beside them
        made["anyOf"] = [kind for kind in kinds[1:] if kind != {"type": "string"}]
    if any(kind.get("type") == "number" for kind in kinds):
        return {"anyOf": [made, {"type": "string", "pattern": r"^[-+]?[0-9.]+[eE][-+]?[0-9]+$"}]}
    return made


def _trainers_words() -> dict[str, str]:
    """What transformers says of each of its settings: the first sentence."""
    import inspect
    import re

    from transformers import TrainingArguments

    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(TrainingArguments) or "").splitlines():
        if start := re.match(r"\s*([a-z_0-9]+) \(.*\):?\s*$", line):
            name = start[1]
        elif name and line.strip():
            found[name] = found.get(name, "") + " " + line.strip()
        elif name and not line.strip():
            name = ""
    return {name: text.strip().split(". ")[0].rstrip(".") + "." for name, text in found.items()}


def _said(key: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": key["description"]} if "description" in key else {}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}
