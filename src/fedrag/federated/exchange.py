"""States as bytes: what a message holds, and what a file or a socket holds; bf16 stays bf16 everywhere.

A state is packed once, `{name: Packed}`, and then becomes Flower's `ArrayRecord` or safetensors bytes; neither needs
torch. NumPy knows no bf16, so such an array travels as raw bytes under a type of its own, and all others as NumPy
arrays, which Flower's tools can read.

>>> import torch
>>> state = {"w": torch.ones(2, dtype=torch.bfloat16), "b": torch.zeros(1)}
>>> again = unpack(from_record(to_record(pack(state))))
>>> [(name, value.dtype) for name, value in again.items()]
[('w', torch.bfloat16), ('b', torch.float32)]
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import safetensors

from fedrag.errors import InputError

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from torch import Tensor

    from fedrag.federated.trainable import State

Precision = Literal["keep", "bfloat16"]

_RAW = "fedrag.raw"
_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_SHORT = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DIMENSIONS = 32
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f(?P<bytes>[248])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\), \} *\n",
    re.DOTALL,
)
_LONG = {short: long for long, short in _SHORT.items()}


class Packed(NamedTuple):
    """A tensor as bytes, little-endian, row by row."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Packs = Mapping[str, Packed]


def pack(state: State, precision: Precision = "keep") -> dict[str, Packed]:
    """The tensors as bytes, in their own dtype, or those of 32 and 64 bits as bf16.

    Raises `InputError` for a dtype that is no float.
    """
    import torch

    packs: dict[str, Packed] = {}
    for name, value in state.items():
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in _SIZES:
            raise InputError(f"{name!r} is of {dtype}; what is exchanged is one of {', '.join(_SIZES)}")
        if precision == "bfloat16" and _SIZES[dtype] > 2:
            dtype = "bfloat16"
        cast = value.detach().to("cpu", getattr(torch, dtype)).contiguous()
        packs[name] = Packed(dtype, tuple(cast.shape), cast.reshape(-1).view(torch.uint8).numpy().tobytes())
    return packs


def unpack(packs: Packs) -> dict[str, Tensor]:
    """The tensors again, on the CPU."""
    import torch

    return {
        name: torch.frombuffer(bytearray(p.data), dtype=getattr(torch, p.dtype)).reshape(p.shape)
        if p.data
        else torch.empty(p.shape, dtype=getattr(torch, p.dtype))
        for name, p in packs.items()
    }


def to_record(packs: Packs) -> ArrayRecord:
    """Flower's record."""
    from flwr.app import Array, ArrayRecord

    record = ArrayRecord()
    for name, p in packs.items():
        if p.dtype == "bfloat16":
            record[name] = Array(dtype=p.dtype, shape=p.shape, stype=_RAW, data=p.data)
        else:
            record[name] = Array(np.frombuffer(p.data, dtype=p.dtype).reshape(p.shape))
    return record


def from_record(record: ArrayRecord) -> dict[str, Packed]:
    """What another process sent. Raises `InputError` for anything that is not as it says it is; runs nothing of it."""
    packs: dict[str, Packed] = {}
    for name, array in record.items():
        p = Packed(array.dtype, tuple(array.shape), array.data) if array.stype == _RAW else _from_npy(name, array.data)
        packs[name] = _checked(name, p)
    return packs


def to_bytes(packs: Packs, header: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file (which any reader of that format takes) with a header of texts; written without torch."""
    described: dict[str, Any] = {"__metadata__": dict(header)} if header else {}
    end = 0
    for name, p in packs.items():
        described[name] = {"dtype": _SHORT[p.dtype], "shape": list(p.shape), "data_offsets": [end, end + len(p.data)]}
        end += len(p.data)
    head = json.dumps(described).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *(p.data for p in packs.values())])


def from_bytes(data: bytes) -> tuple[dict[str, Packed], dict[str, str]]:
    """The tensors in their order, and the header. Raises `InputError` for bytes that are not what `to_bytes` writes."""
    try:
        found = {name: (_LONG[t["dtype"]], tuple(t["shape"]), t["data"]) for name, t in safetensors.deserialize(data)}
        described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        header = described.pop("__metadata__", None) or {}
        packs = {name: Packed(found[name][0], found[name][1], bytes(found[name][2])) for name in described}
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"these bytes are no state: {type(error).__name__}") from None
    return {name: _checked(name, p) for name, p in packs.items()}, header


def size(packs: Packs) -> int:
    """Bytes of the numbers alone."""
    return sum(len(p.data) for p in packs.values())


def _from_npy(name: str, data: bytes) -> Packed:
    """What `np.save` writes, read without it: a header of another's making may ask NumPy for any amount of memory."""
    length = 10 + int.from_bytes(data[8:10], "little")
    head = _NPY.fullmatch(data[:length])
    if head is None:
        raise InputError(f"{name!r} is no array of floats in NumPy's format, version 1, row by row and little-endian")
    shape = tuple(int(part) for part in head["shape"].decode().split(",") if part.strip())
    return Packed(f"float{8 * int(head['bytes'])}", shape, data[length:])


def _checked(name: str, p: Packed) -> Packed:
    if p.dtype not in _SIZES:
        raise InputError(f"{name!r} is of {p.dtype}; what is exchanged is one of {', '.join(_SIZES)}")
    # an array without numbers may still say that it is of any shape, which torch would stumble over
    span = math.prod(max(length, 1) for length in p.shape)
    if len(p.shape) > _DIMENSIONS or min(p.shape, default=0) < 0 or span > 2**53:
        raise InputError(
            f"{name!r} says that it has {len(p.shape)} dimensions, {span} numbers apart; that is no tensor"
        )
    if math.prod(p.shape) * _SIZES[p.dtype] != len(p.data):
        raise InputError(f"{name!r} says that it is {p.shape} of {p.dtype}, and has {len(p.data)} bytes")
    return p
