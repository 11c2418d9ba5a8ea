"""Rounds as one schedule: seeds, learning rates, the optimiser between rounds, and what is put back afterwards."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, StepLR
from transformers import Trainer

from fedrag import RALT, Contrastive, RAGTrainer
from fedrag.errors import ConfigError, TrainingError
from fedrag.federated.schedule import OptimizerFile, seed_of
from fedrag.federated.trainable import Segment
from fedrag.federated.trainers import FromTrainer
from recipes import RECIPES, Rates, sft
from systems import EXAMPLES, arguments, tiny_system


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_seeds_of_rounds_sites_plans_and_trainers_are_far_apart():
    segments = [Segment(r, 9, site, seed) for r in range(9) for site in ("a", "b", "ab") for seed in (0, 1)]
    seeds = [seed_of(segment, own) for segment in segments for own in (42, 43)]
    assert len(set(seeds)) == 9 * 3 * 2 * 2
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert min(b - a for a, b in zip(sorted(seeds), sorted(seeds)[1:], strict=False)) > 1000  # epochs are added to them


def test_a_seed_is_the_same_everywhere():
    assert seed_of(Segment(1, 3, "north", 5), 42) == 3099987018


# -- the learning rate


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": "linear", "warmup_steps": 0.25},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}},
        {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 4},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 5}},
        {"lr_scheduler_type": "linear", "gradient_accumulation_steps": 2},
    ],
    ids=lambda settings: settings["lr_scheduler_type"],
)
def test_the_rate_is_that_of_one_long_run(settings, tmp_path):
    long, pieces, logged = Rates(), Rates(), []
    settings = {**settings, "logging_strategy": "steps", "logging_steps": 1}
    trainer = sft(tmp_path, max_steps=12, **settings)
    trainer.add_callback(long)
    trainer.train()
    for number in range(4):
        piece = sft(tmp_path, max_steps=3, **settings)
        piece.add_callback(pieces)
        FromTrainer(piece).train(Segment(number, 4, "north"))
        logged += rates_logged(piece)
    assert len(set(map(tuple, long.rates))) > 2
    assert pieces.rates == long.rates
    assert logged == rates_logged(trainer)


def rates_logged(trainer):
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def test_a_rate_that_was_changed_holds_from_the_next_round(tmp_path):
    file, seen = tmp_path / "optimizer.pt", Rates()
    for number, rate in enumerate((1e-2, 1e-3)):
        trainer = sft(tmp_path, max_steps=2, learning_rate=rate, lr_scheduler_type="constant", warmup_steps=0)
        trainer.add_callback(seen)
        FromTrainer(trainer).train(Segment(number, 2, "north", 0, file))
    assert [rates[0] for rates in seen.rates] == [1e-2, 1e-2, 1e-3, 1e-3]


def test_each_component_keeps_its_own_rate(tmp_path):
    def built():
        rag = tiny_system(kind="bert")
        args = arguments(tmp_path, max_steps=2, warmup_steps=2)
        rates = {"retriever": 1e-3}
        trainer = RAGTrainer(Contrastive(rag), train_dataset=EXAMPLES, args=args, learning_rates=rates)
        trainer.add_callback(seen)
        return FromTrainer(trainer)

    seen = Rates()
    for number in range(3):
        built().train(Segment(number, 3, "north"))
    assert [rates[0] for rates in seen.rates] == pytest.approx([0.0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


class StepWise(Trainer):
    """A trainer with a schedule of its own making."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = StepLR(optimizer or self.optimizer, 2)
        self._created_lr_scheduler = True
        return self.lr_scheduler


def test_a_schedule_that_remembers_is_refused(tmp_path):
    made = sft(tmp_path)
    trainer = StepWise(model=made.model, args=made.args, train_dataset=made.train_dataset)
    trainer.data_collator = made.data_collator
    with pytest.raises(ConfigError, match=r"follows a StepLR.*use 'linear'"):
        FromTrainer(trainer).train(Segment(0, 2, "north"))


# -- the objective's step


class Told(RALT):
    """Remembers the steps that it was told."""

    steps: tuple[int, ...] = ()

    def at_step(self, step):
        self.steps += (step,)


def test_objectives_count_over_all_rounds(tmp_path):
    rag = tiny_system()
    objective = Told(rag)
    trainer = RAGTrainer(objective, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=2))
    made = FromTrainer(trainer)
    for number in (0, 1, 3):
        made.train(Segment(number, 4, "north"))
    assert objective.steps == (0, 1, 2, 3, 6, 7)
    trainer.train()
    assert objective.steps[6:] == (0, 1)


# -- the optimiser


@pytest.mark.parametrize("keep", [False, True])
def test_an_optimiser_of_ones_own_begins_each_round_as_it_was_given(keep, tmp_path):
    def built():
        trainer = sft(tmp_path, max_steps=3)
        groups = [{"params": [p]} for p in trainer.model.parameters() if p.requires_grad]
        groups[0]["lr"] = 1e-3
        own = torch.optim.SGD(groups, lr=1e-2, momentum=0.9)
        trainer = sft(tmp_path, max_steps=3)
        parameters = [p for p in trainer.model.parameters() if p.requires_grad]
        for group, parameter in zip(own.param_groups, parameters, strict=True):
            group["params"] = [parameter]
        trainer.optimizer = own
        trainer.add_callback(seen)
        return FromTrainer(trainer)

    file = tmp_path / "optimizer.pt" if keep else None
    seen, states = Rates(), []
    kept = built()
    for number in range(3):
        kept.train(Segment(number, 3, "north", 0, file))
        states.append(kept.exchange_state())
    rates, seen = seen.rates, Rates()
    for number in range(3):
        anew = built()
        if number:
            anew.load_exchange_state(states[number - 1])
        anew.train(Segment(number, 3, "north", 0, file))
        assert same(anew.exchange_state(), states[number])
    assert seen.rates == rates
    assert [row[0] / row[1] for row in rates[1:]] == pytest.approx([0.1] * 8)  # the first rate of the warm-up is 0


