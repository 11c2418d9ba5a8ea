"""What a run shows while it goes on: a bar, and the log of `transformers`' callbacks, whose steps are rounds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from fedrag.federated.plan import Plan

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fedrag.federated.history import Round


@contextmanager
def reporting(plan: Plan, callbacks: Sequence[TrainerCallback], progress: bool) -> Generator[Callable[[Round], None]]:
    """What to call after every round.

    Callbacks get `on_train_begin`, then for each round `on_log` and, where sites measured, `on_evaluate` with
    `state.global_step` rounds done, and `on_train_end`.
    """
    feed = _feed(plan, callbacks) if callbacks else None
    with tqdm(total=plan.rounds, desc="rounds", unit="round", disable=not progress) as bar:

        def on_round(done: Round) -> None:
            bar.update(done.number + 1 - bar.n if done.number < plan.rounds else 0)
            shown = {name: value for name, value in done.metrics.items() if name in ("train_loss", "eval_loss")}
            bar.set_postfix({"sites": len(done.sites), **shown})
            if feed:
                feed(done)

        try:
            yield on_round
        finally:
            if feed:
                feed(None)


def _feed(plan: Plan, callbacks: Sequence[TrainerCallback]) -> Callable[[Round | None], None]:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    args = TrainingArguments(str(plan.checkpoint or "runs/federated"), report_to="none", seed=plan.seed, use_cpu=True)
    state, control = TrainerState(max_steps=plan.rounds, num_train_epochs=plan.rounds), TrainerControl()
    for callback in callbacks:
        callback.on_train_begin(args, state, control)

    def tell(done: Round | None) -> None:
        if done is None:
            for callback in callbacks:
                callback.on_train_end(args, state, control)
            return
        # a round's sites measured what came before it
        measured = {name: value for name, value in done.metrics.items() if name.startswith("eval_")}
        state.epoch = state.global_step = done.number
        for callback in callbacks:
            if measured:
                callback.on_evaluate(args, state, control, metrics=measured)
        state.epoch = state.global_step = min(done.number + 1, plan.rounds)
        trained = {name: value for name, value in done.metrics.items() if name not in measured}
        logs = {**trained, "sites": float(len(done.sites)), "bytes": float(done.bytes_down + done.bytes_up)}
        state.log_history.append({**logs, **measured, "step": float(state.global_step)})
        for callback in callbacks:
            callback.on_log(args, state, control, logs=logs)

    return tell
