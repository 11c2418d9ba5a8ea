"""Law 6, at one site and without a network: rounds are one schedule. One round is plain training; R rounds are one run
of R times the steps; a trainer made anew in each round is the one that was kept; no round replays another."""

import pytest
import torch

from fedrag.federated.trainable import Segment
from fedrag.federated.trainers import FromTrainer
from recipes import RECIPES, Rates

# a teacher's remembered score has the rounding of the batch in which it was asked first, and a trainer made anew asks
# anew, unless the scores are kept at the site, as they are with the optimiser
KEEPS = {"lsr": (True,), "ralt": (True,), "joint": (True,), "dpo": (False,)}


@pytest.fixture(params=RECIPES)
def build(request):
    return RECIPES[request.param]


def state(trainer):
    """Everything that the trainer trains, as it is."""
    return dict(FromTrainer(trainer).exchange_state())


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def rounds(build, folder, count, *, fresh=False, evaluate=False, keep=False, **settings):
    """The state after each round, and the rates of every step; `fresh` makes the trainer anew for each round."""
    file = folder / "optimizer.pt" if keep else None
    states, rates = [], Rates()
    trainer = None
    for number in range(count):
        if trainer is None or fresh:
            trainer = build(folder, **settings)
            trainer.add_callback(rates)
            made = FromTrainer(trainer)
        if number:
            made.load_exchange_state(states[-1])
        if evaluate:
            made.evaluate()
        made.train(Segment(number, count, "north", 5, file))
        states.append(dict(made.exchange_state()))
    return states, rates.rates


def test_one_round_is_plain_training(build, tmp_path):
    trainer, rates = build(tmp_path, dropout=0.2), Rates()
    before = state(trainer)
    trainer.add_callback(rates)
    trainer.train()
    states, told = rounds(build, tmp_path, 1, dropout=0.2)
    assert same(states[0], state(trainer))
    assert all(not torch.equal(states[0][name], value) for name, value in before.items())
    assert told == rates.rates


def test_rounds_are_one_run(build, tmp_path):
    trainer, rates = build(tmp_path, sequential=True, num_train_epochs=3), Rates()
    trainer.add_callback(rates)
    trainer.train()
    states, told = rounds(build, tmp_path, 3, keep=True, sequential=True)
    assert len(told) == 18
    assert told == rates.rates
    assert same(states[-1], state(trainer))


@pytest.mark.parametrize(
    ("name", "keep"), [(name, keep) for name in RECIPES for keep in KEEPS.get(name, (False, True))]
)
def test_a_trainer_made_anew_is_the_one_that_was_kept(name, keep, tmp_path):
    kept, rates = rounds(RECIPES[name], tmp_path, 3, keep=keep, dropout=0.2)
    anew, told = rounds(RECIPES[name], tmp_path, 3, keep=keep, dropout=0.2, fresh=True)
    assert told == rates
    assert all(same(one, other) for one, other in zip(kept, anew, strict=True))


def test_evaluation_leaves_no_trace_in_training(build, tmp_path):
    states, _ = rounds(build, tmp_path, 2, dropout=0.2)
    watched, _ = rounds(build, tmp_path, 2, dropout=0.2, evaluate=True)
    assert all(same(one, other) for one, other in zip(states, watched, strict=True))


def test_nor_in_mixed_precision(tmp_path):
    """Where evaluating, too, wraps the model, and training finds it wrapped."""
    settings = {"dropout": 0.2, "bf16": True, "activation_checkpointing": True}
    kept, _ = rounds(RECIPES["sft"], tmp_path, 2, evaluate=True, **settings)
    anew, _ = rounds(RECIPES["sft"], tmp_path, 2, fresh=True, **settings)
    assert all(same(one, other) for one, other in zip(kept, anew, strict=True))
    assert not same(kept[0], rounds(RECIPES["sft"], tmp_path, 1, dropout=0.2)[0][0])


class Watched:
    """A collator that remembers what came: the rows of every batch."""

    def __init__(self, collator):
        self.collator, self.batches = collator, []

    def __call__(self, rows):
        self.batches.append(tuple(repr(getattr(row, "question", row)) for row in rows))
        return self.collator(rows)

    def __getattr__(self, name):
        return getattr(self.collator, name)


def epochs(build, folder, segment=None, **settings):
    """The batches of each of two epochs: of a round, or of plain training."""
    trainer = build(folder, num_train_epochs=2, **settings)
    trainer.data_collator = watched = Watched(trainer.data_collator)
    FromTrainer(trainer).train(segment) if segment else trainer.train()
    assert len(watched.batches) == 12
    return [tuple(watched.batches[:6]), tuple(watched.batches[6:])]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("contrastive", {}),
        ("contrastive", {"data_seed": 7}),
        ("sft", {}),
        ("sft", {"accelerator_config": {"use_seedable_sampler": False}}),
        ("sentence", {}),
        ("sentence", {"batch_sampler": "no_duplicates"}),
    ],
    ids=["ours", "ours-data_seed", "sft", "sft-plain_sampler", "sentence", "sentence-no_duplicates"],
)
def test_no_epoch_is_another_ones_again(name, settings, tmp_path):
    seen = [epoch for number in range(3) for epoch in epochs(RECIPES[name], tmp_path, at(number), **settings)]
    assert seen[:2] == epochs(RECIPES[name], tmp_path, **settings)
    assert len(set(seen)) == 6
    assert len({tuple(sorted(row for batch in epoch for row in batch)) for epoch in seen}) == 1
    assert seen[2:4] == epochs(RECIPES[name], tmp_path, at(1), **settings)
    elsewhere = epochs(RECIPES[name], tmp_path, at(1, site="south"), **settings)
    another = epochs(RECIPES[name], tmp_path, at(1, seed=6), **settings)
    assert len({*seen, *elsewhere, *another}) == 10


def at(round, *, site="north", seed=5):
    return Segment(round, 3, site, seed)


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "joint"])  # whose turn it is differs, too
def test_no_round_draws_another_ones_dropout(name, tmp_path):
    """From one state, over the same batches at the same rate, rounds differ in dropout alone."""
    settings = {"sequential": True, "lr_scheduler_type": "constant", "warmup_steps": 0}

    def trained(number, dropout):
        made = FromTrainer(RECIPES[name](tmp_path, dropout=dropout, **settings))
        made.train(at(number))
        return made.exchange_state()

    first, second, third = (trained(number, 0.5) for number in range(3))
    for one, other in ((first, second), (second, third)):
        assert not [name for name in one if torch.equal(one[name], other[name])]
    assert same(trained(0, 0.0), trained(1, 0.0))
