"""What a run shows: trackers of transformers get the rounds as steps, each number once and at its step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from federating import Walker, federate, three
from fedrag.errors import QuorumError
from fedrag.federated import FederatedTask, Plan
from fedrag.federated.history import Round, SiteRound
from fedrag.federated.reporting import reporting


class Tracker(TrainerCallback):
    """Like TensorBoard's: it takes what `on_log` brings, at the step that the state tells."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.scalars: dict[str, dict[int, float]] = {}
        self.args: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert "model" not in kwargs
        self.args = args
        self.events.append(("begin", state.global_step))
        assert state.is_world_process_zero
        assert state.max_steps == 2

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.events.append(("log", state.global_step))
        for name in list(logs or {}):
            assert state.global_step not in self.scalars.setdefault(name, {})
            self.scalars[name][state.global_step] = (logs or {}).pop(name)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self.events.append(("evaluate", state.global_step))
        assert metrics["eval_distance"] == self.scalars["eval_distance"][state.global_step]

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.events.append(("end", state.global_step))
        self.history = state.log_history


def reported(plan: Plan, *callbacks: TrainerCallback, progress: bool = False) -> list[Round]:
    with reporting(plan, callbacks, progress) as on_round:
        outcome = federate(Walker, plan, three(), on_round=on_round)
    return [*outcome.rounds, outcome.closing]


def test_a_tracker_gets_every_round_in_order(tmp_path: Path) -> None:
    one, other = Tracker(), Tracker()
    rounds = reported(Plan(rounds=2, seed=7, checkpoint=tmp_path / "run"), one, other)
    measured = [("log", 0), ("evaluate", 0)], [("log", 1), ("log", 1), ("evaluate", 1)]
    assert one.events == other.events
    assert one.events == [
        ("begin", 0), *measured[0], *measured[1], ("log", 2), ("log", 2), ("evaluate", 2), ("end", 2),
    ]  # fmt: skip
    assert one.scalars["eval_distance"] == {n: row.metrics["eval_distance"] for n, row in enumerate(rounds)}
    assert one.scalars["train_loss"] == {n + 1: row.metrics["train_loss"] for n, row in enumerate(rounds[:2])}
    assert one.scalars["sites"] == {1: 3.0, 2: 3.0}
    assert one.scalars["bytes"] == {1: 144.0, 2: 144.0}
    assert (one.args.seed, one.args.output_dir) == (7, str(tmp_path / "run"))
    assert [row["step"] for row in one.history] == [0, 1, 1, 2, 2]
    assert sum(("train_loss" in row) for row in one.history) == 2  # what a callback pops is there for the others


def test_without_evaluation_nothing_is_measured() -> None:
    tracker = Tracker()
    reported(Plan(rounds=2, evaluate=False), tracker)
    assert tracker.events == [("begin", 0), ("log", 1), ("log", 2), ("end", 2)]


def test_a_run_that_fails_ends_for_its_trackers(tmp_path: Path) -> None:
    tracker = Tracker()
    task = FederatedTask(Walker, Plan(rounds=2, quorum=3, max_norm=1e-9))
    with pytest.raises(QuorumError):
        task.run(three(), callbacks=[tracker], progress=False)
    assert tracker.events == [("begin", 0), ("end", 0)]


def test_transformers_own_callbacks_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    reported(Plan(rounds=2), PrinterCallback(), ProgressCallback())
    shown = capsys.readouterr().out
    assert shown.count("eval_distance") == 2 * 3  # each of the two prints it
    assert shown.count("train_loss") == 2 * 2


def test_the_bar_counts_rounds_also_of_a_resumed_run(capsys: pytest.CaptureFixture[str]) -> None:
    sites = {"a": SiteRound(1.0, {"num-examples": 1.0})}
    with reporting(Plan(rounds=4), (), True) as on_round:
        for number in (2, 3, 4):
            on_round(Round(number, sites, {}, (), {"train_loss": 0.25}, 0, 0, 0.0))
    shown = capsys.readouterr().err
    assert "3/4" in shown
    assert "4/4" in shown
    assert "5/4" not in shown
    assert "train_loss=0.25" in shown


def test_nothing_is_shown_without_being_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    reported(Plan(rounds=1))
    assert capsys.readouterr() == ("", "")
