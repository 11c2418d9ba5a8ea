"""Law 6, through the round loop: one site's rounds are its segments and one round is plain training, to the bit; sites
of unequal size with one full-batch step are one step on all examples; neither the order of sites and replies nor a
stop changes a bit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM
from safetensors.torch import load_file

from federating import Backwards, Outcome, Walker, federate, of_round, same, three
from fedrag import LSR, RALT, Contrastive, Example, RAGTrainer, Ranking
from fedrag.federated import FederatedTask, Plan, Segment, Site, checkpoint
from fedrag.federated.history import Round
from fedrag.federated.trainers import FromTrainer
from recipes import RECIPES
from systems import EXAMPLES, arguments, tiny_system, two_stages

OURS = ("ralt", "lsr", "contrastive", "joint", "ranking")
NORTH = Site("north")


def settings(name: str) -> dict[str, Any]:
    return {"dropout": 0.2, "max_steps": 3, **({"lora": 2} if name in ("ralt", "joint") else {})}


@pytest.mark.parametrize("name", OURS)
def test_one_site_is_its_segments_to_the_bit(name: str, tmp_path: Path) -> None:
    def build(site: Site) -> Any:
        return RECIPES[name](tmp_path, **settings(name))

    plan = Plan(rounds=2, seed=5, evaluate=name in ("ralt", "joint"))
    result = FederatedTask(build, plan).run([NORTH], progress=False)
    direct = FromTrainer(build(NORTH))
    losses = [direct.train(Segment(number, 2, "north", 5))["train_loss"] for number in range(2)]
    assert same(result.state, direct.exchange_state())
    assert result.history.curve("train_loss") == losses
    assert losses[0] != losses[1]
    if name == "ralt":
        assert all(".lora_" in name for name in result.state)
    if name == "ranking":
        assert all(name.startswith("reranker/model.") for name in result.state)


@pytest.mark.parametrize("name", OURS)
def test_one_round_at_one_site_is_plain_training_to_the_bit(name: str, tmp_path: Path) -> None:
    def build(site: Site) -> Any:
        return RECIPES[name](tmp_path, **settings(name))

    result = FederatedTask(build, Plan(rounds=1, evaluate=False)).run([NORTH], progress=False)
    trainer = build(NORTH)
    before = FromTrainer(trainer).exchange_state()
    trainer.train()
    assert same(result.state, FromTrainer(trainer).exchange_state())
    assert [name for name in before if not torch.equal(before[name], result.state[name])]


ROWS = [
    Example(e.question, e.answers, positives=e.positives, negatives=[f"d{(n + 1) % 24}", f"d{(n + 5) % 24}"])
    for n, e in enumerate(EXAMPLES)
]
SHARES = {"a": ROWS[:12], "b": ROWS[12:20], "c": ROWS[20:]}

# Losses that are means over examples. Contrastive's are not where a batch has more than one example, whose documents
# are negatives to each other: there each example is a batch of its own, with its own negatives, and gradients are
# accumulated over them.
MEANS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "ralt": (lambda rag: RALT(rag, shuffle=False), False),
    "lsr": (lambda rag: LSR(rag, k=4, train="both"), False),
    "contrastive": (Contrastive, True),
    "ranking": (lambda rag: Ranking(two_stages(rag), k=4), False),
}


@pytest.mark.parametrize("name", MEANS)
def test_one_full_step_at_three_sites_is_one_step_on_everything(name: str, tmp_path: Path) -> None:
    make, apart = MEANS[name]

    def trainer(rows: list[Example]) -> RAGTrainer:
        batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(rows)} if apart else {}
        args = arguments(
            tmp_path,
            **{"per_device_train_batch_size": len(rows), **batch},
            max_steps=1,
            optim="sgd",
            learning_rate=0.5,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
        )
        return RAGTrainer(make(tiny_system(kind="bert", lora=None)), train_dataset=rows, args=args)

    def moved(weighting: Any) -> dict[str, torch.Tensor]:
        task = FederatedTask(lambda site: trainer(SHARES[site.name]), Plan(rounds=1, weighting=weighting))
        return task.run([Site(site) for site in SHARES], progress=False).state

    whole = FromTrainer(trainer(ROWS))
    before = whole.exchange_state()
    whole.train(Segment(0, 1, "all"))
    after = whole.exchange_state()
    federated = moved("examples")
    assert far(after, before) > 1e-3
    assert far(federated, after) < 1e-6
    if name == "ralt":
        assert far(moved("uniform"), after) > 1e-5  # it is the weights that do it


def far(one: Any, other: Any) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


PLANS: dict[str, dict[str, Any]] = {
    "averaging": {},
    "FedAvg": {"strategy": FedAvg()},
    "FedAvgM": {"strategy": FedAvgM(server_momentum=0.5)},
    "FedAdam": {"strategy": FedAdam(eta=0.1)},
    "everything": {"keep_optimizer": True, "personal": ["own/*"], "fraction": 0.6, "precision": "bfloat16"},
}


@pytest.mark.parametrize("name", ["averaging", "FedAdam"])
def test_the_order_of_sites_and_replies_changes_no_bit(name: str) -> None:
    plan = Plan(rounds=3, **PLANS[name])
    plain = federate(Walker, plan, three())
    for sites, grid in ((three()[::-1], Backwards), (three(), Backwards)):
        other = federate(Walker, plan, sites, grid=grid)
        assert same(plain.run.state, other.run.state)
        assert list(plain.rounds[0].sites) == list(other.rounds[0].sites)
    assert order(other) == order(plain)[::-1] == ["c", "b", "a"]


def order(outcome: Outcome) -> list[str]:
    """The sites in which the first round's replies came."""
    trained = [message for message in outcome.grid.up if message.metadata.message_type == "train"]
    return [str(message.content["config"]["site"]) for message in trained[:3]]


