"""How the quickstart trains: one recipe for all acts, with a progress bar and no other output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from fedrag.objectives.objective import Objective
from fedrag.training.trainer import RAGTrainer, Refresh
from fedrag.types import Example


class Bar(ProgressCallback):
    """The Trainer's progress bar, without the figures that it writes between."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing."""


def make_trainer(
    objective: Objective,
    examples: Sequence[Example],
    folder: str,
    *,
    steps: int,
    rate: float,
    seed: int,
    rates: Mapping[str, float] | None = None,
    batch_size: int = 32,
    refresh: Refresh = "epoch",
    bar: bool = True,
) -> RAGTrainer:
    """A trainer of `steps` steps at a learning rate that rises over the first ten and then falls to 0.

    `rates` are learning rates of a part, "retriever" or "generator", in place of `rate`. It writes nothing into
    `folder`.
    """
    args = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=rate,
        warmup_steps=10,
        adam_beta2=0.98,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not bar,
    )
    trainer = RAGTrainer(objective, train_dataset=examples, args=args, learning_rates=rates, refresh=refresh)
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)  # which stands in for it where other logging is off
    if bar:
        trainer.add_callback(Bar())
    return trainer


def train(objective: Objective, examples: Sequence[Example], **settings: Any) -> None:
    """Train with what `make_trainer` makes of these settings."""
    with TemporaryDirectory() as folder:
        make_trainer(objective, examples, folder, **settings).train()
