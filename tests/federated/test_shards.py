"""One trainer in a notebook, its data in shards."""

import pytest
import torch

from fedrag import RALT, RAGTrainer
from fedrag.errors import ConfigError
from fedrag.federated import Plan
from systems import EXAMPLES, arguments, tiny_system


def make(folder):
    torch.manual_seed(0)
    return RAGTrainer(RALT(tiny_system(lora=4)), train_dataset=EXAMPLES, args=arguments(folder, max_steps=2))


def test_the_shards_train_and_the_trainer_ends_with_their_mean(tmp_path):
    trainer = make(tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.objective.trainable().items()}
    result = trainer.federate({"north": EXAMPLES[:6], "south": EXAMPLES[6:]}, Plan(rounds=2, quorum=2), progress=False)
    after = trainer.objective.trainable()
    assert all(torch.equal(after[name], value) for name, value in result.state.items())
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert [list(done.sites) for done in result.history.rounds] == [["north", "south"]] * 2
    assert result.history.rounds[0].sites["south"].examples == 18
    assert trainer.train_dataset == EXAMPLES


def test_each_shard_trains_on_its_own_rows(tmp_path):
    trainer, seen = make(tmp_path), []
    loss = trainer.objective.loss

    def watched(batch):
        seen.append({example.question for example in batch})
        return loss(batch)

    trainer.objective.loss = watched
    trainer.federate({"north": EXAMPLES[:6], "south": EXAMPLES[6:]}, Plan(rounds=1, quorum=2), progress=False)
    north = {example.question for example in EXAMPLES[:6]}
    assert [batch <= north for batch in seen] == [True, True, False, False]
    assert all(not batch & north for batch in seen[2:])


def test_one_shard_of_all_rows_is_training_as_it_is(tmp_path):
    plain = make(tmp_path / "plain")
    plain.train()
    shared = make(tmp_path / "shared")
    shared.federate({"all": EXAMPLES}, Plan(rounds=1), progress=False)
    theirs = plain.objective.trainable()
    assert all(torch.equal(value, theirs[name]) for name, value in shared.objective.trainable().items())


@pytest.mark.parametrize(
    ("shards", "plan", "told"),
    [
        ({"north": EXAMPLES, "south": []}, Plan(rounds=1), "the shard 'south' is empty"),
        ({"north": EXAMPLES}, Plan(rounds=1, personal=["*lora_A*"]), "personal"),
        ({"north": EXAMPLES}, Plan(rounds=1, quorum=2), "quorum"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path, shards, plan, told):
    trainer = make(tmp_path)
    with pytest.raises(ConfigError, match=told):
        trainer.federate(shards, plan, progress=False)
    assert trainer.train_dataset == EXAMPLES