class Stopped(Exception):
    pass


def stop_after(number: int) -> Callable[[Round], None]:
    def on_round(done: Round) -> None:
        if done.number == number:
            raise Stopped

    return on_round


def numbers(outcome: Outcome) -> list[Any]:
    """All of a run's history that no clock gives."""
    rows = [*outcome.rounds, outcome.closing]
    return [
        (row.number, sorted(row.sites), row.bytes_up, {n: v for n, v in row.metrics.items() if "seconds" not in n})
        for row in rows
    ]


@pytest.mark.parametrize("name", PLANS)
def test_stopped_after_any_round_and_resumed_is_never_stopped(name: str, tmp_path: Path) -> None:
    whole = federate(Walker, Plan(rounds=3, **PLANS[name]), three(tmp_path / "never"))
    for number in range(4):
        plan = Plan(rounds=3, checkpoint=tmp_path / f"run{number}", **PLANS[name])
        sites = three(tmp_path / f"sites{number}")
        with pytest.raises(Stopped):
            federate(Walker, plan, sites, on_round=stop_after(number))
        resumed = federate(Walker, plan, sites, resume=True)
        assert same(whole.run.state, resumed.run.state)
        assert same(whole.run.strategy, resumed.run.strategy)
        assert numbers(whole) == numbers(resumed)
        trained = [m for m in resumed.grid.down if m.metadata.message_type == "train"]
        assert {m.content["config"]["round"] for m in trained} == set(range(number + 1, 3))


KEEPING = {"keep_optimizer": True, "personal": ["*layer.0.*"], "evaluate": False}


def killing(folder: Path, *, kill: bool = False, resume: bool = False) -> Outcome:
    """A run of two sites; with `kill`, it dies in round 1 when both have trained and before one has answered."""

    def build(site: Site) -> Any:
        rows = {"a": EXAMPLES[:16], "b": EXAMPLES[16:]}[site.name]
        return RECIPES["contrastive"](folder / "out", dropout=0.2, rows=rows, max_steps=2)

    def die(_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    sites = [Site(name, state=folder / name) for name in "ab"]
    plan = Plan(rounds=3, checkpoint=folder / "run", **KEEPING)
    return federate(build, plan, sites, resume=resume, tamper={"b": of_round(1, die)} if kill else None)


def test_killed_in_a_round_and_resumed_is_never_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from laws.test_law_6_federated_equals_centralized import killing\n"
        "killing(Path(sys.argv[1]), kill=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "killed")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=170)
    assert done.returncode == -signal.SIGKILL, done.stderr
    plan = Plan(rounds=3, **KEEPING)
    stopped = checkpoint.load(tmp_path / "killed" / "run", plan)
    assert stopped is not None
    assert len(stopped.history.rounds) == 1
    whole = killing(tmp_path / "whole")
    resumed = killing(tmp_path / "killed", resume=True)
    assert stopped.fingerprint == whole.run.fingerprint  # which another process computed
    assert same(whole.run.state, resumed.run.state)
    assert numbers(whole) == numbers(resumed)
    own = [final(tmp_path / folder / "b" / outcome.run.token) for folder, outcome in pairs(whole, resumed)]
    assert same(*own)
    assert len(own[0]) > len(whole.run.state)


def pairs(whole: Outcome, resumed: Outcome) -> list[tuple[str, Outcome]]:
    return [("whole", whole), ("killed", resumed)]


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final.safetensors")


def test_no_round_and_no_site_replays_anothers_batches(tmp_path: Path) -> None:
    seen: dict[tuple[str, int], list[tuple[str, ...]]] = {}

    def build(site: Site) -> Any:
        trainer = RECIPES["contrastive"](tmp_path)
        collate, made = trainer.data_collator, iter(range(99))

        def watched(rows: list[Example]) -> Any:
            seen.setdefault((site.name, next(made) // 6), []).append(tuple(row.question for row in rows))
            return collate(rows)

        trainer.data_collator = watched
        return trainer

    federate(build, Plan(rounds=3, evaluate=False), [Site("a"), Site("b")])
    assert {place: len(batches) for place, batches in seen.items()} == {(s, r): 6 for s in "ab" for r in range(3)}
    assert seen["a", 0] == seen["b", 0]  # as both would train alone
    later = [tuple(batches) for place, batches in seen.items() if place != ("b", 0)]
    assert len(set(later)) == 5
