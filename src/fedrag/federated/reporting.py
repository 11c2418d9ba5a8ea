"""What a run shows while it goes on: a bar, and the log of `transformers`' callbacks, whose steps are rounds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedrag.federated.plan import Plan
from fedrag.progress import track

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from fedrag.federated.history import Round


@contextmanager
def reporting(plan: Plan, callbacks: Sequence[TrainerCallback], progress: bool) -> Generator[Callable[[Round], None]]:
    """What to call after every round.

    Callbacks get `on_train_begin`; for each round, where sites measured what they got, `on_log` and `on_evaluate` at
    the step before it, and `on_log` of the training at its own; `on_train_end` at last, also when the run fails. What
    they write into `control` has no effect.
    """
    feed = _feed(plan, callbacks) if callbacks else None
    with track(total=plan.rounds, desc="rounds", unit="round", disable=not progress) as bar:

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
        eval_ = {name: value for name, value in done.metrics.items() if name.startswith("eval_")}
        trained = {name: value for name, value in done.metrics.items() if name not in eval_}
        if eval_:
            log(done.number, eval_)
            for callback in callbacks:
                callback.on_evaluate(args, state, control, metrics=eval_)
        if done.number < plan.rounds:
            log(
                done.number + 1,
                {**trained, "sites": float(len(done.sites)), "bytes": float(done.bytes_down + done.bytes_up)},
            )

    def log(step: int, logs: dict[str, float]) -> None:
        state.epoch = state.global_step = step
        state.log_history.append({**logs, "step": float(step)})
        for callback in callbacks:
            callback.on_log(args, state, control, logs=dict(logs))

    return tell
