"""A fingerprint of a network's weights: changes whenever they change, and costs next to nothing while they do not.

The digest is SHA-256 over every parameter and buffer that the state dict holds, names, shapes, dtypes and bytes, so
it is the same after saving and loading and in another process. Each tensor's digest is kept until the tensor shows a
sign of change: another object, another address, another version counter, or another value among 1,024 that are spread
evenly over it. The values are needed because the version counter is not enough: fused optimizers (the default of
`transformers.Trainer`) and writes through `.data` (merging of adapters) change weights and leave it alone. A write
through `.data` to a few values between the sampled ones of a large tensor is the one thing that goes unnoticed.

>>> from torch import nn
>>> layer = nn.Linear(2, 2)
>>> weights = Fingerprint(layer)
>>> before = weights()
>>> layer.weight.data.add_(1.0), weights() == before
(tensor(...), False)
"""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SAMPLE = 1024


@dataclass(frozen=True, slots=True)
class _Known:
    tensor: weakref.ref[Tensor]
    address: int
    version: int
    sample: bytes
    digest: bytes


class Fingerprint:
    """Call it for the hex digest of the module's weights as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._known: dict[str, _Known] = {}

    def __call__(self) -> str:
        """Return the digest, 64 hexadecimal characters."""
        total = hashlib.sha256()
        known: dict[str, _Known] = {}
        for name, tensor in sorted(self._module.state_dict(keep_vars=True).items()):
            old = self._known.get(name)
            known[name] = entry = _look(tensor, old)
            total.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode() + entry.digest)
        self._known = known
        return total.hexdigest()


def _look(tensor: Tensor, old: _Known | None) -> _Known:
    values = tensor.detach()
    flat = values.reshape(-1)
    sample = _bytes(flat[:: max(1, -(-flat.numel() // _SAMPLE))])
    version = -1 if tensor.is_inference() else tensor._version
    same = (
        old is not None
        and old.tensor() is tensor
        and (old.address, old.version, old.sample) == (tensor.data_ptr(), version, sample)
    )
    if old is not None and same:
        return old
    digest = hashlib.sha256(_bytes(flat)).digest()
    return _Known(weakref.ref(tensor), tensor.data_ptr(), version, sample, digest)


def _bytes(values: Tensor) -> bytes:
    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()
