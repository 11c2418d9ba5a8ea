"""The random state of a process: Python's, NumPy's and torch's, on the CPU and on every GPU.

>>> before = RandomState.now()
>>> first = random.random()
>>> before.restore()
>>> random.random() == first
True
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """What all generators of this process were at one moment."""

    python: Any
    numpy: Any
    cpu: Tensor
    gpus: list[Tensor]

    @classmethod
    def now(cls) -> RandomState:
        """The state as it is."""
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus)

    def restore(self) -> None:
        """Go back to it."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)


@contextmanager
def untouched() -> Generator[None]:
    """Whatever happens inside draws nothing from what comes after."""
    state = RandomState.now()
    try:
        yield
    finally:
        state.restore()
