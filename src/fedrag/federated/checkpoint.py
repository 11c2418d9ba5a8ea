"""A run's state after each round, in a folder that changes in one step; a resumed run ends as if it had never stopped.

A version of the folder holds `state.safetensors` (the state, which any reader of that format takes),
`strategy.safetensors` (a server optimiser's moments, say) and `run.json` (the history, and what the run is).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedrag import durable
from fedrag.errors import ConfigError, StoreError
from fedrag.federated.exchange import from_bytes, pack, to_bytes, unpack
from fedrag.federated.history import History
from fedrag.federated.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 1


@dataclass(slots=True)
class Run:
    """All that the next round depends on.

    Attributes:
        token: 16 hexadecimal digits, under which the sites keep what is theirs.
        fingerprint: what the sites agree on.
        state: the global state.
        strategy: the strategy's own.
        history: the rounds so far.
    """

    token: str
    fingerprint: str
    state: dict[str, Tensor]
    strategy: dict[str, Tensor]
    history: History


def save(folder: Path, plan: Plan, run: Run) -> None:
    """Write a run as it is after a round."""

    def write(version: Path) -> None:
        (version / "state.safetensors").write_bytes(to_bytes(pack(run.state)))
        (version / "strategy.safetensors").write_bytes(to_bytes(pack(run.strategy)))
        about = {"format": _FORMAT, "plan": plan.digest(), "token": run.token, "fingerprint": run.fingerprint}
        (version / "run.json").write_text(json.dumps({**about, "history": run.history.to_json()}), encoding="utf-8")

    durable.publish(folder, write)


def load(folder: Path, plan: Plan) -> Run | None:
    """Read a run, or `None` where there is none. Raises `ConfigError` where it ran under another plan."""
    if not durable.exists(folder):
        return None
    version = durable.current(folder)
    try:
        about = json.loads((version / "run.json").read_text(encoding="utf-8"))
        if about["format"] > _FORMAT:
            raise StoreError(f"{folder} was written by a newer fedrag (format {about['format']}): upgrade fedrag")
        if about["plan"] != plan.digest():
            raise ConfigError(
                f"the run in {folder} had another plan (rounds, seed, keep_optimizer, evaluate, personal or "
                "precision): resume with the same, or give Plan(checkpoint=...) another folder"
            )
        return Run(
            str(about["token"]),
            str(about["fingerprint"]),
            unpack(from_bytes((version / "state.safetensors").read_bytes())[0]),
            unpack(from_bytes((version / "strategy.safetensors").read_bytes())[0]),
            History.from_json(about["history"]),
        )
    except ConfigError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:  # an `InputError` is a `ValueError`
        raise StoreError(
            f"the run in {folder} cannot be read ({type(error).__name__}): restore it from a copy"
        ) from None
