"""Federated training: the same task at many sites, whose data stays where it is. See `docs/federation.md`.

Importing this is cheap: torch is loaded when something is built, and Flower when something is run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrag.federated.plan import Plan
    from fedrag.federated.proximal import Proximal
    from fedrag.federated.site import Site
    from fedrag.federated.strategies.averaging import Averaging
    from fedrag.federated.strategies.lora import ExactLoRA, freeze_lora_a
    from fedrag.federated.task import Federated, FederatedTask
    from fedrag.federated.trainable import Segment, Trainable

_HOME = {
    "Averaging": "strategies.averaging",
    "ExactLoRA": "strategies.lora",
    "Federated": "task",
    "FederatedTask": "task",
    "Plan": "plan",
    "Proximal": "proximal",
    "Segment": "trainable",
    "Site": "site",
    "Trainable": "trainable",
    "freeze_lora_a": "strategies.lora",
}

__all__ = [
    "Averaging",
    "ExactLoRA",
    "Federated",
    "FederatedTask",
    "Plan",
    "Proximal",
    "Segment",
    "Site",
    "Trainable",
    "freeze_lora_a",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
