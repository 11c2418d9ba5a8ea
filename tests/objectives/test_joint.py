"""Joint: sums and turns, shared candidates, parts that find their own, what is logged and what is kept."""

import pytest
import torch

from fedrag import LSR, RALT, Contrastive, Example, RAGTrainer
from fedrag.errors import ConfigError, TrainingError
from fedrag.objectives.joint import Joint
from fedrag.objectives.mining import HardNegatives
from fedrag.training.candidates import CandidateTable
from systems import EXAMPLES, arguments, tiny_system

BATCH = EXAMPLES[:4]


class Backwards(LSR):
    """Finds its documents in a way of its own: the worst of the best first."""

    def find(self, examples):
        return [row[::-1] for row in self.retrieve(examples, self.depth)]


def gradients(objective):
    objective.rag.retriever.encoder.zero_grad()
    objective.rag.generator.zero_grad()
    objective(BATCH)["loss"].backward()
    named = objective.rag.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named.items()}


def test_the_loss_and_its_gradient_are_weighted_sums():
    rag = tiny_system(kind="bert")
    parts = [LSR(rag, k=4), RALT(rag, shuffle=False)]
    joint = Joint(*parts, weights=[0.5, 3])
    assert set(joint.trainable()) == {name for part in parts for name in part.trainable()}
    assert joint.depth == 4
    told = joint(BATCH)
    lsr, ralt = (part(BATCH) for part in parts)
    assert told["loss"].item() == pytest.approx(0.5 * lsr["loss"].item() + 3 * ralt["loss"].item(), rel=1e-6)
    expected = {f"lsr_{name}": value for name, value in lsr.items()}
    expected |= {f"ralt_{name}": value for name, value in ralt.items()}
    expected = {name: value.item() if name.endswith("_loss") else value for name, value in expected.items()}
    told.pop("loss")
    assert told == pytest.approx(expected, rel=1e-6)
    both, one, other = gradients(joint), *(gradients(part) for part in parts)
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, 0.5 * one[name] + 3 * other[name], atol=1e-6, rtol=1e-5)


def test_documents_are_looked_up_once_and_each_part_takes_its_best():
    rag = tiny_system(kind="bert", top_k=2)
    joint = Joint(LSR(rag, k=4), RALT(rag, shuffle=False), Contrastive(rag, train="query"))
    table = CandidateTable(joint, progress=False)
    table.refresh(BATCH)
    asked = []

    def candidates(batch):
        asked.append(len(batch))
        return [row[::-1] for row in table(batch)]  # other documents than any part would find by itself

    joint.candidates = candidates
    numbers = joint(BATCH)
    assert asked == [4]
    for part, name in zip(joint.objectives[:2], ("lsr", "ralt"), strict=True):
        kept, part.candidates = part.candidates, lambda batch, k=part.depth: [r[::-1][:k] for r in table(batch)]
        assert numbers[f"{name}_loss"] == pytest.approx(part(BATCH)["loss"].item(), rel=1e-6)
        part.candidates = kept
        assert kept == part.find  # what it was before: a part serves alone afterwards


def test_objectives_without_documents_need_none():
    rag = tiny_system(kind="bert")
    joint = Joint(Contrastive(rag), RALT(rag, k=0))
    assert joint.depth == 0
    assert set(joint(BATCH)) == {
        "loss",
        "contrastive_loss",
        "contrastive_batch_accuracy",
        "ralt_loss",
        "ralt_answer_tokens",
    }


