"""What all objectives share: the generator they may ask for, and being told the step."""

import pytest

from fedrag import RALT, Contrastive, RAGSystem, RAGTrainer
from fedrag.errors import ConfigError
from systems import EXAMPLES, arguments, tiny_system


class Mute:
    """A generator that gives no log-likelihoods."""

    def generate(self, prompts, **_):
        return ["" for _ in prompts]


def test_the_generator_is_the_systems_and_no_submodule():
    rag = tiny_system()
    objective = Contrastive(rag)
    assert objective.generator is rag.generator
    assert set(objective.state_dict()) == {f"trained.{name}" for name in objective.trained.state_dict()}


def test_a_generator_that_gives_no_likelihoods_is_named():
    objective = Contrastive(RAGSystem(retriever=tiny_system().dense, generator=Mute()))
    with pytest.raises(ConfigError, match="Contrastive needs a CausalLM, the system's generator is a Mute"):
        _ = objective.generator


def test_the_trainer_tells_every_step_once(tmp_path):
    told = []

    class Told(RALT):
        def at_step(self, step):
            told.append(step)

    args = arguments(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2, save_strategy="steps")
    args.save_steps = 2
    objective = Told(tiny_system())
    RAGTrainer(objective, train_dataset=EXAMPLES, args=args).train()
    assert told == [0, 1, 2, 3]
    told.clear()
    RAGTrainer(objective, train_dataset=EXAMPLES, args=args).train(str(tmp_path / "checkpoint-2"))
    assert told == [2, 3]
