"""What an object remembers in arrays, as named tensors: the server optimisers of Flower's strategies, for a checkpoint.

Arrays are looked for in attributes: an array, a list of arrays, a dict of arrays by name, an `ArrayRecord`. Names are
class / attribute / kind / position / name, so that they can be put back in their order: files sort names.

>>> class Momentum:
...     momentum = [np.ones(1)]
>>> strategy = Momentum()
>>> strategy.momentum = [np.zeros(2)]
>>> remembered(strategy)
{'Momentum/momentum/list/000000/': tensor([0., 0.], dtype=torch.float64)}
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedrag.errors import ConfigError

T = TypeVar("T")


def fresh(strategy: T) -> T:
    """A copy with arrays of its own; all else is shared."""
    new = copy.copy(strategy)
    for attribute, value in vars(strategy).items():
        if _arrays(value):
            setattr(new, attribute, copy.deepcopy(value))
    return new


def remembered(strategy: object) -> dict[str, Tensor]:
    """Every array in the attributes, copied."""
    return {
        f"{type(strategy).__name__}/{attribute}/{place}": torch.from_numpy(np.array(array))
        for attribute, value in vars(strategy).items()
        for place, array in _arrays(value)
    }


def remind(strategy: object, state: Mapping[str, Tensor]) -> None:
    """Put back what `remembered` gave. Raises `ConfigError` for names that another class wrote."""
    values: dict[str, Any] = {}
    for key in sorted(state, key=lambda key: key.split("/")[:4]):
        parts = key.split("/", 4)
        if len(parts) != 5 or parts[0] != type(strategy).__name__:
            raise ConfigError(
                f"the checkpoint has {key!r}, which a {type(strategy).__name__} does not remember: resume with the "
                "strategy that wrote it"
            )
        _, attribute, kind, _, name = parts
        array = state[key].numpy().copy()
        if kind == "array":
            values[attribute] = array
        elif kind == "list":
            values.setdefault(attribute, []).append(array)
        elif kind == "dict":
            values.setdefault(attribute, {})[name] = array
        else:
            values.setdefault(attribute, ArrayRecord())[name] = Array(array)
    for attribute, value in values.items():
        setattr(strategy, attribute, value)


def _arrays(value: object) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """The arrays of an attribute, each under kind / position / name; none where it holds anything else too."""
    if isinstance(value, np.ndarray):
        return [("array/000000/", cast(Any, value))]
    if isinstance(value, ArrayRecord):
        return [(f"record/{i:06}/{name}", array.numpy()) for i, (name, array) in enumerate(value.items())]
    if isinstance(value, list):
        kind, items = "list", [("", each) for each in cast("list[object]", value)]
    elif isinstance(value, dict):
        kind, items = "dict", list(cast("dict[str, object]", value).items())
    else:
        return []
    if not all(isinstance(array, np.ndarray | np.generic) for _, array in items):  # 0-d sums are np.generic
        return []
    return [(f"{kind}/{i:06}/{name}", np.asarray(array)) for i, (name, array) in enumerate(items)]
