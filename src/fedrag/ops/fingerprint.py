"""A short hash of what a model computes: its weights, and whatever else decides its output.

Hashing costs time in the size of the weights, so it is done again only when a tensor was changed or replaced:
torch counts the in-place changes of every tensor, those of optimisers and `load_state_dict` included.

>>> import torch
>>> layer = torch.nn.Linear(2, 2)
>>> mark = Fingerprint()
>>> before = mark(dict(layer.named_parameters()), "cosine")
>>> with torch.no_grad():
...     _ = layer.weight.add_(1)
>>> before == mark(dict(layer.named_parameters()), "cosine")
False
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


class Fingerprint:
    """Callable that hashes named tensors and a description; remembers the last result while nothing changed."""

    def __init__(self) -> None:
        self._seen: object = None
        self._value = ""

    def __call__(self, tensors: Mapping[str, Tensor], description: str) -> str:
        """Return 16 hexadecimal digits that depend on every name, shape, dtype and bit, and on `description`."""
        now = description, tuple((name, id(t), t.data_ptr(), t._version) for name, t in tensors.items())
        if now != self._seen:
            digest = hashlib.blake2b(description.encode(), digest_size=8)
            for name in sorted(tensors):
                tensor = tensors[name].detach().contiguous().cpu()
                digest.update(f"\0{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().data)
            self._seen, self._value = now, digest.hexdigest()
        return self._value