@pytest.mark.parametrize("shared", [True, False])
def test_a_part_that_finds_its_own_documents_gets_those(shared, tmp_path):
    rag = tiny_system(kind="bert", top_k=2)
    own, short = Backwards(rag, k=4), Backwards(rag, k=2)
    parts = [own, RALT(rag, shuffle=False), short] if shared else [own, short]
    joint = Joint(*parts)
    assert not joint.reranks
    table = CandidateTable(joint, progress=False)
    table.refresh(EXAMPLES)
    table.save(tmp_path / "candidates.json")
    again = CandidateTable(joint, progress=False)
    again.load(tmp_path / "candidates.json", EXAMPLES)
    for candidates in (joint.find, table, again):
        joint.candidates = candidates
        numbers = joint(BATCH)
        for part, name in zip(parts, joint.names, strict=True):
            assert numbers[f"{name}_loss"] == pytest.approx(part(BATCH)["loss"].item(), rel=1e-6)
    assert joint.names == (["backwards", "ralt", "backwards2"] if shared else ["backwards", "backwards2"])


def test_mined_negatives_stay_those_of_the_part_that_mines_them(tmp_path):
    rag = tiny_system(kind="bert", top_k=2)
    mining = Contrastive(rag, mine=HardNegatives(answer_match=False))
    joint = Joint(RALT(rag, exclude_ids=lambda example: example.positives), mining)
    expected = [[document.id for document in row] for row in mining.find(BATCH)]
    seen = []

    def watch(batch, loss=mining.loss):
        seen.append([[document.id for document in row] for row in mining.candidates(batch)])
        return loss(batch)

    mining.loss = watch
    joint(BATCH)
    assert seen == [expected]
    RAGTrainer(joint, train_dataset=EXAMPLES, args=arguments(tmp_path)).train()
    assert len(seen) == 5


def test_a_part_that_finds_nothing_is_told():
    rag = tiny_system(kind="bert")
    part = Backwards(rag, k=2)
    part.find = lambda examples: [[] for _ in examples]
    with pytest.raises(TrainingError, match="no document for 4 of 4 examples"):
        Joint(RALT(rag), part).find(BATCH)


def test_parts_take_turns_in_training_and_add_up_in_evaluation():
    rag = tiny_system(kind="bert")
    joint = Joint(LSR(rag, k=3), RALT(rag, shuffle=False), turns=2).train()
    turns = []
    for step in range(8):
        joint.at_step(step)
        turns.append({name.split("_")[0] for name in joint(BATCH)} - {"loss"})
    assert turns == [{"lsr"}] * 2 + [{"ralt"}] * 2 + [{"lsr"}] * 2 + [{"ralt"}] * 2
    told = joint.eval()(BATCH)
    assert told["loss"].item() == pytest.approx(told["lsr_loss"] + told["ralt_loss"], rel=1e-6)


def test_a_turn_moves_one_part_and_leaves_the_other_as_it_is(tmp_path):
    rag = tiny_system(kind="bert")
    joint = Joint(LSR(rag, k=3), RALT(rag), turns=3)
    start = {name: p.detach().clone() for name, p in joint.trainable().items()}
    args = arguments(tmp_path, max_steps=3, weight_decay=0.1)
    RAGTrainer(joint, train_dataset=EXAMPLES, args=args).train()
    moved = {name.split("/")[0] for name, p in joint.trainable().items() if not torch.equal(p, start[name])}
    assert moved == {"retriever"}
    RAGTrainer(joint, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=4)).train()
    moved = {name for name, p in joint.trainable().items() if not torch.equal(p, start[name])}
    assert moved == set(joint.trainable())


def test_modes_reach_the_parts_and_a_teacher_in_training_has_no_dropout():
    rag = tiny_system(kind="bert", dropout=0.5)
    lsr = LSR(rag, k=3)
    joint = Joint(lsr, RALT(rag)).train()
    assert all(part.training for part in joint.objectives)
    assert rag.generator.model.training
    rows = lsr.find(BATCH)
    assert torch.equal(lsr.teacher_scores(BATCH, rows), lsr.teacher_scores(BATCH, rows))
    assert rag.generator.model.training
    joint.eval()
    assert not any(part.training for part in joint.objectives)
    assert not rag.generator.model.training
    assert joint(BATCH)["loss"] == joint(BATCH)["loss"]


