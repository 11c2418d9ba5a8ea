"""Modes of modules: which are training, which parameters may move, and putting both back afterwards."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Run `module` without dropout and without gradients; every submodule gets its own mode back at the end."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def only_training(parameters: Iterable[nn.Parameter], among: Iterable[nn.Parameter]) -> Generator[None]:
    """Let just `parameters` require gradients among all of `among`; the flags they had come back at the end."""
    flags = {parameter: parameter.requires_grad for parameter in among}
    chosen = set(parameters)
    for parameter in flags:
        parameter.requires_grad_(parameter in chosen)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None
