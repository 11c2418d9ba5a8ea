"""The file beside a saved generator's weights that says what the weights do not: settings, precision, what trains.

`fedrag_generator.json` is small and written by machines, and read strictly: a folder is copied, cut short or edited by
hand sooner or later, and a setting that silently fell back to its default would change every score.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> record = Record(dtype="float32", tunable=True, quantization=None, max_new_tokens=64, stop=("\\n",), chat=False,
...                 max_length=512, batch_tokens=16384, base_tunable=())
>>> write_record(folder, record)
>>> read_record(folder) == record
True
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fedrag.durable import replace_text
from fedrag.errors import StoreError

_FILE = "fedrag_generator.json"
_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a saved generator is beside its weights."""

    dtype: str
    """Of the base model's weights, as torch names it."""
    tunable: bool
    """Whether training may move anything."""
    base_tunable: tuple[str, ...]
    """The parameters that train beside adapters; format 1 did not know them."""
    quantization: dict[str, Any] | None
    """Of the base that adapters were trained on; the configuration of a whole model says it itself."""
    max_new_tokens: int
    stop: tuple[str, ...]
    chat: bool
    max_length: int
    batch_tokens: int


def write_record(folder: Path, record: Record) -> None:
    """Put `record` into `folder`, in one step."""
    replace_text(folder / _FILE, json.dumps({"format": _FORMAT, **asdict(record)}, indent=1) + "\n")


def read_record(folder: Path) -> Record:
    """Return what `write_record` wrote. Raises `StoreError` for another folder, a newer format, any damage."""
    path = folder / _FILE
    try:
        saved: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{folder} holds no {_FILE}: read a model that fedrag did not save with CausalLM(path)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged, it is no JSON ({error}); restore the folder from a copy") from None
    if not isinstance(saved, dict):
        raise StoreError(f"{path} is damaged, it holds no JSON object; restore the folder from a copy")
    values: dict[str, Any] = dict(saved)  # pyright: ignore[reportUnknownArgumentType]
    version = values.pop("format", None)
    if not _is_count(version):
        raise StoreError(f"{path} is damaged, it names no format; restore the folder from a copy")
    if version > _FORMAT:
        raise StoreError(f"{path} has format {version}, this fedrag reads {_FORMAT}: update fedrag")
    if version == 1:
        values["base_tunable"] = []
    names = [field.name for field in fields(Record)]
    if set(values) != set(names):
        raise StoreError(f"{path} holds {sorted(values)}, it must hold {sorted(names)}; restore the folder from a copy")
    for name in names:
        if not _VALID[name](values[name]):
            raise StoreError(
                f"{path}: {name} is an impossible value of type {type(values[name]).__name__}; "
                "restore the folder from a copy"
            )
    values |= {name: tuple(values[name]) for name in ("stop", "base_tunable")}
    return Record(**values)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)  # pyright: ignore[reportUnknownVariableType]


def _is_dtype(value: Any) -> bool:
    kind = getattr(torch, value, None) if isinstance(value, str) else None
    return isinstance(kind, torch.dtype) and kind.is_floating_point


_VALID: dict[str, Callable[[Any], bool]] = {
    "dtype": _is_dtype,
    "tunable": lambda value: isinstance(value, bool),
    "base_tunable": _is_texts,
    "quantization": lambda value: value is None or isinstance(value, dict),
    "max_new_tokens": _is_count,
    "stop": _is_texts,
    "chat": lambda value: isinstance(value, bool),
    "max_length": _is_count,
    "batch_tokens": _is_count,
}
