"""A task in this process: the recipe and the plan in, the final state and what happened out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import TrainerCallback

from federating import Walker, federate, same, three
from fedrag import RALT, RAGTrainer
from fedrag.errors import ConfigError, InputError, QuorumError
from fedrag.federated import FederatedTask, Plan, Site
from fedrag.federated.task import Federated
from systems import EXAMPLES, arguments, tiny_system


class Stop(TrainerCallback):
    """Ends the run after so many rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.global_step == self.rounds and "train_loss" in logs:
            raise InterruptedError


def run(plan: Plan, build: Any = Walker, sites: list[Site] | None = None, **settings: Any) -> Federated:
    torch.manual_seed(0)
    return FederatedTask(build, plan).run(sites or three(), progress=False, **settings)


def test_it_gives_what_the_round_loop_gives() -> None:
    result = run(Plan(rounds=3))
    outcome = federate(Walker, Plan(rounds=3), three())
    assert same(result.state, outcome.run.state)
    assert result.history.curve("eval_distance") == outcome.run.history.curve("eval_distance")
    assert same(run(Plan(rounds=3)).state, result.state)


def test_every_run_starts_from_what_the_recipe_makes() -> None:
    torch.manual_seed(0)
    task = FederatedTask(Walker, Plan(rounds=2))
    first = task.run(three(), progress=False)
    torch.manual_seed(0)
    assert same(task.run(three(), progress=False).state, first.state)


def test_the_result_goes_into_a_trainer_and_into_a_file(tmp_path: Path) -> None:
    result = run(Plan(rounds=2))
    into = Walker(Site("anywhere"))
    result.load_into(into)
    assert same(into.state, result.state)
    result.save(tmp_path / "state.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "state.safetensors")
    assert same({name: theirs[name] for name in result.state}, result.state)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_personal_parameters_are_not_in_the_result() -> None:
    result = run(Plan(rounds=2, personal=["own/*"]))
    assert list(result.state) == ["w", "b"]
    into = Walker(Site("anywhere"))
    into.state["own/head"] += 7
    result.load_into(into)
    assert same(into.state, {**result.state, "own/head": torch.full((2,), 7.0)})


def test_a_rag_system_is_tuned_by_three_sites(tmp_path: Path) -> None:
    def build(site: Site) -> RAGTrainer:
        torch.manual_seed(0)
        return RAGTrainer(
            RALT(tiny_system(lora=2)),
            train_dataset=site.examples("train"),
            eval_dataset=EXAMPLES[:2],
            args=arguments(tmp_path),
        )

    sites = [Site(name, data={"train": EXAMPLES[a:b]}) for name, a, b in (("a", 0, 12), ("b", 12, 20), ("c", 20, 24))]
    result = run(Plan(rounds=2, quorum=3), build, sites)
    losses = result.history.curve("train_loss")
    assert losses[1] < losses[0]
    assert [site.examples for site in result.history.rounds[0].sites.values()] == [12.0, 8.0, 4.0]
    assert all(".lora_" in name for name in result.state)
    trainer = build(sites[0])
    before = trainer.evaluate()["eval_loss"]
    result.load_into(trainer)
    assert trainer.evaluate()["eval_loss"] < before
    assert trainer.evaluate()["eval_loss"] == result.history.curve("eval_loss")[-1]


def test_sites_that_cannot_fulfil_the_plan_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="3 sites cannot meet a quorum of 4"):
        run(Plan(rounds=1, quorum=4))
    with pytest.raises(ConfigError, match="2 sites have 1 names"):
        run(Plan(rounds=1), sites=[Site("a"), Site("a")])


def test_a_recipe_that_fails_everywhere_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    def build(site: Site) -> Walker:
        raise LookupError("bed 7")

    with caplog.at_level(logging.ERROR), pytest.raises(QuorumError, match="0 sites can take part") as caught:
        run(Plan(rounds=1), build)
    assert "a: no reply" not in str(caught.value)
    assert "build(site) failed (LookupError)" in str(caught.value)
    assert "bed 7" not in str(caught.value)


def test_what_is_no_trainer_is_told_at_the_site(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(QuorumError, match=r"build\(site\) failed \(ConfigError\)"):
        run(Plan(rounds=1), lambda site: object())
    assert "without num_examples, exchange_state" in caplog.text


def test_a_run_goes_on_from_its_checkpoint_and_only_when_asked(tmp_path: Path) -> None:
    plan = Plan(rounds=3, checkpoint=tmp_path / "run")
    with pytest.raises(InterruptedError):
        run(plan, callbacks=[Stop(2)])
    with pytest.raises(ConfigError, match="holds a run: resume it"):
        run(plan)
    with pytest.raises(ConfigError, match="had another plan"):
        run(Plan(rounds=4, checkpoint=tmp_path / "run"), resume=True)
    result = run(plan, resume=True)
    assert same(result.state, run(Plan(rounds=3)).state)
    assert len(result.history.rounds) == 3
    again = run(plan, resume=True)  # it is over: nothing is done anew
    assert again.history == result.history
    assert same(again.state, result.state)


def test_resuming_wants_a_folder_and_may_find_it_empty(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give Plan\(checkpoint=\.\.\.\)"):
        run(Plan(rounds=1), resume=True)
    result = run(Plan(rounds=1, checkpoint=tmp_path / "run"), resume=True)
    assert same(result.state, run(Plan(rounds=1)).state)


def test_a_state_that_does_not_fit_is_refused() -> None:
    result = run(Plan(rounds=1))
    del result.state["b"]
    result.state["more"] = torch.ones(1)
    with pytest.raises((InputError, AssertionError)):
        result.load_into(Walker(Site("anywhere")))


def test_the_order_of_the_sites_changes_no_bit() -> None:
    class Random(Walker):
        """Begins at random, as fresh adapters do."""

        def __init__(self, site: Site) -> None:
            super().__init__(site)
            self.state["w"] = torch.randn(3)

    states = [run(Plan(rounds=2), Random, sites).state for sites in (three(), three()[::-1])]
    assert same(*states)
    assert not same(states[0], run(Plan(rounds=2)).state)
