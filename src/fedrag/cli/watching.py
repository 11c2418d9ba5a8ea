"""A stage while it trains: a bar, a log file, checkpoints now and then, and a Ctrl-C that loses nothing."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fedrag.cli.runs import Run
from fedrag.progress import Bar, track

CHECKPOINT_EVERY = 600.0
"""Seconds of training between two checkpoints, where the recipe asks for none of its own."""


class Watch(TrainerCallback):
    """Watches one stage of a run; federated, its steps are rounds.

    Attributes:
        stopped: a Ctrl-C came, and the step under way was the last one.
    """

    def __init__(self, run: Run, number: int) -> None:
        self.run, self.number = run, number
        self.stopped = False
        self._bar: Bar | None = None
        self._kept = time.monotonic()

    @contextmanager
    def listening(self) -> Generator[None]:
        """Let a first Ctrl-C end the training after its step, with a checkpoint, and a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        before = signal.signal(signal.SIGINT, self._stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        typer.echo("\nstopping after this step; Ctrl-C again stops at once", err=True)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the bar."""
        stage = self.run.recipe.stages[self.number - 1].objective
        self._bar = track(total=state.max_steps, initial=state.global_step, desc=stage, unit="step")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar; save when it is time, or when it is over."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        due = args.save_strategy == "no" and time.monotonic() - self._kept > CHECKPOINT_EVERY
        if self.stopped or due:
            control.should_save = True
            self._kept = time.monotonic()
        if self.stopped:
            control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Keep the numbers."""
        self.run.log(self.number, state.global_step, logs or {})
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix({"loss": f"{logs['loss']:.4g}"}, refresh=False)  # its own time draws it

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
