"""Changes to a recipe from the command line: `stages.0.training.learning_rate=1e-4`.

What stands behind `=` is YAML, as in the file; a number names a place in a list, from 0 on.

>>> recipe = {"train": "a.jsonl", "stages": [{"objective": "lsr"}]}
>>> override(recipe, ["stages.0.settings.k=4", "train=b.jsonl"])
{'train': 'b.jsonl', 'stages': [{'objective': 'lsr', 'settings': {'k': 4}}]}
>>> override(recipe, ["stages.1.refresh=3"])
Traceback (most recent call last):
...
fedrag.errors.ConfigError: 'stages.1.refresh=3': stages has 1 entries, counted from 0; there is no 1
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml

from fedrag.errors import ConfigError


def override(raw: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of a recipe's mapping with the changes made, in order. Keys are checked with the recipe, not here.

    Raises:
        ConfigError: for a change that is no `key=value`, a value that is no YAML, and a path that leads nowhere.
    """
    changed = copy.deepcopy(dict(raw))
    for change in changes:
        path, sign, text = change.partition("=")
        keys = path.split(".")
        if not sign or not all(keys):
            raise ConfigError(f"{change!r} changes nothing: write key=value, as in stages.0.training.max_steps=10")
        _put(changed, keys, _value(change, text), change)
    return changed


def _value(change: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{change!r}: the value is no YAML ({reason}); put text with signs in quotes") from None


def _put(raw: dict[str, Any], keys: Sequence[str], value: Any, change: str) -> None:
    here: Any = raw
    for depth, key in enumerate(keys):
        last, walked = depth == len(keys) - 1, ".".join(keys[:depth])
        place: Any = key
        if isinstance(here, list):
            there = cast(list[Any], here)
            if not key.isascii() or not key.isdecimal() or len(key) > 6:
                raise ConfigError(f"{change!r}: {walked} is a list, so a number from 0 on comes next, not {key!r}")
            place = int(key)
            if place >= len(there):
                raise ConfigError(f"{change!r}: {walked} has {len(there)} entries, counted from 0; there is no {place}")
        elif not isinstance(here, dict):
            raise ConfigError(f"{change!r}: {walked} is {type(here).__name__}, and has no {key!r} in it")
        elif not last and cast(dict[str, Any], here).get(key) is None:
            here[key] = {}
        if last:
            here[place] = value
        else:
            here = here[place]