def test_the_teachers_scores_do_not_pile_up_while_it_is_trained(tmp_path):
    rag = tiny_system(kind="bert")
    lsr = LSR(rag, k=3)
    joint = Joint(lsr, RALT(rag))
    sizes = []
    for steps in (3, 9):
        RAGTrainer(joint, train_dataset=EXAMPLES, args=arguments(tmp_path, max_steps=steps)).train()
        sizes.append(len(lsr.scorer))
    assert sizes[1] <= len(EXAMPLES) * 3


def test_what_parts_remember_is_kept_apart():
    rag = tiny_system(kind="bert")
    parts = [LSR(rag, k=3), LSR(rag, k=4, normalisation="mean")]
    joint = Joint(*parts)
    assert joint.extra_state() == {}
    joint.eval()(BATCH)
    state = joint.extra_state()
    assert {name.split("/")[0] for name in state} == {"lsr", "lsr2"}
    again = [LSR(rag, k=3), LSR(rag, k=4, normalisation="mean")]
    Joint(*again).load_extra_state(state)
    assert [len(part.scorer) for part in again] == [12, 16]
    assert [part.extra_state().keys() for part in again] == [part.extra_state().keys() for part in parts]


def test_a_resumed_run_goes_on_as_one_that_was_not_interrupted(tmp_path):
    def run(name, **settings):
        rag = tiny_system(kind="bert", dropout=0.1)
        joint = Joint(LSR(rag, k=3), RALT(rag), turns=2)
        args = arguments(tmp_path / name, max_steps=7, save_strategy="steps", save_steps=3, **settings)
        trainer = RAGTrainer(joint, train_dataset=EXAMPLES, args=args, refresh=2)
        return rag, trainer

    whole, trainer = run("whole")
    trainer.train()
    resumed, trainer = run("resumed")
    trainer.train(str(tmp_path / "whole" / "checkpoint-3"))
    for name, parameter in whole.named_parameters().items():
        assert torch.equal(parameter, resumed.named_parameters()[name]), name


def test_the_answer_is_known_to_the_whole():
    rag = tiny_system(kind="bert")
    joint = Joint(Contrastive(rag), RALT(rag))
    assert joint.answer_of(EXAMPLES[1]) == EXAMPLES[1].answers[0]
    assert Joint(Contrastive(rag), Contrastive(rag)).answer_of(Example("Why ?", ["so"])) is None


def test_settings_are_checked():
    rag, other = tiny_system(kind="bert"), tiny_system(kind="bert")
    lsr, ralt = LSR(rag, k=3), RALT(rag)
    for parts, settings in (
        ((), {}),
        ((ralt,), {}),
        ((lsr, ralt), {"weights": [1]}),
        ((lsr, ralt), {"weights": [1, 0]}),
        ((lsr, ralt), {"turns": 0}),
    ):
        with pytest.raises(ConfigError, match="Joint takes two objectives or more"):
            Joint(*parts, **settings)
    with pytest.raises(ConfigError, match="with the same rag"):
        Joint(lsr, RALT(other))

    def exclude(example):
        return example.positives

    with pytest.raises(ConfigError, match="exclude_ids differ"):
        Joint(lsr, RALT(rag, exclude_ids=exclude))
    joint = Joint(LSR(rag, k=3, exclude_ids=exclude), RALT(rag, exclude_ids=exclude), Contrastive(rag, train="query"))
    assert all(
        not {document.id for document in row} & set(example.positives)
        for row, example in zip(joint.find(EXAMPLES), EXAMPLES, strict=True)
    )


def test_a_tower_made_after_an_objective_is_told_before_training():
    rag = tiny_system(kind="bert")
    whole = Contrastive(rag)
    with pytest.raises(ConfigError, match=r"retriever/encoder.*train='query' first"):
        Joint(whole, LSR(rag, k=3))
    assert Joint(LSR(rag, k=3), Contrastive(rag)).depth == 3
