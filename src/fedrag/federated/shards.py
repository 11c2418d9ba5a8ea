"""Federation in a notebook: one trainer, its data in shards, each shard a site that trains with the same trainer.

    result = trainer.federate({"north": examples[:100], "south": examples[100:]}, Plan(rounds=3))

It shows what federation does to the quality; it keeps nothing apart. The sites share the trainer's knowledge store and
this process, so data that may not be together wants `FederatedTask` and `build(site)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import Trainer

from fedrag.errors import ConfigError
from fedrag.federated.plan import Plan
from fedrag.federated.site import Site
from fedrag.federated.task import Federated, FederatedTask
from fedrag.federated.trainable import Segment
from fedrag.federated.trainers import FromTrainer


def federate(trainer: Trainer, shards: Mapping[str, Sequence[Any]], plan: Plan, *, progress: bool = True) -> Federated:
    """Train over the shards; the trainer ends with the final state, and its own `train_dataset` as before.

    Args:
        trainer: any trainer of `transformers`.
        shards: the rows of each site, by its name, of the kind that the trainer's `train_dataset` has.
        plan: rounds, strategy and the rest.
        progress: show a bar.

    Raises:
        ConfigError: for an empty shard, or a plan with personal parameters, which one shared trainer cannot keep apart.
    """
    if plan.personal:
        raise ConfigError(
            "one trainer cannot keep the sites' personal parameters apart: use FederatedTask and build(site)"
        )
    if empty := [name for name, rows in shards.items() if not len(rows)]:
        raise ConfigError(f"the shard {empty[0]!r} is empty: give every site rows to train on, or leave it out")
    before = trainer.train_dataset
    shared = FromTrainer(trainer)
    try:
        task = FederatedTask(lambda site: _Shard(shared, shards[site.name]), plan)
        result = task.run([Site(name) for name in shards], progress=progress)
        result.load_into(shared)
    finally:
        trainer.train_dataset = before
    return result


class _Shard:
    """The shared trainer, over the rows of one site."""

    def __init__(self, shared: FromTrainer, rows: Sequence[Any]) -> None:
        self.shared = shared
        self.rows = rows
        self.exchange_state = shared.exchange_state
        self.load_exchange_state = shared.load_exchange_state
        self.evaluate = shared.evaluate
        self.fingerprint = shared.fingerprint
        self.scales = shared.scales
        self.finish = shared.finish

    @property
    def num_examples(self) -> int:
        return len(self.rows)

    def train(self, segment: Segment) -> Mapping[str, float]:
        self.shared.trainer.train_dataset = cast(Any, self.rows)
        return self.shared.train(segment)