def test_a_kept_optimiser_is_another_run_than_a_fresh_one(tmp_path):
    def last(file):
        made = FromTrainer(sft(tmp_path))
        for number in range(2):
            made.train(Segment(number, 2, "north", 0, file))
        return made.exchange_state()

    one, other = last(None), last(tmp_path / "optimizer.pt")
    assert not [name for name in one if torch.equal(one[name], other[name])]


def test_a_round_that_comes_twice_begins_as_it_did(tmp_path):
    """A server that lost its last round asks for it again, or for all from the start."""
    file, states = tmp_path / "optimizer.pt", {-1: FromTrainer(sft(tmp_path)).exchange_state()}
    for number in (0, 1, 1, 2, 2, 0, 1, 2):
        made = FromTrainer(sft(tmp_path))
        made.load_exchange_state(states[number - 1])
        made.train(Segment(number, 3, "north", 0, file))
        state = made.exchange_state()
        assert same(state, states.setdefault(number, state))


def test_a_round_left_out_goes_on_from_the_one_before(tmp_path):
    file = OptimizerFile(tmp_path / "o.pt", 0, ["w"])
    assert file.read() is None
    file.write(optimizer={"step": 1}, scaler={}, objective={})
    assert OptimizerFile(tmp_path / "o.pt", 3, ["w"]).read()["optimizer"] == {"step": 1}


@pytest.mark.parametrize(
    ("round", "names", "words"),
    [
        (1, ["v", "w"], "of 1 other parameters than the 2"),
        (2, ["w"], r"after round 5, wanted is one from before round 2"),
    ],
)
def test_a_file_of_another_run_is_refused(round, names, words, tmp_path):
    path = tmp_path / "o.pt"
    last = 0 if round == 1 else 5
    for number in {0, last}:
        file = OptimizerFile(path, last, ["w"])
        if number:
            file.before.unlink(missing_ok=True)
        file.write(optimizer={}, scaler={}, objective={})
    with pytest.raises(TrainingError, match=words + r".*: remove it"):
        OptimizerFile(path, round, names).read()


@pytest.mark.parametrize("content", [b"", b"no optimiser", None], ids=["empty", "text", "other"])
def test_a_broken_file_is_named(content, tmp_path):
    path = tmp_path / "o.pt"
    torch.save({"weights": torch.ones(2)}, path) if content is None else path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"o\.pt is no state of an optimiser.*remove it"):
        OptimizerFile(path, 1, ["w"]).read()


def test_a_crash_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "o.pt"
    OptimizerFile(path, 0, ["w"]).write(optimizer={"step": 1}, scaler={}, objective={})
    file = OptimizerFile(path, 1, ["w"])
    file.read()
    with pytest.raises(AttributeError):
        file.write(optimizer={"step": lambda: 2}, scaler={}, objective={})  # a function cannot be written
    assert OptimizerFile(path, 1, ["w"]).read()["optimizer"] == {"step": 1}


# -- what is put back


class Stop(Exception):
    """Raised in the middle of a round."""


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ["joint", "sft"])
def test_settings_are_as_before(name, fails, tmp_path):
    trainer = RECIPES[name](tmp_path, max_steps=2, data_seed=3)
    made = FromTrainer(trainer)
    args, loader = trainer.args, trainer.accelerator.dataloader_config
    callbacks = list(trainer.callback_handler.callbacks)
    assert (args.seed, args.data_seed, loader.data_seed) == (42, 3, 3)
    seen = []

    def collate(rows, usual=trainer.data_collator):
        seen.append((args.seed, args.data_seed, loader.data_seed))
        if fails:
            raise Stop
        return usual(rows)

    trainer.data_collator = collate
    if fails:
        with pytest.raises(Stop):
            made.train(Segment(1, 3, "north"))
    else:
        made.train(Segment(1, 3, "north"))
    seed = seed_of(Segment(1, 3, "north"), 3)
    assert set(seen) == {(seed_of(Segment(1, 3, "north"), 42), seed, seed)}
    assert (args.seed, args.data_seed, loader.data_seed) == (42, 3, 3)
    assert trainer.callback_handler.callbacks == callbacks
    assert name == "sft" or "at_step" not in vars(trainer.objective)


def test_the_schedule_in_use_is_the_one_that_a_checkpoint_holds(tmp_path):
    trainer = sft(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    FromTrainer(trainer).train(Segment(1, 3, "north"))
    assert isinstance(trainer.lr_scheduler, LambdaLR)
    kept = torch.load(tmp_path / "checkpoint-2" / "scheduler.pt", weights_only=True)
    assert kept["last_epoch"] == 4
    assert kept["_last_lr"] == trainer.lr_scheduler.get_last_lr()
